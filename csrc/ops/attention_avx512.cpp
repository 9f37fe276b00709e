// Varlen attention with AVX-512: 16 lanes of float. The headers come before the pragma, so that nothing in them that
// another file may share is compiled for this instruction set.
#include "attention.h"
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define BERTNLI_LANES 16
namespace bertnli::avx512 {
#include "attention_kernel.inc"
}

namespace bertnli {
AttentionKernel attention_avx512(Type type) {
  return type == Type::bf16 ? avx512::kernel<avx512::bf16, float>() : avx512::kernel<float, float>();
}
}  // namespace bertnli
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
