// Varlen attention for any CPU: four lanes of float (SSE2, NEON), and the only double variant.
#include "attention.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BERTNLI_LANES 4
namespace bertnli::plain {
#include "attention_kernel.inc"
}

namespace bertnli {
AttentionKernel attention_plain(Type type) {
  if (type == Type::f64) return plain::kernel<double, double>();
  return type == Type::bf16 ? plain::kernel<plain::bf16, float>() : plain::kernel<float, float>();
}
}  // namespace bertnli
