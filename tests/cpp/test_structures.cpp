// Buffers, blocks of bytes, the chunk cache, vocabularies and threads, each against a plain version of the same.
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "blocks.h"
#include "buffers.h"
#include "check.h"
#include "parallel.h"
#include "trie.h"
#include "word_cache.h"

using namespace bertnli;

namespace {

void id_buffers_grow_and_move() {
  IdBuffer ids;
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
  IdBuffer moved = std::move(ids);
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

void chunk_cache_equals_a_map() {
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

void chunk_keys_know_letters_and_digits() {
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

// Tokens whose last bytes keep nodes of the trie apart: each node's children clash with many earlier ones.
void tries_of_chosen_words_are_small() {
  VocabItems items;
  for (int i = 0; i < 60'000; ++i) {
    std::string s{static_cast<char>(0xF0), static_cast<char>(0x90 + i / 3 / 4096),
                  static_cast<char>(0x80 + i / 3 / 64 % 64), static_cast<char>(0x80 + i / 3 % 64)};
    items.emplace_back(s + "\x01\x40\x7f"[i % 3], i);
  }
  const Trie trie(items);
  for (const auto& [token, id] : items) CHECK(trie.id(trie.find(token)) == id);
}

void buffers_are_reused() {
  constexpr size_t kMegabyte = size_t{1} << 20;
  for (const size_t bytes : {size_t{1} << 18, 5 * kMegabyte}) {
    Buffer *a = take_buffer(bytes), *b = take_buffer(bytes);
    CHECK(a->bytes >= bytes && a->data != b->data);
    for (Buffer* buffer : {a, b}) std::memset(buffer->data, 1, buffer->bytes);
    [[maybe_unused]] void* const of[] = {a->data, b->data};
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
void pieces_cover_all_rows_in_order() {
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

void error_of_the_lowest_part_is_thrown() {
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

void test_structures() {
  buffers_are_reused();
  id_buffers_grow_and_move();
  blocks_equal_loops();
  chunk_cache_equals_a_map();
  chunk_keys_know_letters_and_digits();
  vocabularies_equal_maps();
  tries_of_chosen_words_are_small();
  pieces_cover_all_rows_in_order();
  error_of_the_lowest_part_is_thrown();
}
