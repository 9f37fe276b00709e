#include "gather.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace bertnli {
namespace {

#if defined(__SSE2__) && defined(__GNUC__)

bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  return has;
}

// write_padded for a width that is a multiple of 8, without branches that depend on a sequence's length. With `stream`,
// whole cache lines go past the caches: a large result would be gone from them before anyone reads it.
template <bool stream>
__attribute__((target("avx512f,avx512vl"))) void write_padded_avx512(const Sequence& s, size_t width, int64_t pad,
                                                                     int64_t* ids, int64_t* segments) {
  const __m512i pads = _mm512_set1_epi64(pad), eight = _mm512_set1_epi64(8);
  const __m512i length = _mm512_set1_epi64(static_cast<int64_t>(s.length));
  const __m512i first_len = _mm512_set1_epi64(static_cast<int64_t>(s.first_len));
  const auto store = [](int64_t* to, __m512i line) __attribute__((target("avx512f,avx512vl"))) {
    if constexpr (stream) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
    } else {
      _mm512_storeu_si512(to, line);
    }
  };
  __m512i position = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  for (size_t k = 0; k < width; k += 8, position = _mm512_add_epi64(position, eight)) {
    const __mmask8 tokens = _mm512_cmplt_epi64_mask(position, length);
    const __mmask8 seconds = _mm512_mask_cmpge_epi64_mask(tokens, position, first_len);
    store(ids + k, _mm512_mask_cvtepi32_epi64(pads, tokens, _mm256_maskz_loadu_epi32(tokens, s.ids + k)));
    store(segments + k, _mm512_maskz_set1_epi64(seconds, 1));
  }
}

void finish_streams() { _mm_sfence(); }

#else

bool has_avx512() { return false; }
template <bool>
void write_padded_avx512(const Sequence&, size_t, int64_t, int64_t*, int64_t*) {}
void finish_streams() {}

#endif

// ids and segments [width]
void write_padded(const Sequence& s, size_t width, int64_t pad, int64_t* ids, int64_t* segments) {
  std::copy_n(s.ids, s.length, ids);
  std::fill(ids + s.length, ids + width, pad);
  std::fill(segments, segments + s.first_len, 0);
  std::fill(segments + s.first_len, segments + s.length, 1);
  std::fill(segments + s.length, segments + width, 0);
}

template <class T>
T load_once(const T* p) {
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}

}  // namespace

std::vector<Sequence> select_sequences(const SequenceStore& store, const int64_t* index, size_t count) {
  std::vector<Sequence> sequences(count);
  for (size_t b = 0; b < count; ++b) {
    const auto i = index != nullptr ? static_cast<size_t>(load_once(index + b)) : b;  // (a negative one becomes large)
    if (i >= store.count) {
      throw std::out_of_range("sequence " + std::to_string(static_cast<int64_t>(i)) + " is out of range for " +
                              std::to_string(store.count) + " sequences");
    }
    const auto begin = static_cast<size_t>(load_once(store.offsets + i));
    const auto end = static_cast<size_t>(load_once(store.offsets + i + 1));
    const auto first_len = static_cast<size_t>(load_once(store.first_lens + i));
    if (begin > end || end > store.total || first_len > end - begin) {
      throw std::invalid_argument("sequence " + std::to_string(i) +
                                  " of the encoded texts is corrupt: its offsets do not fit its ids");
    }
    sequences[b] = {store.ids + begin, end - begin, first_len};
  }
  return sequences;
}

void gather_packed(const std::vector<Sequence>& sequences, int32_t* ids, int32_t* segments, int32_t* positions,
                   int32_t* cu_seqlens) {
  size_t at = 0;
  *cu_seqlens++ = 0;
  for (const Sequence& s : sequences) {
    if (s.length != 0) std::memcpy(ids + at, s.ids, s.length * sizeof(int32_t));
    for (size_t k = 0; k < s.length; ++k) {
      segments[at + k] = k >= s.first_len;
      positions[at + k] = static_cast<int32_t>(k);
    }
    at += s.length;
    *cu_seqlens++ = static_cast<int32_t>(at);
  }
}

void gather_padded(const std::vector<Sequence>& sequences, size_t max_len, int64_t pad, int64_t* ids, int64_t* segments,
                   int64_t* lens) {
  constexpr size_t kMostCached = size_t{1} << 22;  // bytes of a result that are worth a place in the caches
  const size_t n = sequences.size();
  const bool eights = max_len % 8 == 0 && has_avx512();
  const auto places = reinterpret_cast<uintptr_t>(ids) | reinterpret_cast<uintptr_t>(segments);
  const bool streams = eights && places % 64 == 0 && n * max_len > kMostCached / (2 * sizeof(int64_t));
  const auto write = streams ? write_padded_avx512<true> : eights ? write_padded_avx512<false> : write_padded;
  for (size_t i = 0; i < n; ++i) {
    write(sequences[i], max_len, pad, ids + i * max_len, segments + i * max_len);
    lens[i] = static_cast<int64_t>(sequences[i].length);
  }
  if (streams) finish_streams();
}

}  // namespace bertnli
