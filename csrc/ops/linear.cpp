// Linear layers in training: bertnli::linear, by the CPU kernels where PyTorch's products are slower. Every matrix that
// is the kernels' second operand is packed anew, which takes a few hundredths of a product's time.
#include "autograd.h"
#include "checks.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <optional>
#include <tuple>

TORCH_LIBRARY_FRAGMENT(bertnli, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("linear_backward(Tensor dout, Tensor? x, Tensor? weight) -> (Tensor dx, Tensor dweight)");
}

namespace bertnli {
namespace {

constexpr int64_t kSteps = 512;  // of tokens, whose sums become part of a weight's gradient at a time

// The kernels of this CPU where they multiply such rows; the rest is PyTorch's, whose products of a single row do not
// read the weights twice.
const LinearKernels* kernels_for(const Tensor& x, int64_t weights) {
  const Type type = type_of(x, "linear", "x");
  if (type == Type::f64 || x.size(0) <= 1 || weights == 0) return nullptr;
  const LinearKernels& linear = kernels().linear[type == Type::bf16 ? Precision::bf16 : Precision::fp32];
  return linear.transpose_pack ? &linear : nullptr;
}

void check_matrix(const Tensor& m, const char* name, const Tensor& like) {
  TORCH_CHECK(m.dim() == 2, name, " must be a matrix; found ", m.sizes());
  TORCH_CHECK(m.device().is_cpu(), name, " must lie on x's device, the CPU; found ", m.device());
  TORCH_CHECK(m.scalar_type() == like.scalar_type(), name, " must have x's dtype ", like.dtype(), "; found ",
              m.dtype());
}

int64_t steps_of(const LinearKernels& k, int64_t in) { return (in + k.per_step - 1) / k.per_step; }

// A matrix whose rows are contiguous, and whole steps of the k.
Tensor dense(const Tensor& m) { return m.stride(1) == 1 && m.stride(0) >= m.size(1) ? m : m.contiguous(); }
Tensor whole_rows(const LinearKernels& k, const Tensor& m) {
  if (m.size(1) % k.per_step == 0) return dense(m);
  const Tensor wider = at::zeros({m.size(0), steps_of(k, m.size(1)) * k.per_step}, m.options());
  wider.slice(1, 0, m.size(1)).copy_(m);
  return wider;
}

int64_t panels_of(const LinearKernels& k, int64_t out) { return (out + k.panel - 1) / k.panel; }
int64_t panel_bytes(const LinearKernels& k, int64_t in) { return steps_of(k, in) * k.panel * k.weight_bytes; }

// Panels `begin` to `end` of m[out, in], or of m[in, out].
void pack(const LinearKernels& k, const char* m, int64_t stride, int64_t element, bool in_rows, int64_t out, int64_t in,
          char* panels, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t first = begin * k.panel, columns = std::min(out, end * k.panel) - first;
  const auto by = in_rows ? k.pack_columns : k.pack_rows;
  by(m + first * (in_rows ? 1 : stride) * element, stride, columns, in, panels + begin * panel_bytes(k, in));
}

// Panels `begin` to `end` of a product.
void multiply(const LinearKernels& k, const LinearCall& call, int64_t begin, int64_t end) {
  k.linear(call, begin, end, Scratch(k.scratch_bytes(call.w.in, call.rows)).data());
}

// x[rows, in] times m[in, out] where `in_rows`, else m[out, in] transposed; + bias.
Tensor product(const LinearKernels& k, const Tensor& x_in, const Tensor& m_in, bool in_rows, const float* bias) {
  const Tensor x = whole_rows(k, x_in), m = dense(m_in);
  const int64_t rows = x.size(0), in = x_in.size(1), out = m.size(in_rows ? 1 : 0), element = x.element_size();
  const int64_t panels = panels_of(k, out);
  const Tensor y = at::empty({rows, out}, x.options());
  const auto* from = (const char*)m.const_data_ptr();
  const Scratch packed(size_t(panels * panel_bytes(k, in)));
  char* const result = (char*)y.data_ptr();
  share(panels, kPerMove * double(in * k.panel), [&](int64_t begin, int64_t end) {
    pack(k, from, m.stride(0), element, in_rows, out, in, packed.data(), begin, end);
  });
  LinearCall call{};
  call.w = {packed.data(), nullptr, bias, nullptr, in, out};
  call.out_type = type_of(x, "linear", "x");
  call.out_stride = out;
  const auto work = [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
    LinearCall part = call;
    part.x.data = (char*)x.const_data_ptr() + first * x.stride(0) * element;
    part.x.stride = x.stride(0) * element;
    part.rows = last - first;
    part.out = result + first * out * element;
    multiply(k, part, begin, end);
  };
  const double cost = double(in) * double(out) * k.cost;  // of a row
  if (rows >= 16 * at::get_num_threads())
    share(rows, cost, [&](int64_t begin, int64_t end) { work(begin, end, 0, panels); }, 16);
  else
    share(panels, cost * double(rows) / double(panels), [&](int64_t begin, int64_t end) { work(0, rows, begin, end); });
  return y;
}

// The sum over rows t of dy[t, out] x[t, in]: some hundred rows of x at a time are packed as weights, the next ones
// while these are multiplied; each thread transposes its own columns of dy.
Tensor weight_gradient(const LinearKernels& k, const Tensor& dy, const Tensor& x_in) {
  const Tensor x = dense(x_in);
  const int64_t tokens = x.size(0), in = x.size(1), out = dy.size(1), element = x.element_size();
  const int64_t panels = panels_of(k, in), block = std::min(kSteps * k.per_step, tokens);
  const Tensor dweight = at::empty({out, in}, x.options());
  const bool direct = x.scalar_type() == at::kFloat;
  const Scratch sum_block(direct ? 0 : size_t(out * in) * sizeof(float));
  float* const sums = direct ? dweight.data_ptr<float>() : (float*)sum_block.data();
  const int64_t bytes = panels * panel_bytes(k, block);
  const Scratch packed(size_t(tokens > block ? 2 * bytes : bytes));
  const auto *xs = (const char*)x.const_data_ptr(), *dys = (const char*)dy.const_data_ptr();
  const int64_t threads = threads_for(double(tokens) * double(in) * double(out) * k.cost);
  const int64_t per_thread = (out + threads - 1) / threads;
  const int64_t height = (per_thread + 15) / 16 * 16, parts = (out + height - 1) / height;
  const int64_t stride = steps_of(k, block) * k.row_bytes + 64;  // transposed rows begin in different sets of the cache
  for (int64_t t = -block; t < tokens; t += block) {
    const int64_t next = t + block, now = t / block % 2;
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      if (next < tokens)
        pack(k, xs + next * x.stride(0) * element, x.stride(0), element, true, in, std::min(block, tokens - next),
             packed.data() + next / block % 2 * bytes, begin * panels / parts, end * panels / parts);
      if (t < 0) return;
      const int64_t depth = std::min(block, tokens - t);
      const Scratch transposed(size_t(height * stride));
      for (int64_t i = begin; i < end; i++) {
        const int64_t row = i * height, rows = std::min(height, out - row);
        k.transpose_pack(dys + (t * dy.stride(0) + row) * element, dy.stride(0), rows, depth, transposed.data(),
                         stride);
        LinearCall call{};
        call.w = {packed.data() + now * bytes, nullptr, nullptr, nullptr, depth, in};
        call.x.data = transposed.data();
        call.x.stride = stride;
        call.rows = rows;
        call.out = sums + row * in;
        call.out_type = Type::f32;
        call.out_stride = in;
        call.epilogue.accumulate = t > 0;
        multiply(k, call, 0, panels);
      }
    });
  }
  if (!direct) dweight.copy_(at::from_blob(sums, {out, in}, at::kFloat));
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
  const LinearKernels* const k = kernels_for(x, weight.numel());
  if (!k) return at::linear(x, weight, biased ? bias->to(x.scalar_type()) : Tensor());
  if (!biased) return product(*k, x, weight, false, nullptr);
  const Tensor padded = at::zeros({panels_of(*k, weight.size(0)) * k->panel}, at::kFloat);
  padded.slice(0, 0, weight.size(0)).copy_(*bias);
  return product(*k, x, weight, false, padded.const_data_ptr<float>());
}

std::tuple<Tensor, Tensor> linear_backward(const Tensor& dout_in, const std::optional<Tensor>& x,
                                           const std::optional<Tensor>& weight) {
  check_matrix(dout_in, "the gradient of the output", dout_in);
  const Tensor dout = dense(dout_in);
  Tensor dx = at::empty({0}, dout.options()), dweight = at::empty({0}, dout.options());
  if (weight.has_value()) {
    check_matrix(*weight, "weight", dout);
    TORCH_CHECK(dout.size(1) == weight->size(0), "the gradient of the output must have ", weight->size(0),
                " columns; found ", dout.sizes());
    const LinearKernels* const k = kernels_for(dout, weight->numel());
    dx = k ? product(*k, dout, *weight, true, nullptr) : at::mm(dout, *weight);
  }
  if (x.has_value()) {
    check_matrix(*x, "x", dout);
    TORCH_CHECK(dout.size(0) == x->size(0), "the gradient of the output must have ", x->size(0), " rows; found ",
                dout.sizes());
    const LinearKernels* const k = kernels_for(dout, dout.size(1) * x->size(1));
    dweight = k ? weight_gradient(*k, dout, *x) : at::mm(dout.t(), *x);
  }
  return {dx, dweight};
}

// ---- autograd ----

struct LinearNode : Function<LinearNode> {
  static const auto& op() {
    static const auto op = find<Tensor(const Tensor&, const Tensor&, const Maybe&)>("bertnli::linear");
    return op;
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Maybe& bias) {
    // Each gradient takes the other factor.
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    if (bias.has_value() && bias->requires_grad()) ctx->saved_data["bias"] = bias->scalar_type();
    return run<LinearNode>(x, weight, bias);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto op = find<Two(const Tensor&, const Maybe&, const Maybe&)>("bertnli::linear_backward");
    const variable_list s = ctx->get_saved_variables();
    const Tensor &dout = gradients[0], &x = s[0], &weight = s[1];
    const bool x_wanted = ctx->needs_input_grad(0), weight_wanted = ctx->needs_input_grad(1);
    variable_list results(3);
    if (at::GradMode::is_enabled()) {  // PyTorch's products, which have gradients of their own
      if (x_wanted) results[0] = at::mm(dout, weight);
      if (weight_wanted) results[1] = at::mm(dout.t(), x);
    } else if (x_wanted || weight_wanted) {
      const auto [dx, dweight] = op.call(dout, weight_wanted ? Maybe(x) : Maybe(), x_wanted ? Maybe(weight) : Maybe());
      if (x_wanted) results[0] = dx;
      if (weight_wanted) results[1] = dweight;
    }
    const auto bias = ctx->saved_data.find("bias");  // there is no third input to ask about without one
    if (bias != ctx->saved_data.end()) results[2] = dout.sum({0}, false, bias->second.toScalarType());
    return results;
  }
};
Tensor autograd_linear(const Tensor& x, const Tensor& weight, const Maybe& bias) {
  return call<LinearNode>(needs_node(x, weight, bias), x, weight, bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("linear", linear);
  m.impl("linear_backward", linear_backward);
}

TORCH_LIBRARY_IMPL(bertnli, Autograd, m) { m.impl("linear", autograd_linear); }

}  // namespace bertnli
