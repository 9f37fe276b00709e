// The kernels that gain from AVX-512's dot products of bf16 and int8, besides its 16 lanes of float. The headers come
// before the pragma, so that nothing in them that another file may share is compiled for this instruction set.
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")
#endif

#define BERTNLI_LANES 16
#define BERTNLI_DOT 1
namespace bertnli::avx512_bf16 {
#include "vectors.inc"
//
#include "attention_kernel.inc"
#include "rows_kernel.inc"
//
#include "gemm_kernel.inc"
}  // namespace bertnli::avx512_bf16

namespace bertnli {
AttentionKernel attention_avx512_bf16(Type type) {
  return type == Type::bf16 ? avx512_bf16::attention_kernel<avx512_bf16::bf16, float>()
                            : avx512_bf16::attention_kernel<float, float>();
}
LinearKernels linear_avx512_bf16(Precision precision) { return avx512_bf16::linear_kernels(precision); }
}  // namespace bertnli
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
