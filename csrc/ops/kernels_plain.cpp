// The kernels for any CPU: four lanes of float (SSE2, NEON), and the only double variant.
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BERTNLI_LANES 4
namespace bertnli::plain {
#include "vectors.inc"
//
#include "adam_kernel.inc"
#include "attention_kernel.inc"
#include "rows_kernel.inc"
//
#include "gemm_kernel.inc"
}  // namespace bertnli::plain

namespace bertnli {
AttentionKernel attention_plain(Type type) {
  if (type == Type::f64) return plain::attention_kernel<double, double>();
  return type == Type::bf16 ? plain::attention_kernel<plain::bf16, float>() : plain::attention_kernel<float, float>();
}
RowKernels rows_plain(Type x, Type y) {
  if (x == Type::f64) return plain::row_kernels<double, double, double>();
  if (x == Type::bf16) return plain::row_kernels<plain::bf16, plain::bf16, float>();
  return y == Type::bf16 ? plain::row_kernels<float, plain::bf16, float>() : plain::row_kernels<float, float, float>();
}
LinearKernels linear_plain(Precision precision) { return plain::linear_kernels(precision); }
AdamKernels adam_plain(Type gradient, Type parameter) {
  if (parameter == Type::f64) return plain::adam_kernels<double, double>();
  return gradient == Type::bf16 ? plain::adam_kernels<plain::bf16, float>() : plain::adam_kernels<float, float>();
}
}  // namespace bertnli
