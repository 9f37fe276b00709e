// Tests of each part of the text stage, against a plain version of the same. tests/cpp/run.sh builds and runs them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "blocks.h"
#include "buffers.h"
#include "chunk_cache.h"
#include "digest.h"
#include "ids.h"
#include "json.h"
#include "normalizer.h"
#include "pairs.h"
#include "parallel.h"
#include "parse.h"
#include "trie.h"
#include "tsv.h"
#include "wordpiece.h"
#include "words.h"

using namespace bertnli;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

namespace {

std::mt19937 rng(1);
size_t below(size_t n) { return rng() % n; }

std::string random_text(std::string_view alphabet, size_t longest) {
  std::string s(below(longest + 1), ' ');
  for (char& c : s) c = alphabet[below(alphabet.size())];
  return s;
}

// Text at the end of memory of its own size: AddressSanitizer sees a read beyond it.
struct Exact {
  explicit Exact(std::string_view text) : bytes(text.begin(), text.end()) { bytes.shrink_to_fit(); }
  std::vector<char> bytes;
  const char* begin() const { return bytes.data(); }
  const char* end() const { return bytes.data() + bytes.size(); }
  std::string_view view() const { return {bytes.data(), bytes.size()}; }
};

std::vector<int32_t> list(const Ids& ids) { return {ids.data(), ids.data() + ids.size()}; }

void ids_grow_and_move() {
  Ids ids;
  std::vector<int32_t> wanted;
  for (int32_t i = 0; i < 100'000; ++i) {
    if (i % 7 == 0) ids.reserve(below(200'000));
    if (i % 3 == 0) {
      int32_t* to = ids.room(5);
      to[0] = i;
      to[4] = -1;  // room is for all of them
      ids.end_at(to + 1);
    } else {
      ids.push(i);
    }
    wanted.push_back(i);
  }
  CHECK(list(ids) == wanted);
  Ids moved = std::move(ids);
  moved.shrink();
  CHECK(list(moved) == wanted);
  while (moved.size() < 1'000'000) moved.push(static_cast<int32_t>(moved.size()));
  CHECK(list(moved)[99'999] == wanted[99'999] && moved.data()[999'999] == 999'999);
}

void blocks_equal_loops() {
  for (int round = 0; round < 20'000; ++round) {
    std::string s(16 + below(90), ' ');
    for (char& c : s) c = static_cast<char>(below(4) == 0 ? below(256) : " ()\t\n\rab"[below(8)]);
    const Exact text(s);
    const size_t at = below(s.size()), readable = s.size() - at;
    const char* p = text.begin() + at;
    const auto expect = [&](uint64_t mask, auto&& test) {
      for (size_t i = 0; i < std::min<size_t>(readable, 64); ++i) {
        CHECK((mask >> i & 1) == static_cast<uint64_t>(test(static_cast<signed char>(p[i]))));
      }
    };
    expect(block_mask(p, readable, [](Lane v) { return v.equal(' '); }), [](signed char c) { return c == ' '; });
    expect(block_mask(p, readable, [](Lane v) { return v.bracket(); }),
           [](signed char c) { return c == '(' || c == ')'; });
    expect(block_mask(p, readable, [](Lane v) { return v.high(); }), [](signed char c) { return c < 0; });
    expect(block_mask(p, readable, [](Lane v) { return v.under_or_high('\r' + 1); }),
           [](signed char c) { return c < 14; });
  }
}

ChunkKey key_of(std::string_view s) {
  char bytes[16] = {};
  std::copy(s.begin(), s.end(), bytes);
  return ChunkKey::of(Bytes16::load(bytes), s.size());
}

void chunk_cache_never_lies() {
  const ChunkCache cache;
  std::map<std::string, std::vector<int32_t>> inserted;
  for (int round = 0; round < 200'000; ++round) {
    const bool alike = round % 2 != 0;  // first eight bytes, of which find() goes by
    const std::string s = (alike ? "xxxxxxxx" : "x") + random_text("abcdefgh", alike ? 7 : 14);
    const ChunkKey key = key_of(s);
    CHECK(ChunkCache::place(key) < ChunkCache::kBuckets);
    ChunkCache::Bucket& bucket = cache.buckets()[ChunkCache::place(key)];
    const auto* hit = bucket.find(key);
    const auto known = inserted.find(s);
    if (hit != nullptr) {  // it may have forgotten, but what it says is right
      CHECK(known != inserted.end());
      CHECK(std::vector<int32_t>(hit->ids, hit->ids + hit->count) == known->second);
    } else {
      std::vector<int32_t> ids(below(ChunkCache::kMaxIds + 1));
      for (int32_t& id : ids) id = static_cast<int32_t>(below(1000));
      bucket.insert(key, ids.data(), ids.size());
      inserted[s] = ids;
      CHECK(bucket.find(key) != nullptr);
    }
  }
  // Bytes dropped from the front, and keys of every length, leave nothing of what stood around.
  for (unsigned drop = 0; drop < 16; ++drop) {
    for (size_t size = 1; size + drop <= 15; ++size) {
      CHECK(ChunkKey::of(Bytes16::load("0123456789abcdef").drop(drop), size) ==
            key_of(std::string_view("0123456789abcdef").substr(drop, size)));
    }
  }
}

void keys_know_letters_and_digits() {
  for (size_t size = 1; size <= ChunkKey::kMaxSize; ++size) {
    for (size_t at = 0; at < size; ++at) {
      for (int c = 0; c < 256; ++c) {
        std::string s(size, "aZ09"[(size + at) % 4]);
        s[at] = static_cast<char>(c);
        const bool is = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        CHECK(key_of(s).is_alphanumeric() == is);
        if (!is) continue;
        char lower[16];
        key_of(s).write_lower(lower);
        for (char& b : s) b = b >= 'A' && b <= 'Z' ? static_cast<char>(b + 32) : b;
        CHECK(s.append(16 - size, '\0') == std::string_view(lower, 16));
      }
    }
  }
}

VocabItems random_vocab(std::string_view alphabet, size_t n) {
  std::map<std::string, int32_t> items;
  while (items.size() < n) {
    const std::string s = random_text(alphabet, 6);
    if (!s.empty()) items.emplace(s, static_cast<int32_t>(items.size()));
  }
  return {items.begin(), items.end()};
}

void vocabularies_equal_maps() {
  for (const std::string_view alphabet : {std::string_view("abc"), std::string_view("a\0\xFF\x80z", 5)}) {
    const VocabItems items = random_vocab(alphabet, 150);
    const std::map<std::string, int32_t> map(items.begin(), items.end());
    const Trie trie(items);
    const StringMap strings(items);
    for (int round = 0; round < 20'000; ++round) {
      const std::string s = random_text(alphabet, 8);
      const auto found = map.find(s);
      const int32_t wanted = found == map.end() ? -1 : found->second;
      int32_t node = Trie::kRoot;
      for (const char c : s) {
        if (node != Trie::kNone) node = trie.child(node, static_cast<unsigned char>(c));
      }
      CHECK((node == Trie::kNone ? -1 : trie.id(node)) == wanted);
      CHECK(strings.find(s, -1) == wanted);
    }
  }
  CHECK(Trie({}).child(Trie::kRoot, 'a') == Trie::kNone);
  CHECK(StringMap({}).find("a", -7) == -7);
}

void ascii_table() {
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

void normalizer() {
  using Words = std::vector<std::u32string>;
  CHECK((normalized("Ab,c \xC3\x89t\xC3\xA9", true) == Words{U"ab", U",", U"c", U"ete"}));
  CHECK((normalized("\xC3\x89", false) == Words{U"\u00C9"}));
  CHECK((normalized("x\xE4\xB8\xADy", true) == Words{U"x", U"\u4E2D", U"y"}));
  CHECK((normalized("\xED\x95\x9C", true) == Words{U"\u1112\u1161\u11AB"}));
  CHECK((normalized("x\xE3\x80\xAE\xF0\x9D\x85\xA5", true) == Words{U"x\U0001D165\u302E"}));  // reordered
  CHECK((normalized("a[SEP]b[S", true, {{"[SEP]", 3}}) == Words{U"a", U"<special>", U"b", U"[", U"s"}));
}

const VocabItems& pieces() {
  static const VocabItems items = [] {
    VocabItems all;
    for (const char* t : {"[PAD]", "[UNK]", "[CLS]",        "[SEP]", "[MASK]", "the", "un", "##aff", "##able", "a",
                          "##a",   "b",     "##b",          "#",     "[",      "]",   ".",  ",",     "(",      ")",
                          "e",     "##e",   "\xE4\xB8\xAD", "ab",    "##ba"}) {
      all.emplace_back(t, static_cast<int32_t>(all.size()));
    }
    return all;
  }();
  return items;
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

void chunks_are_found_wherever_they_lie() {
  const WordPieceTokenizer tokenizer(pieces(), {0, 2, 3, 1}, {}, true);
  ChunkCache cache;
  for (int round = 0; round < 30'000; ++round) {
    std::string s = random_text("abe   ", 1 + below(200));
    if (below(20) == 0) s += " " + std::string(95 + below(10), 'a') + " b";
    const Exact text(s);
    const auto wanted = plain_wordpiece(s);
    Ids ids;
    CHECK(tokenizer.encode(text.view(), text.end(), {}, cache, ids) == wanted.size());
    CHECK(list(ids) == wanted);
    const size_t budget = below(30);
    for (const bool count_all : {false, true}) {
      Ids cut;
      const size_t count = tokenizer.encode(text.view(), text.end(), {budget, count_all}, cache, cut);
      CHECK(list(cut) == std::vector<int32_t>(
                             wanted.begin(), wanted.begin() + static_cast<ptrdiff_t>(std::min(budget, wanted.size()))));
      CHECK(count_all ? count == wanted.size() : count >= std::min(budget, wanted.size()));
    }
  }
}

void parses_equal_their_texts() {
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
    Ids ids, wanted;
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

void truncation_equals_popping() {
  for (size_t budget = 0; budget < 12; ++budget) {
    for (size_t p = 0; p < 15; ++p) {
      for (size_t h = 0; h < 15; ++h) {
        size_t a = p, b = h;
        while (a + b > budget) a > b ? --a : --b;
        Kept kept;
        CHECK(truncate_pair(Truncation::kLongestFirst, p, h, budget, kept));
        CHECK(kept.first == a && kept.second == b);
        const bool fits = p + h <= budget;
        CHECK(truncate_pair(Truncation::kOnlyFirst, p, h, budget, kept) == (fits || h <= budget));
        CHECK(truncate_pair(Truncation::kOnlySecond, p, h, budget, kept) == (fits || p <= budget));
        CHECK(truncate_pair(Truncation::kRatio, p, h, budget, kept));
        CHECK(kept.first <= p && kept.second <= h && kept.first + kept.second == std::min(budget, p + h));
      }
    }
  }
}

void buffers_come_back() {
  constexpr size_t kMegabyte = size_t{1} << 20;
  for (const size_t bytes : {size_t{1} << 18, 5 * kMegabyte}) {
    Buffer *a = take_buffer(bytes), *b = take_buffer(bytes);
    CHECK(a->bytes >= bytes && a->data != b->data);
    for (Buffer* buffer : {a, b}) std::memset(buffer->data, 1, buffer->bytes);
    void* const of[] = {a->data, b->data};
    give_buffer(a);
    give_buffer(b);
    Buffer* large = take_buffer(10 * bytes);  // fits into neither, and leaves them where they are
    std::memset(large->data, 2, large->bytes);
    Buffer* small = take_buffer(1);  // half of it would be of no use
    a = take_buffer(bytes);
    b = take_buffer(bytes);
    CHECK(a->data != b->data);
#if defined(__linux__)
    CHECK((a->data == of[0] && b->data == of[1]) || (a->data == of[1] && b->data == of[0]));
#endif
    for (Buffer* buffer : {a, b, large, small}) give_buffer(buffer);
  }
  std::vector<Buffer*> many;  // more than are kept, in number and in bytes
  for (size_t k = 0; k < 70; ++k) many.push_back(take_buffer((k % 2 == 0 ? 100 : 30) * kMegabyte));
  std::set<void*> places;
  for (Buffer* buffer : many) {
    CHECK(places.insert(buffer->data).second);
    static_cast<char*>(buffer->data)[buffer->bytes - 1] = 1;
  }
  for (Buffer* buffer : many) give_buffer(buffer);
  many.clear();
  for (size_t k = 0; k < 60; ++k) many.push_back(take_buffer(kMegabyte / 2));
  places.clear();
  for (Buffer* buffer : many) places.insert(buffer->data);
  CHECK(places.size() == many.size());
  for (Buffer* buffer : many) give_buffer(buffer);
#if defined(__linux__)
  size_t held = 0;  // bytes that are still the process's: a few megabytes of small ones, no more
  for (void* place : places) {
    unsigned char resident;
    held += mincore(place, 1, &resident) == 0 ? kMegabyte / 2 : 0;
  }
  CHECK(held > 0 && held <= 8 * kMegabyte);
  Buffer* tiny = take_buffer(kLeastBuffer);  // its memory is kept, whatever was before
  void* const place = tiny->data;
  give_buffer(tiny);
  tiny = take_buffer(kLeastBuffer);
  CHECK(tiny->data == place);
  give_buffer(tiny);
#endif
  Buffer* grown = take_buffer(kLeastBuffer);
  static_cast<char*>(grown->data)[kLeastBuffer - 1] = 'x';
  for (size_t bytes = kLeastBuffer; bytes < 20 * kMegabyte; bytes *= 3) {
    grow_buffer(*grown, bytes);
    CHECK(grown->bytes >= bytes && static_cast<char*>(grown->data)[kLeastBuffer - 1] == 'x');
    std::memset(static_cast<char*>(grown->data) + kLeastBuffer, 'y', grown->bytes - kLeastBuffer);
  }
  const size_t before = grown->bytes;
  trim_buffer(*grown, before / 2 + 1);
  CHECK(grown->bytes > before / 2);
  trim_buffer(*grown, kLeastBuffer);
  CHECK(grown->bytes >= kLeastBuffer && grown->bytes < before / 2);
  CHECK(static_cast<char*>(grown->data)[kLeastBuffer - 1] == 'x');
  give_buffer(grown);
  std::vector<std::thread> callers;
  for (char k = 1; k <= 4; ++k) {
    callers.emplace_back([k] {
      for (int round = 0; round < 200; ++round) {
        Buffer* mine = take_buffer((static_cast<size_t>(round) % 7 + 1) * kMegabyte);
        char* p = static_cast<char*>(mine->data);
        std::memset(p, k, mine->bytes);
        CHECK(p[0] == k && p[mine->bytes / 2] == k && p[mine->bytes - 1] == k);
        give_buffer(mine);
      }
    });
  }
  for (auto& t : callers) t.join();
}

// Each row once, made ready before and not needed afterwards; of several errors the lowest row's.
void pieces_are_taken_in_order() {
  for (const size_t n : {size_t{0}, size_t{1}, Pieces::kPiece, Pieces::kStretch + 1, 5 * Pieces::kStretch + 77}) {
    for (const size_t threads : {size_t{1}, size_t{2}, size_t{5}}) {
      for (const size_t broken : {n, n / 2, n / 3}) {
        std::vector<int> state(n, 0);  // 1 ready, 2 done
        size_t ready = 0, over = 0;
        std::mutex mutex;
        const Pieces::Prepare prepare = [&](size_t until, size_t begin, size_t end) {
          const std::lock_guard lock(mutex);
          CHECK(begin == ready && begin < end && end <= n && until <= begin && end - until <= Pieces::kReady);
          for (; over < until; ++over) CHECK(state[over] == 2);
          for (; ready < end; ++ready) state[ready] = 1;
          if (broken == n / 3 && begin > broken) throw std::runtime_error("not ready");
        };
        Pieces pieces(n, threads, prepare);
        std::string error;
        try {
          pieces.run([&](Pieces::Turn& turn) {
            while (turn.next()) {
              CHECK(turn.begin < turn.end && turn.end - turn.begin <= Pieces::kPiece);
              const std::lock_guard lock(mutex);
              for (size_t i = turn.begin; i < turn.end; ++i) {
                CHECK(state[i] == 1);
                if (i >= broken && i % 3 == broken % 3) throw std::runtime_error(std::to_string(i));
                state[i] = 2;
              }
            }
          });
        } catch (const std::runtime_error& e) {
          error = e.what();
        }
        CHECK(error == (broken < n ? std::to_string(broken) : ""));
        for (size_t i = 0; i < broken; ++i) CHECK(state[i] == 2);
      }
    }
  }
  for (const size_t threads : {size_t{1}, size_t{3}}) {  // an error of making ready, after all that was ready
    size_t done = 0;
    std::mutex mutex;
    std::string error;
    const Pieces::Prepare prepare = [&](size_t, size_t begin, size_t) {
      if (begin >= 3 * Pieces::kStretch) throw std::runtime_error("not ready");
    };
    Pieces pieces(10 * Pieces::kStretch, threads, prepare);
    try {
      pieces.run([&](Pieces::Turn& turn) {
        while (turn.next()) {
          const std::lock_guard lock(mutex);
          done += turn.end - turn.begin;
        }
      });
    } catch (const std::runtime_error& e) {
      error = e.what();
    }
    CHECK(error == "not ready" && done == 3 * Pieces::kStretch);
  }
}

void dense_equals_ragged() {
  const WordTokenizer tokenizer(pieces(), {5, 2, 3, 1});  // (a pad id other than 0)
  std::vector<std::string> texts[2];
  constexpr size_t kMost = 25'000;
  for (size_t i = 0; i < kMost; ++i) {
    for (auto& side : texts) side.push_back(random_text("ab ", 40));
    if (i % 3 == 0 && i > 0) texts[0][i] = texts[0][i - 1];
  }
  const size_t max_len = 13;
  std::vector<std::string_view> views[2];
  for (int k = 0; k < 2; ++k) views[k].assign(texts[k].begin(), texts[k].end());
  for (const auto& [n, threads] : {std::pair(kMost, 1), {kMost, 4}, {kMost / 5, 1}}) {  // (large ones pass the caches)
    const Texts first{n, views[0].data(), nullptr, nullptr, nullptr, nullptr};
    const Texts second{n, views[1].data(), nullptr, nullptr, nullptr, nullptr};
    std::vector<int64_t> offsets(n + 1), lens(n);
    std::vector<int32_t> first_lens(n);
    const Job job{tokenizer, first, &second, max_len, Truncation::kLongestFirst, threads, {"a", "b"}};
    const Ids ragged = encode_ragged(job, offsets.data(), first_lens.data());
    std::vector<int64_t> ids(n * max_len, 9), segments(ids), other_ids(ids), other_segments(ids);
    encode_dense(job, ids.data(), segments.data(), lens.data());
    for (size_t i = 0; i < n; ++i) {
      const auto length = static_cast<size_t>(offsets[i + 1] - offsets[i]);
      CHECK(lens[i] == static_cast<int64_t>(length));
      for (size_t k = 0; k < max_len; ++k) {
        CHECK(ids[i * max_len + k] == (k < length ? ragged.data()[offsets[i] + static_cast<int64_t>(k)] : 5));
        CHECK(segments[i * max_len + k] == (k >= static_cast<size_t>(first_lens[i]) && k < length));
      }
    }
    const Ragged store{ragged.data(), offsets.data(), first_lens.data()};
    gather_dense(store, nullptr, n, max_len, 5, other_ids.data(), other_segments.data(), lens.data());
    CHECK(ids == other_ids && segments == other_segments);
  }
}

void tsv_equals_splitting() {
  for (int round = 0; round < 20'000; ++round) {
    const Exact file(random_text("ab\t\t\n\r\xC3", 200));
    std::vector<std::vector<std::string>> wanted;
    std::vector<std::string> line{""};
    for (const char c : file.view()) {
      if (c == '\n' || c == '\r') {
        wanted.push_back(line);
        line = {""};
      } else if (c == '\t') {
        line.emplace_back();
      } else {
        line.back() += c;
      }
    }
    if (line != std::vector<std::string>{""}) wanted.push_back(line);
    const size_t known = 1 + below(5);
    TsvScanner lines(file.begin(), file.end(), known);
    for (const auto& fields : wanted) {
      CHECK(lines.next());
      CHECK(lines.fields() == fields.size());
      bool ascii = true;
      for (size_t i = 0; i < fields.size(); ++i) {
        if (i < known) CHECK(lines.field(i) == fields[i]);
        ascii &= fields[i].find('\xC3') == std::string::npos;
      }
      CHECK(lines.ascii() == ascii);
    }
    CHECK(!lines.next());
  }
}

void lines_equal_splitting() {
  for (int round = 0; round < 20'000; ++round) {
    const Exact file(random_text("ab\n\r", 40));
    std::vector<std::string> wanted;
    std::string line;
    const std::string_view s = file.view();
    for (size_t i = 0; i < s.size(); ++i) {
      if (s[i] != '\n' && s[i] != '\r') {
        line += s[i];
        continue;
      }
      if (s[i] == '\r' && i + 1 < s.size() && s[i + 1] == '\n') ++i;
      wanted.push_back(line);
      line.clear();
    }
    if (!line.empty()) wanted.push_back(line);
    Lines lines(file.begin(), file.end());
    std::string_view found;
    for (const std::string& w : wanted) CHECK(lines.next(found) && found == w);
    CHECK(!lines.next(found));
  }
}

void digests() {
  std::map<std::string, std::string> seen;
  const auto add = [&](const std::string& s) {
    const std::string d = digest(s);
    CHECK(d.size() == 32 && digest(s) == d);
    const auto [at, fresh] = seen.emplace(d, s);
    CHECK(fresh || at->second == s);
  };
  for (size_t n = 0; n < 200; ++n) add(std::string(n, '\0'));
  const std::string base = random_text("abcdefgh", 4000) + std::string(100, 'x');
  for (size_t i = 0; i < base.size() * 8; i += 5) {  // every bit counts
    std::string changed = base;
    changed[i / 8] = static_cast<char>(changed[i / 8] ^ 1 << i % 8);
    add(changed);
  }
  for (size_t i = 0; i < 1024; ++i) {  // and every two bits of words in one lane
    for (size_t k = 0; k < 64; ++k) {
      std::string changed = base;
      changed[(i / 64) * 32 + i % 64 / 8] ^= static_cast<char>(1 << i % 8);
      changed[(i / 64 + 1) * 32 + k / 8] ^= static_cast<char>(1 << k % 8);
      add(changed.substr(0, 1000));
    }
  }
}

void threads_share_a_tokenizer() {
  const WordPieceTokenizer tokenizer(pieces(), {0, 2, 3, 1}, {}, true);
  std::vector<std::string> texts;
  for (int i = 0; i < 2000; ++i) texts.push_back(random_text("abe  ", 80));
  std::vector<std::string_view> views(texts.begin(), texts.end());
  const Texts all{views.size(), views.data(), nullptr, nullptr, nullptr, nullptr};
  std::vector<std::vector<int32_t>> results(6);
  std::vector<std::thread> callers;
  for (auto& result : results) {
    callers.emplace_back([&] {
      for (int round = 0; round < 3; ++round) {
        std::vector<int64_t> offsets(views.size() + 1);
        std::vector<int32_t> first_lens(views.size());
        const Job job{tokenizer, all, &all, 20, Truncation::kLongestFirst, 3, {"a", "b"}};
        result = list(encode_ragged(job, offsets.data(), first_lens.data()));
      }
    });
  }
  for (auto& t : callers) t.join();
  for (const auto& r : results) CHECK(r == results[0] && !r.empty());
}

void the_lowest_parts_error_wins() {
  for (int round = 0; round < 50; ++round) {
    try {
      run_parts(5, [](size_t part) {
        if (part >= 2) throw std::runtime_error(std::to_string(part));
      });
      CHECK(false);
    } catch (const std::runtime_error& e) {
      CHECK(std::string(e.what()) == "2");
    }
  }
}

}  // namespace

int main() {
  buffers_come_back();
  ids_grow_and_move();
  blocks_equal_loops();
  chunk_cache_never_lies();
  keys_know_letters_and_digits();
  vocabularies_equal_maps();
  ascii_table();
  normalizer();
  chunks_are_found_wherever_they_lie();
  parses_equal_their_texts();
  truncation_equals_popping();
  pieces_are_taken_in_order();
  dense_equals_ragged();
  tsv_equals_splitting();
  lines_equal_splitting();
  digests();
  threads_share_a_tokenizer();
  the_lowest_parts_error_wins();
  std::puts("all parts hold");
  return 0;
}
