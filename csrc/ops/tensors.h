// Checks of tensor arguments that the operators share.
#pragma once
#include "kernels.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/core/Tensor.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <optional>

namespace bertnli {

inline Type type_of(const at::Tensor& x, const char* op, const char* name) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Type::f32;
    case at::kBFloat16:
      return Type::bf16;
    case at::kDouble:
      return Type::f64;
    default:
      TORCH_CHECK(false, op, " on the CPU: ", name, " must be float32, bfloat16 or float64; found ", x.dtype());
  }
}

inline Dropout checked_dropout(double p, const std::optional<at::Tensor>& seed, const char* neighbour) {
  TORCH_CHECK(p >= 0 && p < 1, "dropout_p must be at least 0 and below 1; found ", p);
  if (p == 0) return {};
  TORCH_CHECK(seed.has_value(), "seed must be given where dropout_p is above 0");
  TORCH_CHECK(seed->dim() == 1 && seed->size(0) == 2 && seed->scalar_type() == at::kLong && seed->device().is_cpu(),
              "seed must be an int64 tensor of shape [2] on ", neighbour, "'s device; found ", seed->dtype(), " ",
              seed->sizes(), " on ", seed->device());
  const at::Tensor dense = seed->contiguous();
  const int64_t* words = dense.const_data_ptr<int64_t>();
  return {std::max<uint32_t>(1, uint32_t(p * 4294967296.0)),  // below 2^32, since p is below 1
          {uint32_t(words[0]), uint32_t(words[1])},
          1 / (1 - p)};
}

}  // namespace bertnli
