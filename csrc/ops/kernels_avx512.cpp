// The kernels with AVX-512: 16 lanes of float. The headers come before the pragma, so that nothing in them that
// another file may share is compiled for this instruction set.
#include "kernels.h"
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
#include "vectors.inc"
//
#include "adam_kernel.inc"
#include "attention_kernel.inc"
#include "rows_kernel.inc"
//
#include "gemm_kernel.inc"
}  // namespace bertnli::avx512

namespace bertnli {
AttentionKernel attention_avx512(Type type) {
  return type == Type::bf16 ? avx512::attention_kernel<avx512::bf16, float>()
                            : avx512::attention_kernel<float, float>();
}
RowKernels rows_avx512(Type x, Type y) {
  if (x == Type::bf16) return avx512::row_kernels<avx512::bf16, avx512::bf16, float>();
  return y == Type::bf16 ? avx512::row_kernels<float, avx512::bf16, float>()
                         : avx512::row_kernels<float, float, float>();
}
LinearKernels linear_avx512(Precision precision) { return avx512::linear_kernels(precision); }
AdamKernels adam_avx512(Type gradient, Type) {
  return gradient == Type::bf16 ? avx512::adam_kernels<avx512::bf16, float>() : avx512::adam_kernels<float, float>();
}
}  // namespace bertnli
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
