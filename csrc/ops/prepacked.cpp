#include "prepacked.h"

#include "checks.h"
#include "kernels/dispatch.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <utility>

namespace bertnli {

using at::Tensor;

namespace {

// weight [out, in], bias [out] or undefined
PrepackedLinear prepack(const LinearKernels& kernels, const Tensor& weight, const Tensor& bias) {
  PrepackedLinear p;
  const int64_t out = weight.size(0), in = weight.size(1), panel = kernels.panel, panels = (out + panel - 1) / panel;
  const int64_t panel_bytes = (in + kernels.per_step - 1) / kernels.per_step * panel * kernels.weight_bytes;
  p.panels = at::empty({panels * panel_bytes}, at::kByte);
  p.scale = at::zeros({panels * panel}, at::kFloat);
  p.sum = at::zeros({panels * panel}, at::kInt);
  const float* from = weight.const_data_ptr<float>();
  char* to = (char*)p.panels.data_ptr();
  float* scale = p.scale.data_ptr<float>();
  int32_t* sum = p.sum.data_ptr<int32_t>();
  share(panels, kPerMove * double(panel * in), [&](int64_t begin, int64_t end) {
    kernels.pack_weights(from + begin * panel * weight.stride(0), weight.stride(0), weight.stride(1),
                         std::min(out, end * panel) - begin * panel, in, to + begin * panel_bytes,
                         scale + begin * panel, sum + begin * panel);
  });
  if (bias.defined()) {
    p.bias = at::zeros({panels * panel}, at::kFloat);
    p.bias.slice(0, 0, out).copy_(bias);
  }
  p.linear = {to, scale, bias.defined() ? p.bias.const_data_ptr<float>() : nullptr, sum, in, out};
  return p;
}

// Hands out the parameters of an encoder in order, each of which must have the shape that is asked for.
class Parameters {
 public:
  explicit Parameters(const std::vector<Tensor>& tensors) : tensors_(tensors) {}
  bool left() const { return next_ < tensors_.size(); }

  // A size of -1 stands for any of at least 1.
  Tensor take(const std::string& name, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(left(), "the parameters end before ", name);
    const Tensor& t = tensors_[next_++];
    TORCH_CHECK_VALUE(t.device().is_cpu() && t.scalar_type() == at::kFloat && t.layout() == at::kStrided, name,
                      " must be dense float32 on the CPU; found ", t.dtype(), " on ", t.device());
    bool same = t.dim() == int64_t(shape.size());
    for (size_t i = 0; same && i < shape.size(); i++)
      same = shape[i] < 0 ? t.size(int64_t(i)) > 0 : t.size(int64_t(i)) == shape[i];
    TORCH_CHECK_VALUE(same, name, " must have shape ", shape, ", where -1 is any size; found ", t.sizes());
    return t.detach().contiguous();  // detached: `parameter.data = ...` must not give it another shape
  }
  NormWeights norm(const std::string& name, int64_t width) {
    const Tensor weight = take(name + ".weight", width), bias = take(name + ".bias", width);
    return {weight.clone(), bias.clone()};
  }

 private:
  const std::vector<Tensor>& tensors_;
  size_t next_ = 0;
};

Precision precision_of(const std::string& name) {
  if (name == "fp32") return Precision::fp32;
  if (name == "bf16") return Precision::bf16;
  TORCH_CHECK_VALUE(name == "int8", "precision must be fp32, bf16 or int8; found '", name, "'");
  return Precision::int8;
}

}  // namespace

PrepackedEncoder::PrepackedEncoder(const std::vector<Tensor>& tensors, int64_t heads_, double eps_,
                                   const std::string& activation_, const std::string& precision)
    : heads(heads_),
      eps(eps_),
      activation(activation_named(activation_)),
      norm_kernels(bertnli::kernels().norm[Type::f32][Type::f32]),
      embedding_kernels(bertnli::kernels().embedding[Type::f32][Type::f32]) {
  const at::NoGradGuard no_gradients;
  const Precision p = precision_of(precision);
  kernels = bertnli::kernels().linear[p];
  absorbed_kernels = bertnli::kernels().linear[p == Precision::int8 ? Precision::bf16 : p];
  attention_kernels = bertnli::kernels().attention[kernels.between];

  Parameters all(tensors);
  token = all.take("token_embedding", {-1, -1});
  width = token.size(1);
  TORCH_CHECK_VALUE(heads > 0 && width % heads == 0, "num_heads must divide the width ", width, "; found ", heads);
  segment = all.take("segment_embedding", {-1, width});
  position = all.take("pos_embedding", {1, -1, width}).flatten(0, 1);
  TORCH_CHECK_VALUE(tensors.size() % 16 == 3 || tensors.size() % 16 == 5, "an encoder has 3 or 5 parameters and 16 a ",
                    "layer; found ", tensors.size());
  if (tensors.size() % 16 == 5) embedding_norm = all.norm("embedding_norm", width);
  while (all.left()) {
    const std::string block = "blks." + std::to_string(layers.size()), attention = block + ".attention.";
    const auto square = [&](const char* name) {
      const Tensor weight = all.take(attention + name + ".weight", {width, width});
      return std::pair(weight, all.take(attention + name + ".bias", width));
    };
    const auto [wq, bq] = square("W_q");
    const auto [wk, bk] = square("W_k");
    const auto [wv, bv] = square("W_v");
    const auto [wo, bo] = square("W_o");
    PrepackedLayer layer;
    layer.norm1 = all.norm(block + ".addnorm1.ln", width);
    const Tensor w1 = all.take(block + ".ffn.dense1.weight", {-1, width});
    const int64_t inner = w1.size(0);
    const Tensor b1 = all.take(block + ".ffn.dense1.bias", inner);
    const Tensor w2 = all.take(block + ".ffn.dense2.weight", {width, inner});
    layer.dense2_bias = all.take(block + ".ffn.dense2.bias", width).clone();
    layer.norm2 = all.norm(block + ".addnorm2.ln", width);
    layer.qkv = prepack(kernels, at::cat({wq, wk, wv}), at::cat({bq, bk, bv}));
    layer.out = prepack(kernels, wo, {});
    layer.out_bias = bo.clone();
    layer.dense1 = prepack(kernels, w1, b1);
    layer.dense2 = prepack(kernels, w2, {});
    widest = std::max(widest, inner);
    layers.push_back(std::move(layer));
    if (all.left()) continue;
    absorbed.query = prepack(kernels, wq, bq);
    const int64_t d = width / heads;
    for (int64_t h = 0; h < heads; h++) {
      absorbed.keys.push_back(prepack(absorbed_kernels, wk.narrow(0, h * d, d).t(), {}));
      absorbed.values.push_back(prepack(absorbed_kernels, wv.narrow(0, h * d, d), bv.narrow(0, h * d, d)));
    }
  }
}

ParameterState::ParameterState(const std::vector<Tensor>& tensors) : isa_(cpu_isa()) {
  for (const Tensor& t : tensors) {
    if (t.is_inference()) tracked_ = false;
    if (!tracked_) return;
    Entry e{t, t.const_data_ptr(), t._version(), {}, {}, {}};
    for (size_t k = 0; k < kSamples; k++) {  // at 1/6, 3/6 and 5/6 of every dimension
      int64_t offset = 0;
      for (int64_t i = 0; i < t.dim(); i++) offset += t.size(i) * (2 * k + 1) / (2 * kSamples) * t.stride(i);
      e.places[k] = static_cast<const uint32_t*>(e.data) + offset;
      e.values[k] = *e.places[k];
    }
    e.sizes_and_strides = t.sizes().vec();
    e.sizes_and_strides.insert(e.sizes_and_strides.end(), t.strides().begin(), t.strides().end());
    entries_.push_back(std::move(e));
  }
}

// It runs before each inference, when the weights have driven all of this out of the caches: the tensors and values are
// fetched first, beside one another.
bool ParameterState::is_current() const {
  if (!tracked_ || cpu_isa() != isa_) return false;
  for (const Entry& e : entries_) {
    __builtin_prefetch(e.tensor.unsafeGetTensorImpl());
    __builtin_prefetch(reinterpret_cast<const char*>(e.tensor.unsafeGetTensorImpl()) + 64);
    for (const uint32_t* place : e.places) __builtin_prefetch(place);
  }
  for (const Entry& e : entries_) {
    const Tensor& t = e.tensor;
    if (t.const_data_ptr() != e.data || t._version() != e.version) return false;
    const at::IntArrayRef known(e.sizes_and_strides), sizes = t.sizes(), strides = t.strides();
    if (known.slice(0, known.size() / 2) != sizes || known.slice(known.size() / 2) != strides) return false;
    for (size_t k = 0; k < kSamples; k++)
      if (*e.places[k] != e.values[k]) return false;
  }
  return true;
}

}  // namespace bertnli
