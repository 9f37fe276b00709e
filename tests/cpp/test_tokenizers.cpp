// The normaliser and the tokenizers, each against a plain version of the same.
#include <map>
#include <utility>

#include "check.h"
#include "encode.h"
#include "normalizer.h"
#include "parse.h"
#include "wordpiece_tokenizer.h"

using namespace bertnli;

namespace {

void ascii_table_classes() {
  const AsciiTable lower(true), cased(false);
  CHECK(lower['A'] == 'a' && cased['A'] == 'A' && lower['z'] == 'z' && lower['7'] == '7');
  for (const unsigned char c : {' ', '\t', '\n', '\r'}) CHECK(lower[c] == AsciiTable::kSpace);
  for (const unsigned char c : {'\0', '\x0b', '\x1c', '\x7f'}) CHECK(lower[c] == AsciiTable::kDeleted);
  for (const unsigned char c : {'!', '[', '`', '~', '$', '^'}) CHECK(cased[c] == AsciiTable::kPunctuation);
}

struct CollectWords {
  static constexpr bool kTraced = false;
  std::vector<std::u32string> words{U""};
  void add(char32_t c) { words.back() += c; }
  void end_word() {
    if (!words.back().empty()) words.emplace_back();
  }
  void special(int32_t, size_t) { words.back() = U"<special>", words.emplace_back(); }
  bool full() const { return false; }
};

std::vector<std::u32string> normalized(std::string_view text, bool lowercase, const Literals& literals = {}) {
  const AsciiTable ascii(lowercase);
  CollectWords words;
  Normalizer(ascii, literals, lowercase, words).run(text);
  words.words.pop_back();
  return words.words;
}

void normalizer_examples() {
  using Words = std::vector<std::u32string>;
  CHECK((normalized("Ab,c \xC3\x89t\xC3\xA9", true) == Words{U"ab", U",", U"c", U"ete"}));
  CHECK((normalized("\xC3\x89", false) == Words{U"\u00C9"}));
  CHECK((normalized("x\xE4\xB8\xADy", true) == Words{U"x", U"\u4E2D", U"y"}));
  CHECK((normalized("\xED\x95\x9C", true) == Words{U"\u1112\u1161\u11AB"}));
  CHECK((normalized("x\xE3\x80\xAE\xF0\x9D\x85\xA5", true) == Words{U"x\U0001D165\u302E"}));  // reordered
  CHECK((normalized("a[SEP]b[S", true, {{"[SEP]", 3}}) == Words{U"a", U"<special>", U"b", U"[", U"s"}));
}

// Greedy longest match over a map: WordPiece of lower-case ASCII words without punctuation.
std::vector<int32_t> plain_wordpiece(std::string_view text) {
  static const std::map<std::string, int32_t> map(pieces().begin(), pieces().end());
  std::vector<int32_t> ids;
  for (size_t at = 0; at < text.size();) {
    const size_t stop = std::min(text.find(' ', at), text.size());
    const std::string word(text.substr(at, stop - at));
    at = stop + 1;
    std::vector<int32_t> of_word;
    for (size_t i = 0; i < word.size();) {
      size_t n = word.size() - i;
      const auto piece = [&] { return map.find((i == 0 ? "" : "##") + word.substr(i, n)); };
      while (n > 0 && piece() == map.end()) --n;
      if (n == 0) {
        of_word = {1};
        break;
      }
      of_word.push_back(piece()->second);
      i += n;
    }
    if (word.size() > 100) of_word = {1};
    ids.insert(ids.end(), of_word.begin(), of_word.end());
  }
  return ids;
}

void wordpiece_equals_a_map() {
  const WordPieceTokenizer tokenizer(pieces(), {0, 2, 3, 1}, {}, true);
  ChunkCache cache;
  for (int round = 0; round < 30'000; ++round) {
    std::string s = random_text("abe   ", 1 + below(200));
    if (below(20) == 0) s += " " + std::string(95 + below(10), 'a') + " b";
    const Exact text(s);
    const auto wanted = plain_wordpiece(s);
    IdBuffer ids;
    CHECK(tokenizer.encode(text.view(), text.end(), {}, cache, ids) == wanted.size());
    CHECK(list(ids) == wanted);
    const size_t budget = below(30);
    for (const bool count_all : {false, true}) {
      IdBuffer cut;
      const size_t count = tokenizer.encode(text.view(), text.end(), {budget, count_all}, cache, cut);
      CHECK(list(cut) == std::vector<int32_t>(
                             wanted.begin(), wanted.begin() + static_cast<ptrdiff_t>(std::min(budget, wanted.size()))));
      CHECK(count_all ? count == wanted.size() : count >= std::min(budget, wanted.size()));
    }
  }
}

void encode_parse_equals_extract_text() {
  const WordPieceTokenizer tokenizer(pieces(), {0, 2, 3, 1}, {}, true);
  ChunkCache cache;
  int direct = 0, odd = 0;
  for (int round = 0; round < 30'000; ++round) {
    std::string s;
    for (size_t n = below(40); n > 0; --n) {
      static constexpr std::string_view kPieces[] = {"( ", ") ", "a ", "ab ", "unaffable ", "( a ) ",
                                                     "  ", ".",  "(",  "\t",  "\xC2\xA0",   "\xC3\xA9 "};
      s += kPieces[below(round % 4 == 0 ? 12 : 7)];
    }
    const Exact parse(s);
    IdBuffer ids, wanted;
    size_t count = 0;
    if (!tokenizer.encode_parse(parse.view(), parse.end(), {}, cache, ids, count)) {
      CHECK(ids.size() == 0);
      ++odd;
      continue;
    }
    ++direct;
    std::string text;
    extract_text(s, text);
    CHECK(tokenizer.encode(text, text.data() + text.size(), {}, cache, wanted) == count);
    CHECK(list(ids) == list(wanted));
  }
  CHECK(direct > 1000 && odd > 1000);
}

}  // namespace

void test_tokenizers() {
  ascii_table_classes();
  normalizer_examples();
  wordpiece_equals_a_map();
  encode_parse_equals_extract_text();
}
