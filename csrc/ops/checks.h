// Checks of tensor arguments, and sums over rows, that the operators share.
#pragma once
#include "kernels/kernels.h"
#include "memory.h"
#include "parallel.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <optional>
#include <vector>

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

inline at::ScalarType computed(Type type) { return type == Type::f64 ? at::kDouble : at::kFloat; }

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

// A copy of cu_seqlens [batch + 1], whose last entry is `tokens`: no other thread can change what was checked.
inline std::vector<int32_t> checked_cu_seqlens(const at::Tensor& cu, const char* name, int64_t tokens, int64_t longest,
                                               const char* longest_name) {
  TORCH_CHECK(cu.dim() == 1 && cu.size(0) >= 1, name, " must have shape [batch + 1]; found ", cu.sizes());
  TORCH_CHECK(cu.scalar_type() == at::kInt, name, " must be int32; found ", cu.dtype());
  TORCH_CHECK(cu.device().is_cpu(), name, " must lie on the other tensors' device, the CPU; found ", cu.device());
  const at::Tensor dense = cu.contiguous();
  const int32_t* begin = dense.const_data_ptr<int32_t>();
  const std::vector<int32_t> at(begin, begin + dense.size(0));
  const size_t batch = at.size() - 1;
  TORCH_CHECK(at[0] == 0, name, " must begin with 0; found ", at[0]);
  for (size_t b = 0; b < batch; b++) {
    const int64_t length = int64_t(at[b + 1]) - at[b];
    TORCH_CHECK(length >= 0, name, " must not decrease; found ", at[b], " then ", at[b + 1], " at index ", b);
    TORCH_CHECK(length <= longest, longest_name, " is ", longest, ", but sequence ", b, " of ", name, " has ", length,
                " tokens");
  }
  TORCH_CHECK(at[batch] == tokens, name, " must end with the number of tokens, ", tokens, "; found ", at[batch]);
  return at;
}

// What the forward pass saved for the backward pass, or a gradient: a tensor that the backward pass was given, checked
// to be what the operator itself makes, and contiguous.
inline at::Tensor checked_saved(const at::Tensor& x, const char* name, at::IntArrayRef sizes, at::ScalarType dtype) {
  TORCH_CHECK(x.sizes() == sizes && x.scalar_type() == dtype && x.device().is_cpu(), name,
              " must be on the CPU, of shape ", sizes, " and ", dtype, "; found ", x.device(), ", ", x.sizes(), ", ",
              x.scalar_type());
  return x.contiguous();
}

// A vector of x's width as the kernels read it.
inline at::Tensor checked_vector(const at::Tensor& v, const char* name, const at::Tensor& x, Type type) {
  TORCH_CHECK(v.dim() == 1 && v.size(0) == x.size(1), name, " must have shape [", x.size(1), "]; found ", v.sizes());
  TORCH_CHECK(at::isFloatingType(v.scalar_type()), name, " must have a floating-point dtype; found ", v.dtype());
  TORCH_CHECK(v.device().is_cpu(), name, " must lie on x's device, the CPU; found ", v.device());
  return v.to(computed(type)).contiguous();
}

inline at::Tensor checked_gradient_of(const at::Tensor& x, const at::Tensor& dout) {
  TORCH_CHECK(dout.sizes() == x.sizes() && dout.scalar_type() == x.scalar_type() && dout.device().is_cpu(),
              "the gradient of the output must have the output's dtype and shape ", x.dtype(), " ", x.sizes(),
              "; found ", dout.dtype(), " ", dout.sizes());
  return dout.contiguous();
}

// "relu", "gelu" or "gelu_tanh".
Activation activation_named(c10::string_view name);

// What `embed` sums, with the copies of the ids that it points to: no other thread can change what was checked. Tables
// and sizes are the caller's to fill in.
struct EmbedCall {
  Embed args{};
  std::vector<int32_t> ids;  // token ids, segment ids and positions
  at::Tensor token, segment, position;
};
// Raises IndexError for an id outside its table.
EmbedCall checked_embed(const at::Tensor& ids, const at::Tensor& segments, const at::Tensor& positions,
                        int64_t token_rows, int64_t segment_rows, int64_t position_rows);

// The sums over rows of `vectors` vectors, computed type [vectors, width]: work(begin, end, sums) does those of some
// rows, [vectors, width rounded up to kSumUnit]. The parts depend on the number of rows alone and are added in their
// order, in double, so that no sum depends on the number of threads.
template <class F>
at::Tensor summed(int64_t rows, int64_t width, int64_t vectors, Type type, const F& work) {
  const int64_t part = std::max<int64_t>(32, (rows + 63) / 64), parts = (rows + part - 1) / part;
  const int64_t padded = (width + kSumUnit - 1) / kSumUnit * kSumUnit;
  const at::Tensor partial = at::empty({parts, vectors, padded}, at::dtype(computed(type)));
  const at::Tensor total = at::empty({vectors, width}, partial.options());
  const auto add = [&]<class C>(C) {
    C *from = partial.data_ptr<C>(), *to = total.data_ptr<C>();
    share(parts, kPerElement * double(part * width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) work(i * part, std::min(rows, (i + 1) * part), from + i * vectors * padded);
    });
    std::vector<double> line(width);
    for (int64_t v = 0; v < vectors; v++) {
      std::fill(line.begin(), line.end(), 0.0);
      for (int64_t i = 0; i < parts; i++)
        for (int64_t c = 0; c < width; c++) line[c] += from[(i * vectors + v) * padded + c];
      for (int64_t c = 0; c < width; c++) to[v * width + c] = C(line[c]);
    }
  };
  if (type == Type::f64)
    add(double());
  else
    add(float());
  return total;
}

}  // namespace bertnli
