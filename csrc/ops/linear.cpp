// Products of linear layers in training by kernels of our own, where PyTorch's are slower: every matrix that is the
// kernels' second operand is packed anew, which takes a few hundredths of a product's time.
#include "tensors.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <optional>
#include <tuple>

namespace bertnli {
namespace {

using at::Tensor;

constexpr int64_t kSteps = 512;  // of tokens, whose sums become part of a weight's gradient at a time

// Whether the kernels of this CPU multiply so many rows of that type; the rest is PyTorch's, whose products of a single
// row do not read the weights twice.
bool ours(const LinearKernels& kernels, const Tensor& x, int64_t weights) {
  return kernels.turn && x.size(0) > 1 && weights > 0;
}
LinearKernels kernels_of(const Tensor& x) {
  const Type type = type_of(x, "linear", "x");
  if (type == Type::f64) return {};
  return linear_kernels(type == Type::bf16 ? Precision::bf16 : Precision::fp32);
}

void check_matrix(const Tensor& m, const char* name, const Tensor& like) {
  TORCH_CHECK(m.dim() == 2, name, " must be a matrix; found ", m.sizes());
  TORCH_CHECK(m.device().is_cpu(), name, " must lie on x's device, the CPU; found ", m.device());
  TORCH_CHECK(m.scalar_type() == like.scalar_type(), name, " must have x's dtype ", like.dtype(), "; found ",
              m.dtype());
}

int64_t steps_of(const LinearKernels& kernels, int64_t in) { return (in + kernels.per_step - 1) / kernels.per_step; }

// A matrix whose rows are contiguous, and whole steps of the kernels.
Tensor dense(const Tensor& m) { return m.stride(1) == 1 && m.stride(0) >= m.size(1) ? m : m.contiguous(); }
Tensor whole_rows(const LinearKernels& kernels, const Tensor& m) {
  if (m.size(1) % kernels.per_step == 0) return dense(m);
  const Tensor wider = at::zeros({m.size(0), steps_of(kernels, m.size(1)) * kernels.per_step}, m.options());
  wider.slice(1, 0, m.size(1)).copy_(m);
  return wider;
}

int64_t panels_of(const LinearKernels& kernels, int64_t out) { return (out + kernels.panel - 1) / kernels.panel; }
int64_t panel_bytes(const LinearKernels& kernels, int64_t in) {
  return steps_of(kernels, in) * kernels.panel * kernels.weight_bytes;
}

// Panels `begin` to `end` of m[out, in], or of m[in, out].
void pack(const LinearKernels& kernels, const char* m, int64_t stride, int64_t element, bool in_rows, int64_t out,
          int64_t in, char* panels, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t first = begin * kernels.panel, columns = std::min(out, end * kernels.panel) - first;
  const auto by = in_rows ? kernels.pack_columns : kernels.pack_rows;
  by(m + first * (in_rows ? 1 : stride) * element, stride, columns, in, panels + begin * panel_bytes(kernels, in));
}

void* scratch(const LinearKernels& kernels, int64_t in, int64_t rows) {
  const size_t bytes = kernels.scratch_bytes(in, rows);
  return bytes ? scratch_memory(bytes) : nullptr;
}

// x[rows, in] times m[in, out] where `in_rows`, else m[out, in] transposed; + bias.
Tensor product(const LinearKernels& kernels, const Tensor& x_in, const Tensor& m_in, bool in_rows, const float* bias) {
  const Tensor x = whole_rows(kernels, x_in), m = dense(m_in);
  const int64_t rows = x.size(0), in = x_in.size(1), out = m.size(in_rows ? 1 : 0), element = x.element_size();
  const int64_t panels = panels_of(kernels, out);
  const Tensor y = at::empty({rows, out}, x.options());
  const auto* from = (const char*)m.const_data_ptr();
  char* const to = (char*)scratch_memory(size_t(panels * panel_bytes(kernels, in)), Scratch::packed);
  char* const result = (char*)y.data_ptr();
  at::parallel_for(0, panels, std::max<int64_t>(1, 65536 / (1 + in * kernels.panel)), [&](int64_t begin, int64_t end) {
    pack(kernels, from, m.stride(0), element, in_rows, out, in, to, begin, end);
  });
  LinearCall call{};
  call.w = {to, nullptr, bias, nullptr, in, out};
  call.out_type = type_of(x, "linear", "x");
  call.out_stride = out;
  const auto work = [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
    LinearCall part = call;
    part.x.data = (char*)x.const_data_ptr() + first * x.stride(0) * element;
    part.x.stride = x.stride(0) * element;
    part.rows = last - first;
    part.out = result + first * out * element;
    kernels.linear(part, begin, end, scratch(kernels, in, part.rows));
  };
  const double cost = double(in) * double(out) * kernels.cost;  // of a row
  const int64_t enough = int64_t(200'000 / std::max(1.0, cost)) + 1, threads = at::get_num_threads();
  if (rows >= 16 * threads)
    at::parallel_for(0, rows, std::max<int64_t>(16, enough),
                     [&](int64_t begin, int64_t end) { work(begin, end, 0, panels); });
  else
    at::parallel_for(0, panels, std::max<int64_t>(1, enough / std::max<int64_t>(1, rows) * panels),
                     [&](int64_t begin, int64_t end) { work(0, rows, begin, end); });
  return y;
}

// The sum over rows t of dy[t, out] x[t, in]: some hundred rows of x at a time are packed as weights, the next ones
// while these are multiplied; each thread turns its own columns of dy.
Tensor weight_gradient(const LinearKernels& kernels, const Tensor& dy, const Tensor& x_in) {
  const Tensor x = dense(x_in);
  const int64_t tokens = x.size(0), in = x.size(1), out = dy.size(1), element = x.element_size();
  const int64_t panels = panels_of(kernels, in), most = kSteps * kernels.per_step;
  const int64_t block = std::min(most, tokens);
  const Tensor dweight = at::empty({out, in}, x.options());
  const bool as_is = x.scalar_type() == at::kFloat;
  float* const sums =
      as_is ? dweight.data_ptr<float>() : (float*)scratch_memory(size_t(out * in) * sizeof(float), Scratch::sums);
  const int64_t bytes = panels * panel_bytes(kernels, block);
  char* const both = (char*)scratch_memory(size_t(tokens > block ? 2 * bytes : bytes), Scratch::packed);
  const auto *xs = (const char*)x.const_data_ptr(), *dys = (const char*)dy.const_data_ptr();
  const bool worth = double(tokens) * double(in) * double(out) * kernels.cost > 200'000;
  const int64_t threads = worth ? at::get_num_threads() : 1, share = (out + threads - 1) / threads;
  const int64_t height = (share + 15) / 16 * 16, parts = (out + height - 1) / height;
  const int64_t turned_stride = steps_of(kernels, block) * kernels.row_bytes + 64;  // rows begin in different sets
  for (int64_t t = -block; t < tokens; t += block) {
    const int64_t next = t + block, now = t / block % 2;
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      if (next < tokens)
        pack(kernels, xs + next * x.stride(0) * element, x.stride(0), element, true, in, std::min(block, tokens - next),
             both + next / block % 2 * bytes, begin * panels / parts, end * panels / parts);
      if (t < 0) return;
      const int64_t depth = std::min(block, tokens - t);
      for (int64_t i = begin; i < end; i++) {
        const int64_t row = i * height, rows = std::min(height, out - row);
        char* const mine = (char*)scratch_memory(size_t(height * turned_stride), Scratch::turned);
        kernels.turn(dys + (t * dy.stride(0) + row) * element, dy.stride(0), rows, depth, mine, turned_stride);
        LinearCall call{};
        call.w = {both + now * bytes, nullptr, nullptr, nullptr, depth, in};
        call.x.data = mine;
        call.x.stride = turned_stride;
        call.rows = rows;
        call.out = sums + row * in;
        call.out_type = Type::f32;
        call.out_stride = in;
        call.more = t > 0;
        kernels.linear(call, 0, panels, scratch(kernels, depth, rows));
      }
    });
  }
  if (!as_is) dweight.copy_(at::from_blob(sums, {out, in}, at::kFloat));
  return dweight;
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_matrix(x, "x", x);
  check_matrix(weight, "weight", x);
  TORCH_CHECK(weight.size(1) == x.size(1), "weight must have shape [outputs, ", x.size(1), "]; found ", weight.sizes());
  const bool biased = bias.has_value() && bias->defined();
  if (biased) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias must have shape [", weight.size(0),
                "]; found ", bias->sizes());
    TORCH_CHECK(bias->device().is_cpu(), "bias must lie on x's device, the CPU; found ", bias->device());
    TORCH_CHECK(at::isFloatingType(bias->scalar_type()), "bias must have a floating-point dtype; found ",
                bias->dtype());
  }
  const LinearKernels kernels = kernels_of(x);
  if (!ours(kernels, x, weight.numel())) return at::linear(x, weight, biased ? bias->to(x.scalar_type()) : Tensor());
  if (!biased) return product(kernels, x, weight, false, nullptr);
  const Tensor padded = at::zeros({panels_of(kernels, weight.size(0)) * kernels.panel}, at::kFloat);
  padded.slice(0, 0, weight.size(0)).copy_(*bias);
  return product(kernels, x, weight, false, padded.const_data_ptr<float>());
}

std::tuple<Tensor, Tensor> linear_backward(const Tensor& dout_in, const std::optional<Tensor>& x,
                                           const std::optional<Tensor>& weight) {
  check_matrix(dout_in, "the gradient of the output", dout_in);
  const Tensor dout = dense(dout_in);
  const LinearKernels kernels = kernels_of(dout);
  Tensor dx = at::empty({0}, dout.options()), dweight = at::empty({0}, dout.options());
  if (weight.has_value()) {
    check_matrix(*weight, "weight", dout);
    TORCH_CHECK(dout.size(1) == weight->size(0), "the gradient of the output must have ", weight->size(0),
                " columns; found ", dout.sizes());
    const bool own = ours(kernels, dout, weight->numel());
    dx = own ? product(kernels, dout, *weight, true, nullptr) : at::mm(dout, *weight);
  }
  if (x.has_value()) {
    check_matrix(*x, "x", dout);
    TORCH_CHECK(dout.size(0) == x->size(0), "the gradient of the output must have ", x->size(0), " rows; found ",
                dout.sizes());
    const bool own = ours(kernels, dout, dout.size(1) * x->size(1));
    dweight = own ? weight_gradient(kernels, dout, *x) : at::mm(dout.t(), *x);
  }
  return {dx, dweight};
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("linear", linear);
  m.impl("linear_backward", linear_backward);
}

}  // namespace bertnli
