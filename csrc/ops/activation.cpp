// Bias + activation: bertnli::bias_act.
#include "autograd.h"
#include "checks.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <string>
#include <tuple>

TORCH_LIBRARY_FRAGMENT(bertnli, m) {
  m.def("bias_act(Tensor x, Tensor bias, str kind) -> Tensor");
  m.def("bias_act_backward(Tensor dout, Tensor x, Tensor bias, str kind) -> (Tensor dx, Tensor dbias)");
}

namespace bertnli {

Activation activation_named(c10::string_view name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  TORCH_CHECK(name == "gelu_tanh", "kind must be 'relu', 'gelu' or 'gelu_tanh'; found '", name, "'");
  return Activation::gelu_tanh;
}

namespace {

struct BiasActCall {
  BiasAct args{};
  Tensor x, bias;
  Type type;
  ActivationKernels kernels;
};

BiasActCall checked_bias_act(const Tensor& x, const Tensor& bias, c10::string_view kind) {
  BiasActCall call;
  call.type = type_of(x, "bias_act", "x");
  TORCH_CHECK(x.dim() == 2, "x must have shape [tokens, width]; found ", x.sizes());
  call.x = x.contiguous();
  call.bias = checked_vector(bias, "bias", x, call.type);
  call.kernels = kernels().activation[call.type];
  BiasAct& a = call.args;
  a.x = call.x.const_data_ptr();
  a.bias = call.bias.const_data_ptr();
  a.width = x.size(1);
  a.activation = activation_named(kind);
  return call;
}

Tensor bias_act(const Tensor& x, const Tensor& bias, c10::string_view kind) {
  BiasActCall call = checked_bias_act(x, bias, kind);
  const Tensor out = at::empty(x.sizes(), x.options());
  call.args.out = out.data_ptr();
  share(x.size(0), kPerElement * double(call.args.width),
        [&](int64_t begin, int64_t end) { call.kernels.bias_act(call.args, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> bias_act_backward(const Tensor& dout_in, const Tensor& x, const Tensor& bias,
                                             c10::string_view kind) {
  BiasActCall call = checked_bias_act(x, bias, kind);
  const Tensor dout = checked_gradient_of(x, dout_in), dx = at::empty(x.sizes(), x.options());
  call.args.dout = dout.const_data_ptr();
  call.args.dx = dx.data_ptr();
  const Tensor sums = summed(x.size(0), call.args.width, 1, call.type, [&](int64_t begin, int64_t end, void* to) {
    call.kernels.bias_act_backward(call.args, begin, end, to);
  });
  return {dx, sums[0].to(bias.scalar_type())};
}

// ---- autograd ----

struct BiasActNode : Function<BiasActNode> {
  static const auto& op() {
    static const auto op = find<Tensor(const Tensor&, const Tensor&, c10::string_view)>("bertnli::bias_act");
    return op;
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& bias, const std::string& kind) {
    ctx->save_for_backward({x, bias});
    ctx->saved_data["kind"] = kind;
    return run<BiasActNode>(x, bias, kind);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto op =
        find<Two(const Tensor&, const Tensor&, const Tensor&, c10::string_view)>("bertnli::bias_act_backward");
    const variable_list s = ctx->get_saved_variables();
    const auto [dx, dbias] = op.call(gradients[0], s[0], s[1], ctx->saved_data["kind"].toStringRef());
    return {dx, dbias, {}};
  }
};
Tensor autograd_bias_act(const Tensor& x, const Tensor& bias, c10::string_view kind) {
  return call<BiasActNode>(needs_node(x, bias), x, bias, std::string(kind));
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("bias_act", bias_act);
  m.impl("bias_act_backward", bias_act_backward);
}

TORCH_LIBRARY_IMPL(bertnli, Autograd, m) { m.impl("bias_act", autograd_bias_act); }

}  // namespace bertnli
