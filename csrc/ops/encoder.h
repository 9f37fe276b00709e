// The encoder in inference: one call from token ids to hidden states, or to the outputs of a head.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "prepacked.h"

namespace bertnli {

class FusedEncoder {
 public:
  // The arguments of PrepackedEncoder.
  FusedEncoder(const std::vector<at::Tensor>& tensors, int64_t heads, double eps, const std::string& activation,
               const std::string& precision)
      : encoder_(tensors, heads, eps, activation, precision), state_(tensors) {}

  // Whether the parameters are still those that were prepacked; see ParameterState.
  bool is_current() const { return state_.is_current(); }

  // Token ids, segments and positions int32 [T] of sequences that begin at cu_seqlens, int32 [B+1]. The tokens that are
  // read: the first of each sequence if `first`, else token_index, ascending int64 [R], else all. Returns their
  // vectors, float32 [B, H], [R, H] or [T, H].
  at::Tensor features(const at::Tensor& ids, const at::Tensor& segments, const at::Tensor& positions,
                      const at::Tensor& cu_seqlens, const std::optional<at::Tensor>& token_index, bool first) const;

  // A head's outputs of the same vectors, float32 [.., outputs]. `head`: weight and bias of the output layer, [outputs,
  // H] and [outputs], after those of a hidden layer with tanh if there is one. They are used as they are at the call.
  at::Tensor outputs(const at::Tensor& ids, const at::Tensor& segments, const at::Tensor& positions,
                     const at::Tensor& cu_seqlens, const std::optional<at::Tensor>& token_index, bool first,
                     const std::vector<at::Tensor>& head) const;

 private:
  const PrepackedEncoder encoder_;
  const ParameterState state_;
};

}  // namespace bertnli
