// A cache from raw chunks (the bytes between spaces) to their ids: a repeated chunk costs one 16-byte comparison.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "buffers.h"

namespace bertnli {

static_assert(std::endian::native == std::endian::little, "chunk keys are loaded and shifted as little-endian words");

// 16 bytes of text, the first byte lowest.
struct Bytes16 {
  uint64_t lo, hi;
  static Bytes16 load(const char* p) {
    Bytes16 b;
    std::memcpy(&b, p, sizeof b);
    return b;
  }
  // The bytes after the first `bytes` (0 to 15), then zeros.
  Bytes16 drop(unsigned bytes) const {
    const unsigned bits = 8 * bytes;
    if (bits == 0) return *this;
    if (bits >= 64) return {hi >> (bits - 64), 0};
    return {lo >> bits | hi << (64 - bits), hi >> bits};
  }
};

// A chunk of 1 to 15 bytes: the bytes, then zeros, and the length in the last byte.
struct ChunkKey {
  uint64_t lo = 0, hi = 0;
  bool operator==(const ChunkKey&) const = default;
  size_t size() const { return hi >> 56; }
  // Whether all bytes are ASCII letters and digits.
  bool is_alphanumeric() const {
    const size_t n = size();
    return ((lo | hi) & kHigh) == 0 && alphanumeric(lo) == (kMasks.lo[n] & kHigh) &&
           alphanumeric(hi << 8 >> 8) == (kMasks.hi[n] & kHigh);
  }
  // Writes letters in lower case and digits unchanged, then zeros.
  void write_lower(char* to) const {
    const size_t n = size();
    const uint64_t words[2] = {(lo | 0x20 * kOnes) & kMasks.lo[n], (hi | 0x20 * kOnes) & kMasks.hi[n]};
    std::memcpy(to, words, sizeof words);
  }

  static constexpr size_t kMaxSize = 15;
  // The key of the first `size` bytes.
  static ChunkKey of(Bytes16 bytes, size_t size) {
    return {bytes.lo & kMasks.lo[size], (bytes.hi & kMasks.hi[size]) | kMasks.size[size]};
  }
  // The key of a text of at most kMaxSize bytes. Reads no byte after the text.
  static ChunkKey of(std::string_view text) {
    char bytes[sizeof(Bytes16)] = {};
    std::copy(text.begin(), text.end(), bytes);
    return of(Bytes16::load(bytes), text.size());
  }

 private:
  static constexpr uint64_t kHigh = 0x8080808080808080u, kOnes = kHigh / 0x80;
  // Sets the high bit of each of eight bytes (all below 0x80) that is a letter or digit.
  static uint64_t alphanumeric(uint64_t x) {
    const uint64_t low = x | 0x20 * kOnes;
    return ((least(low, 'a') & ~least(low, 'z' + 1)) | (least(x, '0') & ~least(x, '9' + 1))) & kHigh;
  }
  static uint64_t least(uint64_t x, unsigned char c) { return x + (0x80u - c) * kOnes; }  // high bits: at least c
  struct Masks {
    uint64_t lo[16], hi[16], size[16];
    constexpr Masks() : lo(), hi(), size() {
      for (int n = 0; n < 16; ++n) {
        size[n] = static_cast<uint64_t>(n) << 56;
        lo[n] = n >= 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * n)) - 1;
        hi[n] = n <= 8 ? 0 : (uint64_t{1} << (8 * (n - 8))) - 1;
      }
    }
  };
  static const Masks kMasks;
};
inline constexpr ChunkKey::Masks ChunkKey::kMasks{};

// A fixed number of buckets with two slots, one cache line each. A full bucket drops one slot, so the cache does not
// grow. For one thread at a time.
class ChunkCache {
 public:
  static constexpr size_t kMaxIds = 3;
  struct Slot {
    ChunkKey key;
    int32_t ids[kMaxIds] = {};
    int32_t count = 0;
  };
  struct alignas(64) Bucket {
    Slot slots[2];
    // The slot of a chunk, or null. Without a branch that the processor would mispredict: the second slot is taken
    // whenever the first eight bytes of the first slot differ.
    const Slot* find(ChunkKey k) const {
      const Slot* slot = slots + (slots[0].key.lo != k.lo);
      return slot->key == k ? slot : nullptr;
    }
    // n is at most kMaxIds. The older chunk is probably the more frequent one and stays, unless find() would look for
    // the new one in its slot. (The length, in hi, is never 0 in a full slot.)
    void insert(ChunkKey k, const int32_t* ids, size_t n) {
      Slot& slot = slots[(slots[0].key.hi != 0) & (slots[0].key.lo != k.lo)];
      slot.key = k;
      for (size_t i = 0; i < kMaxIds; ++i) slot.ids[i] = i < n ? ids[i] : 0;  // (faster than a call of memcpy)
      slot.count = static_cast<int32_t>(n);
    }
  };

  ChunkCache() : memory_(take_buffer(kHugePage)) { std::memset(memory_->data, 0, kBuckets * sizeof(Bucket)); }
  ~ChunkCache() { give_buffer(memory_); }
  ChunkCache(const ChunkCache&) = delete;
  ChunkCache& operator=(const ChunkCache&) = delete;

  Bucket* buckets() const { return static_cast<Bucket*>(memory_->data); }
  // The bucket of a chunk.
  static size_t place(ChunkKey k) { return ((k.lo ^ std::rotl(k.hi, 27)) * 0x9E3779B97F4A7C15u) >> (64 - kBits); }

  static constexpr int kBits = 14;
  static constexpr size_t kBuckets = size_t{1} << kBits;
  static_assert(kBuckets * sizeof(Bucket) <= kHugePage);

 private:
  Buffer* const memory_;  // in a huge page, since accesses are random
};

}  // namespace bertnli
