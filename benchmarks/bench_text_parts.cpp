// Cycles of each part of the text stage, measured alone. Build and run (from the checkout's root):
//
//   c++ -O3 -std=c++20 -Icsrc/text benchmarks/bench_text_parts.cpp $(ls csrc/text/*.cpp | grep -v bindings) -o parts
//   ./parts vocab.txt premise-TAB-hypothesis-lines.tsv
//
// One line a part: its name, nanoseconds a pair of texts, time stamp counter cycles a pair, a checksum.
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include "buffers.h"
#include "encode.h"
#include "gather.h"
#include "parse.h"
#include "text_file.h"
#include "tsv.h"
#include "word_tokenizer.h"
#include "wordpiece_tokenizer.h"

using namespace bertnli;

namespace {

uint64_t ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return 0;
#endif
}

// The fastest of several rounds.
template <class Work>
void measure(const char* name, size_t pairs, const Work& work) {
  double seconds = 1e9;
  uint64_t cycles = UINT64_MAX, sum = 0;
  for (int round = 0; round < 9; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    const uint64_t tick = ticks();
    sum = work();
    cycles = std::min(cycles, ticks() - tick);
    seconds = std::min(seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  const auto n = static_cast<double>(pairs);
  std::printf("%-34s %9.1f ns %9.0f cycles a pair   (%llu)\n", name, seconds / n * 1e9, static_cast<double>(cycles) / n,
              static_cast<unsigned long long>(sum));
}

VocabItems read_vocab(const char* path) {
  VocabItems items;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) items.emplace_back(line, static_cast<int32_t>(items.size()));
  return items;
}

// Opens what the class keeps to itself.
struct Misses final : WordPieceTokenizer {
  using WordPieceTokenizer::WordPieceTokenizer;
  size_t chunk(std::string_view text, IdBuffer& out) const { return encode_chunk(text, {}, out); }
};

struct CountWords {
  static constexpr bool kTraced = false;
  uint64_t sum = 0;
  void add(char32_t c) { sum += c; }
  void end_word() { ++sum; }
  void special(int32_t, size_t) {}
  bool full() const { return false; }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s vocab.txt pairs.tsv\n", argv[0]);
    return 2;
  }
  const VocabItems vocab = read_vocab(argv[1]);
  const TextFile file(argv[2]);
  std::string arena(file.size(), '\0');
  file.read(0, arena.data(), arena.size());
  std::vector<int64_t> starts[2], ends[2];
  TsvScanner lines(arena.data(), arena.data() + arena.size(), 2);
  while (lines.next()) {
    if (lines.fields() != 2) continue;
    for (size_t i = 0; i < 2; ++i) {
      starts[i].push_back(lines.field(i).data() - arena.data());
      ends[i].push_back(starts[i].back() + static_cast<int64_t>(lines.field(i).size()));
    }
  }
  const size_t n = starts[0].size();
  const char* readable = arena.data() + arena.size();
  std::vector<std::string_view> views[2];
  std::vector<std::unique_ptr<std::string>> strings;  // each at a place of its own, as Python's are
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < 2; ++k) {
      const auto at = static_cast<size_t>(starts[k][i]);
      strings.push_back(std::make_unique<std::string>(arena.substr(at, static_cast<size_t>(ends[k][i]) - at)));
      views[k].push_back(*strings.back());
    }
  }
  const Texts ranges[2] = {{n, nullptr, arena.data(), readable, starts[0].data(), ends[0].data()},
                           {n, nullptr, arena.data(), readable, starts[1].data(), ends[1].data()}};
  const Texts scattered[2] = {{n, views[0].data(), nullptr, nullptr, nullptr, nullptr},
                              {n, views[1].data(), nullptr, nullptr, nullptr, nullptr}};
  const Misses tokenizer(vocab, SpecialIds{0, 101, 102, 100}, {}, true);

  measure("scan tabs and lines", n, [&] {
    TsvScanner scan(arena.data(), readable, 2);
    uint64_t sum = 0;
    while (scan.next()) sum += scan.fields();
    return sum;
  });
  std::vector<std::string_view> chunks;
  for (size_t k = 0; k < 2; ++k) {
    for (const auto text : views[k]) {
      for (size_t at = 0; at < text.size();) {
        const size_t stop = std::min(text.find(' ', at), text.size());
        if (stop > at) chunks.push_back(text.substr(at, stop - at));
        at = stop + 1;
      }
    }
  }
  std::printf("%zu pairs, %.1f bytes and %.1f chunks a pair\n", n,
              static_cast<double>(arena.size()) / static_cast<double>(n),
              static_cast<double>(chunks.size()) / static_cast<double>(n));
  std::vector<ChunkKey> keys;
  for (const auto c : chunks) {
    if (c.size() <= ChunkKey::kMaxSize) keys.push_back(ChunkKey::of(c));
  }
  const ChunkCache cache;
  ChunkCache::Bucket* const buckets = cache.buckets();
  for (const ChunkKey& k : keys) {
    const int32_t id = 7;
    ChunkCache::Bucket& bucket = buckets[ChunkCache::place(k)];
    if (bucket.find(k) == nullptr) bucket.insert(k, &id, 1);
  }
  measure("chunk cache: find each chunk", n, [&] {
    uint64_t sum = 0;
    for (const ChunkKey& k : keys) {
      const auto* hit = buckets[ChunkCache::place(k)].find(k);
      sum += hit != nullptr ? static_cast<uint64_t>(hit->count) : 0;
    }
    return sum;
  });
  IdBuffer out;
  measure("ASCII table and trie: all missed", n, [&] {
    out.resize_down(0);
    for (const auto c : chunks) tokenizer.chunk(c, out);
    return out.size();
  });
  const AsciiTable ascii(true);
  measure("normaliser: all characters", n, [&] {
    CountWords words;
    const Literals none;
    for (size_t k = 0; k < 2; ++k) {
      for (const auto text : views[k]) Normalizer(ascii, none, true, words).run(text);
    }
    return words.sum;
  });
  for (const bool apart : {false, true}) {
    measure(apart ? "encode, texts apart" : "encode, texts in one block", n, [&] {
      const Tokenizer::CacheLoan loan(tokenizer);
      out.resize_down(0);
      for (size_t i = 0; i < n; ++i) {
        for (size_t k = 0; k < 2; ++k) {
          const RowText t = (apart ? scattered : ranges)[k].row(i);
          tokenizer.encode(t.text, t.readable, {}, *loan, out);
        }
      }
      return out.size();
    });
  }
  std::vector<int64_t> offsets(n + 1), lens(n);
  std::vector<int32_t> firsts(n);
  for (const bool apart : {false, true}) {
    const Texts* texts = apart ? scattered : ranges;
    measure(apart ? "rows, ragged, texts apart" : "rows, ragged, texts in one block", n, [&] {
      const Job job{tokenizer, texts[0], &texts[1], 128, Truncation::kLongestFirst, 1, {"a", "b"}};
      return encode_ragged(job, offsets.data(), firsts.data()).size();
    });
  }
  const size_t bytes = n * 128 * sizeof(int64_t);
  const Job job{tokenizer, ranges[0], &ranges[1], 128, Truncation::kLongestFirst, 1, {"a", "b"}};
  const IdBuffer rows = encode_ragged(job, offsets.data(), firsts.data());
  const SequenceStore store{rows.data(), offsets.data(), firsts.data(), rows.size(), n};
  measure("ragged to padded, memory used again", n, [&] {
    Buffer *ids = take_buffer(bytes), *segments = take_buffer(bytes);
    gather_padded(select_sequences(store, nullptr, n), 128, 0, static_cast<int64_t*>(ids->data),
                  static_cast<int64_t*>(segments->data), lens.data());
    const auto sum = static_cast<uint64_t>(static_cast<int64_t*>(ids->data)[n / 2 * 128 + 1]);
    give_buffer(ids);
    give_buffer(segments);
    return sum;
  });
  for (const bool fresh : {true, false}) {
    measure(fresh ? "zeros, padded, fresh memory" : "zeros, padded, memory used again", n, [&] {
      uint64_t sum = 0;
      for (int k = 0; k < 2; ++k) {
        Buffer* buffer = take_buffer(bytes);
        if (fresh) (void)madvise(buffer->data, buffer->bytes, MADV_DONTNEED);
        std::memset(buffer->data, 0, bytes);
        sum += static_cast<uint64_t>(static_cast<char*>(buffer->data)[bytes / 2]);
        give_buffer(buffer);
      }
      return sum;
    });
  }
  return 0;
}
