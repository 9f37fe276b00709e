// libFuzzer target: any UTF-8 text, tokenized in every way that must agree.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "pairs.h"
#include "unicode.h"
#include "wordpiece.h"
#include "words.h"

using namespace bertnli;

static void demand(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

static bool same(const Ids& a, const Ids& b) {
  return a.size() == b.size() && std::equal(a.data(), a.data() + a.size(), b.data());
}

// A text at the end of memory of its own, so that a read beyond it is found.
struct Exact {
  explicit Exact(std::string_view text) : bytes(text.begin(), text.end()) {}
  std::vector<char> bytes;
  std::string_view view() const { return {bytes.data(), bytes.size()}; }
};

static void check(const Tokenizer& tokenizer, std::string_view text, size_t budget) {
  const Exact exact(text);
  const std::string_view view = exact.view();
  const char* end = view.data() + view.size();
  Ids cold, warm, padded, spans_ids;
  {
    ChunkCache cache;
    const size_t count = tokenizer.encode(view, end, {}, cache, cold);
    demand(count == cold.size(), "count");
    tokenizer.encode(view, end, {}, cache, warm);  // now out of the cache
    demand(same(cold, warm), "cold and warm differ");
    std::string behind(text);
    behind += std::string(80, 'x');  // what lies behind the text must not matter
    tokenizer.encode({behind.data(), text.size()}, behind.data() + behind.size(), {}, cache, padded);
    demand(same(cold, padded), "bytes behind the text matter");
    for (const bool count_all : {false, true}) {
      Ids cut;
      const size_t counted = tokenizer.encode(view, end, {budget, count_all}, cache, cut);
      demand(cut.size() == std::min(budget, cold.size()), "limit");
      demand(
          count_all ? counted == cold.size() : counted >= cut.size() && (counted >= budget || counted == cold.size()),
          "count of a limited text");
      demand(std::equal(cut.data(), cut.data() + cut.size(), cold.data()), "a limited text differs");
    }
  }
  Spans spans;
  tokenizer.encode_spans(view, view, spans);
  demand(same(spans.ids, cold), "spans have other ids");
  demand(spans.starts.size() == cold.size() && spans.ends.size() == cold.size() && spans.words.size() == cold.size(),
         "columns of spans");
  for (size_t i = 0; i < cold.size(); ++i) {
    demand(0 <= spans.starts.data()[i] && spans.starts.data()[i] < spans.ends.data()[i] &&
               static_cast<size_t>(spans.ends.data()[i]) <= text.size(),
           "a span outside its text");
    demand(i == 0 || (spans.starts.data()[i - 1] <= spans.starts.data()[i] &&
                      spans.words.data()[i - 1] <= spans.words.data()[i]),
           "spans out of order");
  }
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const VocabItems pieces = [] {
    VocabItems items;
    for (const char* token : {"[PAD]",
                              "[UNK]",
                              "[CLS]",
                              "[SEP]",
                              "[MASK]",
                              "the",
                              "un",
                              "##aff",
                              "##able",
                              "a",
                              "##a",
                              "b",
                              "##b",
                              "#",
                              "[",
                              "]",
                              ".",
                              ",",
                              "(",
                              ")",
                              "e",
                              "##e",
                              "\xE4\xB8\xAD",
                              "\xCF\x83",
                              "##\xCF\x83",
                              "\xE1\x84\x92",
                              "##\xE1\x85\xA1",
                              "##\xE1\x86\xAB",
                              "##\xE3\x80\xAE",
                              "x",
                              "##x",
                              "0",
                              "##0"}) {
      items.emplace_back(token, static_cast<int32_t>(items.size()));
    }
    return items;
  }();
  static const WordPieceTokenizer uncased(pieces, {0, 2, 3, 1}, {{"[SEP]", 3}, {"[MASK]", 4}}, true);
  static const WordPieceTokenizer cased(pieces, {0, 2, 3, 1}, {}, false);
  static const WordTokenizer words(pieces, {0, 2, 3, 1});
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (find_invalid_utf8(text) != std::string_view::npos) return 0;
  check(uncased, text, data[0]);
  check(cased, text, data[0]);
  check(words, text, data[0]);
  return 0;
}
