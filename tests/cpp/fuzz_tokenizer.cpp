// libFuzzer target: any UTF-8 text, tokenized in every way that must agree.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "encode.h"
#include "unicode.h"
#include "word_tokenizer.h"
#include "wordpiece_tokenizer.h"

using namespace bertnli;

static void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

static bool same(const IdBuffer& a, const IdBuffer& b) {
  return a.size() == b.size() && std::equal(a.data(), a.data() + a.size(), b.data());
}

// A text at the end of memory of its own, so that a read beyond it is found.
struct Exact {
  explicit Exact(std::string_view text) : bytes(text.begin(), text.end()) {}
  std::vector<char> bytes;
  std::string_view view() const { return {bytes.data(), bytes.size()}; }
};

static void check(const Tokenizer& tokenizer, ChunkCache& cache, std::string_view text, size_t budget) {
  const Exact exact(text);
  const std::string_view view = exact.view();
  const char* end = view.data() + view.size();
  Spans spans;  // made without the cache
  tokenizer.encode_spans(view, view, spans);
  const IdBuffer& wanted = spans.ids;
  IdBuffer first, again, padded;
  const size_t count = tokenizer.encode(view, end, {}, cache, first);
  require(count == first.size() && same(first, wanted), "the cache, or the blocks, change the ids");
  tokenizer.encode(view, end, {}, cache, again);
  require(same(again, wanted), "the cache changes the ids");
  std::string behind(text);
  behind += std::string(80, 'x');  // what lies behind the text must not matter
  tokenizer.encode({behind.data(), text.size()}, behind.data() + behind.size(), {}, cache, padded);
  require(same(padded, wanted), "bytes behind the text matter");
  for (const bool count_all : {false, true}) {
    IdBuffer cut;
    const size_t counted = tokenizer.encode(view, end, {budget, count_all}, cache, cut);
    require(cut.size() == std::min(budget, wanted.size()), "limit");
    require(counted == wanted.size() || (!count_all && counted >= budget), "count of a limited text");
    require(std::equal(cut.data(), cut.data() + cut.size(), wanted.data()), "a limited text differs");
  }
  const size_t n = wanted.size();
  require(spans.starts.size() == n && spans.ends.size() == n && spans.words.size() == n, "columns of spans");
  const int32_t *starts = spans.starts.data(), *ends = spans.ends.data(), *words = spans.words.data();
  for (size_t i = 0; i < n; ++i) {
    require(0 <= starts[i] && starts[i] < ends[i] && static_cast<size_t>(ends[i]) <= text.size(),
            "a span outside its text");
    require(i == 0 || (starts[i - 1] <= starts[i] && words[i - 1] <= words[i]), "spans out of order");
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
  static ChunkCache caches[3];
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (find_invalid_utf8(text) != std::string_view::npos) return 0;
  check(uncased, caches[0], text, data[0]);
  check(cased, caches[1], text, data[0]);
  check(words, caches[2], text, data[0]);
  return 0;
}
