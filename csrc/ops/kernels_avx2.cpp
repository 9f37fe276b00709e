// The kernels with AVX2 and FMA: 8 lanes of float. The headers come before the pragma, so that nothing in them
// that another file may share is compiled for this instruction set.
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define BERTNLI_LANES 8
namespace bertnli::avx2 {
#include "vectors.inc"
//
#include "adam_kernel.inc"
#include "attention_kernel.inc"
#include "rows_kernel.inc"
//
#include "gemm_kernel.inc"
}  // namespace bertnli::avx2

namespace bertnli {
AttentionKernel attention_avx2(Type type) {
  return type == Type::bf16 ? avx2::attention_kernel<avx2::bf16, float>() : avx2::attention_kernel<float, float>();
}
RowKernels rows_avx2(Type x, Type y) {
  if (x == Type::bf16) return avx2::row_kernels<avx2::bf16, avx2::bf16, float>();
  return y == Type::bf16 ? avx2::row_kernels<float, avx2::bf16, float>() : avx2::row_kernels<float, float, float>();
}
LinearKernels linear_avx2(Precision precision) { return avx2::linear_kernels(precision); }
AdamKernels adam_avx2(Type gradient, Type) {
  return gradient == Type::bf16 ? avx2::adam_kernels<avx2::bf16, float>() : avx2::adam_kernels<float, float>();
}
}  // namespace bertnli
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
