// Varlen attention with AVX2 and FMA: 8 lanes of float. The headers come before the pragma, so that nothing in them
// that another file may share is compiled for this instruction set.
#include "attention.h"
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define BERTNLI_LANES 8
namespace bertnli::avx2 {
#include "attention_kernel.inc"
}

namespace bertnli {
AttentionKernel attention_avx2(Type type) {
  return type == Type::bf16 ? avx2::kernel<avx2::bf16, float>() : avx2::kernel<float, float>();
}
}  // namespace bertnli
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
