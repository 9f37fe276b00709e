// The weights of an encoder for inference, prepacked once into the order in which the kernels read them.
#pragma once
#include "kernels/kernels.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/core/Tensor.h>
#pragma GCC diagnostic pop

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace bertnli {

struct PrepackedLinear {
  Weights linear;
  at::Tensor panels, scale, bias, sum;  // own what `linear` points to
};

struct NormWeights {
  at::Tensor weight, bias;  // [H]
};

struct PrepackedLayer {
  PrepackedLinear qkv, out, dense1, dense2;
  at::Tensor out_bias, dense2_bias;  // [H], added with the residual
  NormWeights norm1, norm2;
};

// The last layer's attention where few tokens are read: each head's query is absorbed into its key weights
// (bertnli/encoder/layers.py, MultiHeadAttention.absorbed).
struct AbsorbedAttention {
  PrepackedLinear query;
  std::vector<PrepackedLinear> keys, values;  // one a head: d to H, and H to d
};

struct PrepackedEncoder {
  // `tensors`, float32 on the CPU, in the order of bertnli/inference/fusing.py: token, segment and position tables,
  // the embeddings' norm where they have one, and sixteen for each layer. Raises ValueError for a wrong shape.
  PrepackedEncoder(const std::vector<at::Tensor>& tensors, int64_t heads, double eps, const std::string& activation,
                   const std::string& precision);

  int64_t heads, width = 0, widest = 1;  // widest: of the feed-forward layers
  double eps;                            // of every LayerNorm
  Activation activation;
  LinearKernels kernels, absorbed_kernels;  // absorbed_kernels: bf16 where `kernels` are int8
  NormKernels norm_kernels;
  EmbeddingKernels embedding_kernels;
  AttentionKernels attention_kernels;
  at::Tensor token, segment, position;  // [rows, H], the parameters' own memory
  NormWeights embedding_norm;           // undefined where the encoder has none
  std::vector<PrepackedLayer> layers;
  AbsorbedAttention absorbed;
};

// Tells whether tensors are still what they were: by their memory, their versions and a few of their values, since
// writes through `.data` leave no version. Tensors of inference mode have no versions, so they are never current.
class ParameterState {
 public:
  explicit ParameterState(const std::vector<at::Tensor>& tensors);
  bool is_current() const;

 private:
  static constexpr size_t kSamples = 3;
  struct Entry {
    at::Tensor tensor;
    const void* data;
    int64_t version;
    std::array<const uint32_t*, kSamples> places;
    std::array<uint32_t, kSamples> values;
    std::vector<int64_t> sizes_and_strides;
  };
  bool tracked_ = true;
  std::string isa_;  // weights are prepacked for the kernels of one instruction set
  std::vector<Entry> entries_;
};

}  // namespace bertnli
