// Dropout + residual + LayerNorm: bertnli::add_norm.
#include "autograd.h"
#include "checks.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <optional>
#include <tuple>

TORCH_LIBRARY_FRAGMENT(bertnli, m) {
  m.def(
      "add_norm(Tensor x, Tensor y, Tensor? y_bias, Tensor weight, Tensor bias, float eps, float dropout_p, "
      "Tensor? seed) -> (Tensor out, Tensor mean, Tensor rstd)");
  m.def(
      "add_norm_backward(Tensor dout, Tensor x, Tensor y, Tensor? y_bias, Tensor weight, Tensor bias, Tensor mean, "
      "Tensor rstd, float dropout_p, Tensor? seed) -> (Tensor dx, Tensor dy, Tensor dy_bias, Tensor dweight, "
      "Tensor dbias)");
}

namespace bertnli {
namespace {

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct AddNormCall {
  AddNorm args{};
  Tensor x, y, y_bias, weight, bias;  // keep what `args` points to
  Type type;
  NormKernels kernels;
};

AddNormCall checked_add_norm(const Tensor& x, const Tensor& y, const std::optional<Tensor>& y_bias,
                             const Tensor& weight, const Tensor& bias, double dropout_p,
                             const std::optional<Tensor>& seed) {
  AddNormCall call;
  call.type = type_of(x, "add_norm", "x");
  TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, "x must have shape [tokens, width], the width not 0; found ", x.sizes());
  TORCH_CHECK(y.sizes() == x.sizes(), "y must have x's shape ", x.sizes(), "; found ", y.sizes());
  TORCH_CHECK(y.device().is_cpu(), "y must lie on x's device, the CPU; found ", y.device());
  TORCH_CHECK(y.scalar_type() == x.scalar_type() || (call.type == Type::f32 && y.scalar_type() == at::kBFloat16),
              "y must have x's dtype ", x.dtype(), " (or be bfloat16 where x is float32); found ", y.dtype());
  call.x = x.contiguous();
  call.y = y.contiguous();
  if (y_bias.has_value()) call.y_bias = checked_vector(*y_bias, "y_bias", x, call.type);
  call.weight = checked_vector(weight, "weight", x, call.type);
  call.bias = checked_vector(bias, "bias", x, call.type);
  call.kernels = kernels().norm[call.type][type_of(y, "add_norm", "y")];
  AddNorm& a = call.args;
  a.x = call.x.const_data_ptr();
  a.y = call.y.const_data_ptr();
  a.y_bias = y_bias.has_value() ? call.y_bias.const_data_ptr() : nullptr;
  a.weight = call.weight.const_data_ptr();
  a.bias = call.bias.const_data_ptr();
  a.width = x.size(1);
  a.dropout = checked_dropout(dropout_p, seed, "x");
  return call;
}

std::tuple<Tensor, Tensor, Tensor> add_norm(const Tensor& x, const Tensor& y, const std::optional<Tensor>& y_bias,
                                            const Tensor& weight, const Tensor& bias, double eps, double dropout_p,
                                            const std::optional<Tensor>& seed) {
  AddNormCall call = checked_add_norm(x, y, y_bias, weight, bias, dropout_p, seed);
  const Tensor out = at::empty(x.sizes(), x.options()), mean = at::empty({x.size(0)}, call.weight.options());
  const Tensor rstd = at::empty({x.size(0)}, call.weight.options());
  AddNorm& a = call.args;
  a.eps = eps;
  a.out = out.data_ptr();
  a.mean = mean.data_ptr();
  a.rstd = rstd.data_ptr();
  share(x.size(0), kPerElement * double(a.width), [&](int64_t begin, int64_t end) {
    call.kernels.add_norm(a, begin, end, Scratch(row_scratch_bytes(a.width)).data());
  });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_norm_backward(
    const Tensor& dout_in, const Tensor& x, const Tensor& y, const std::optional<Tensor>& y_bias, const Tensor& weight,
    const Tensor& bias, const Tensor& mean_in, const Tensor& rstd_in, double dropout_p,
    const std::optional<Tensor>& seed) {
  AddNormCall call = checked_add_norm(x, y, y_bias, weight, bias, dropout_p, seed);
  const Tensor dout = checked_gradient_of(x, dout_in);
  const Tensor mean = checked_saved(mean_in, "mean", {x.size(0)}, computed(call.type));
  const Tensor rstd = checked_saved(rstd_in, "rstd", {x.size(0)}, computed(call.type));
  const Tensor dx = at::empty(x.sizes(), x.options()), dy = at::empty(y.sizes(), y.options());
  AddNorm& a = call.args;
  a.mean = mean.data_ptr();
  a.rstd = rstd.data_ptr();
  a.dout = dout.const_data_ptr();
  a.dx = dx.data_ptr();
  a.dy = dy.data_ptr();
  const Tensor sums = summed(x.size(0), a.width, 3, call.type, [&](int64_t begin, int64_t end, void* to) {
    call.kernels.add_norm_backward(a, begin, end, to, Scratch(row_scratch_bytes(a.width)).data());
  });
  const auto row = [&](int i, const Tensor& like) { return sums[i].to(like.scalar_type(), false, true); };
  return {dx, dy, y_bias.has_value() ? row(2, *y_bias) : at::empty({0}, sums.options()), row(0, weight), row(1, bias)};
}

// ---- autograd ----

struct AddNormNode : Function<AddNormNode> {
  static const auto& op() {
    static const auto op = find<Three(const Tensor&, const Tensor&, const Maybe&, const Tensor&, const Tensor&, double,
                                      double, const Maybe&)>("bertnli::add_norm");
    return op;
  }
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& y, const Maybe& y_bias,
                               const Tensor& weight, const Tensor& bias, double eps, double dropout_p,
                               const Maybe& seed) {
    const Three outputs = run<AddNormNode>(x, y, y_bias, weight, bias, eps, dropout_p, seed);
    const auto& [out, mean, rstd] = outputs;
    ctx->save_for_backward({x, y, y_bias.value_or(Tensor()), weight, bias, mean, rstd, seed.value_or(Tensor())});
    ctx->saved_data["dropout_p"] = dropout_p;
    return first_of(ctx, outputs);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto op =
        find<Five(const Tensor&, const Tensor&, const Tensor&, const Maybe&, const Tensor&, const Tensor&,
                  const Tensor&, const Tensor&, double, const Maybe&)>("bertnli::add_norm_backward");
    if (!gradients[0].defined()) return variable_list(8);
    const variable_list s = ctx->get_saved_variables();
    const auto [dx, dy, dy_bias, dweight, dbias] = op.call(gradients[0], s[0], s[1], maybe(s[2]), s[3], s[4], s[5],
                                                           s[6], ctx->saved_data["dropout_p"].toDouble(), maybe(s[7]));
    return {dx, dy, s[2].defined() ? dy_bias : Tensor(), dweight, dbias, {}, {}, {}};
  }
};
Three autograd_add_norm(const Tensor& x, const Tensor& y, const Maybe& y_bias, const Tensor& weight, const Tensor& bias,
                        double eps, double dropout_p, const Maybe& seed) {
  return call<AddNormNode>(needs_node(x, y, y_bias, weight, bias), x, y, y_bias, weight, bias, eps, dropout_p, seed);
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("add_norm", add_norm);
  m.impl("add_norm_backward", add_norm_backward);
}

TORCH_LIBRARY_IMPL(bertnli, Autograd, m) { m.impl("add_norm", autograd_add_norm); }

}  // namespace bertnli
