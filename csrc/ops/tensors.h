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
  Dropout dropout;
  dropout.threshold = std::max<uint32_t>(1, uint32_t(p * 4294967296.0));  // below 2^32, since p is below 1
  for (uint32_t round = 0; round < 7; round++) {
    dropout.keys[round][0] = uint32_t(words[0]) + round * 0x9E3779B9;
    dropout.keys[round][1] = uint32_t(words[1]) + round * 0xBB67AE85;
  }
  dropout.keep_scale = 1 / (1 - p);
  return dropout;
}

// A contiguous cu_seqlens whose last entry is `tokens`.
inline at::Tensor checked_cu_seqlens(const at::Tensor& cu, const char* name, int64_t tokens, int64_t longest,
                                     const char* longest_name) {
  TORCH_CHECK(cu.dim() == 1 && cu.size(0) >= 1, name, " must have shape [batch + 1]; found ", cu.sizes());
  TORCH_CHECK(cu.scalar_type() == at::kInt, name, " must be int32; found ", cu.dtype());
  TORCH_CHECK(cu.device().is_cpu(), name, " must lie on the other tensors' device, the CPU; found ", cu.device());
  const at::Tensor dense = cu.contiguous();
  const int32_t* at = dense.const_data_ptr<int32_t>();
  const int64_t batch = dense.size(0) - 1;
  TORCH_CHECK(at[0] == 0, name, " must begin with 0; found ", at[0]);
  for (int64_t b = 0; b < batch; b++) {
    const int64_t length = int64_t(at[b + 1]) - at[b];
    TORCH_CHECK(length >= 0, name, " must not decrease; found ", at[b], " then ", at[b + 1], " at index ", b);
    TORCH_CHECK(length <= longest, longest_name, " is ", longest, ", but sequence ", b, " of ", name, " has ", length,
                " tokens");
  }
  TORCH_CHECK(at[batch] == tokens, name, " must end with the number of tokens, ", tokens, "; found ", at[batch]);
  return dense;
}

// What `embed` sums, with the tensors that it points to; tables and sizes are the caller's to fill in.
struct EmbedCall {
  Embed args{};
  at::Tensor ids, segments, positions, token, segment, position;
};
// Raises IndexError for an id outside its table.
EmbedCall checked_embed(const at::Tensor& ids, const at::Tensor& segments, const at::Tensor& positions,
                        int64_t token_rows, int64_t segment_rows, int64_t position_rows);

}  // namespace bertnli
