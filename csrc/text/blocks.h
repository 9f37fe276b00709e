// Text 64 bytes at a time: bit i of a mask is a property of byte i. With SSE2 where available, else plain loops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace bertnli {

#if defined(__SSE2__)

class Lane {  // 16 bytes
 public:
  explicit Lane(const char* p) : v_(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) {}
  uint64_t equal(char c) const { return bits(_mm_cmpeq_epi8(v_, _mm_set1_epi8(c))); }
  uint64_t bracket() const { return bits(_mm_cmpeq_epi8(_mm_and_si128(v_, _mm_set1_epi8(~1)), _mm_set1_epi8('('))); }
  uint64_t high() const { return bits(v_); }  // beyond ASCII
  // Bytes under c, and those beyond ASCII.
  uint64_t under_or_high(char c) const { return bits(_mm_cmplt_epi8(v_, _mm_set1_epi8(c))); }
  Lane operator|(Lane o) const { return Lane(_mm_or_si128(v_, o.v_)); }

 private:
  explicit Lane(__m128i v) : v_(v) {}
  static uint64_t bits(__m128i x) { return static_cast<uint32_t>(_mm_movemask_epi8(x)); }
  __m128i v_;
};

#else

class Lane {
 public:
  explicit Lane(const char* p) { std::memcpy(v_, p, 16); }
  uint64_t equal(char c) const {
    return bits([c](signed char x) { return x == c; });
  }
  uint64_t bracket() const {
    return bits([](signed char x) { return x == '(' || x == ')'; });
  }
  uint64_t high() const {
    return bits([](signed char x) { return x < 0; });
  }
  uint64_t under_or_high(char c) const {
    return bits([c](signed char x) { return x < c; });
  }
  Lane operator|(const Lane& o) const {
    Lane both = *this;
    for (int i = 0; i < 16; ++i) both.v_[i] |= o.v_[i];
    return both;
  }

 private:
  template <class Test>
  uint64_t bits(const Test& test) const {
    uint64_t m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<uint64_t>(test(v_[i])) << i;
    return m;
  }
  signed char v_[16];
};

#endif

// The mask of the 64 bytes at p. Only `readable` of them may be read, at least one, and the 16 bytes that end with them
// may be read in any case; the bits of other bytes are undefined.
template <class Test>
inline uint64_t block_mask(const char* p, size_t readable, const Test& test) {
  if (readable >= 64) {
    return test(Lane(p)) | test(Lane(p + 16)) << 16 | test(Lane(p + 32)) << 32 | test(Lane(p + 48)) << 48;
  }
  if (readable < 16) return test(Lane(p + readable - 16)) >> (16 - readable);
  const size_t last = readable - 16, a = last < 16 ? last : 16, b = last < 32 ? last : 32;
  return test(Lane(p)) | test(Lane(p + a)) << a | test(Lane(p + b)) << b | test(Lane(p + last)) << last;
}

// Whether any of the 64 bytes at p is beyond ASCII.
inline bool any_high(const char* p) { return ((Lane(p) | Lane(p + 16)) | (Lane(p + 32) | Lane(p + 48))).high() != 0; }

}  // namespace bertnli
