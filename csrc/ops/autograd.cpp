// The gradients of the operators, on every device: each node calls the operator's `_backward` through the dispatcher.
// (In Python, a call and its gradient would take a tenth of a millisecond each, a fifth of a step of sixteen pairs.)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/_unique2.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace bertnli {
namespace {

using at::Tensor;
using c10::SymInt;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Maybe = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Maybe maybe(const Tensor& x) { return x.defined() ? Maybe(x) : std::nullopt; }

// What `forward` returns where only the first output has a gradient.
variable_list first_of(AutogradContext* ctx, const Three& outputs) {
  const auto& [out, one, two] = outputs;
  ctx->mark_non_differentiable({one, two});
  ctx->set_materialize_grads(false);
  return {out, one, two};
}

// Forward-mode derivatives do not ask whether gradients are on; the node refuses them.
bool has_gradient(const Tensor& x) {
  return (x.requires_grad() && at::GradMode::is_enabled()) || x._fw_grad(0).defined();
}
bool has_gradient(const Maybe& x) { return x.has_value() && x->defined() && has_gradient(*x); }
template <class... T>
bool needs_node(const T&... tensors) {
  return (has_gradient(tensors) || ...);
}

// The operator of F, below the gradients.
template <class F, class... Args>
auto run(const Args&... args) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return F::op().call(args...);
}

// The same with a node where one of its inputs has a gradient.
template <class F, class... Args>
auto call(bool node, const Args&... args) -> decltype(F::op().call(args...)) {
  if (!node) return run<F>(args...);
  auto outputs = F::apply(args...);
  if constexpr (std::is_same_v<decltype(outputs), Tensor>) {
    return outputs;
  } else {
    // Compiled autograd refuses a node that remembers which outputs have none.
    if (auto* const made = dynamic_cast<torch::autograd::CppNode<F>*>(outputs[0].grad_fn().get()))
      made->ctx_.mark_non_differentiable({});
    return {outputs[0], outputs[1], outputs[2]};
  }
}

// ---- variable-length attention ----

struct Attention : Function<Attention> {
  static const auto& op() {
    static const auto op = find<Three(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, SymInt,
                                      SymInt, double, double, const Maybe&)>("bertnli::varlen_attention");
    return op;
  }
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& cu_q, const Tensor& cu, const SymInt& max_q, const SymInt& max,
                               double dropout_p, double scale, const Maybe& seed) {
    const auto [out, weight_sum, lse] = run<Attention>(q, k, v, cu_q, cu, max_q, max, dropout_p, scale, seed);
    ctx->save_for_backward({q, k, v, out, weight_sum, lse, cu_q, cu, seed.value_or(Tensor())});
    ctx->saved_data["max_q"] = max_q;
    ctx->saved_data["max"] = max;
    ctx->saved_data["dropout_p"] = dropout_p;
    ctx->saved_data["scale"] = scale;
    ctx->mark_non_differentiable({lse});
    ctx->set_materialize_grads(false);
    return {out, weight_sum, lse};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto op = find<Three(const Tensor&, const Maybe&, const Tensor&, const Tensor&, const Tensor&,
                                      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, SymInt,
                                      SymInt, double, double, const Maybe&)>("bertnli::varlen_attention_backward");
    const variable_list s = ctx->get_saved_variables();
    const Tensor dout = gradients[0].defined() ? gradients[0] : at::zeros_like(s[3]);
    auto& numbers = ctx->saved_data;
    const auto [dq, dk, dv] =
        op.call(dout, maybe(gradients[1]), s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], numbers["max_q"].toSymInt(),
                numbers["max"].toSymInt(), numbers["dropout_p"].toDouble(), numbers["scale"].toDouble(), maybe(s[8]));
    return {dq, dk, dv, {}, {}, {}, {}, {}, {}, {}};
  }
};
Three attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu, SymInt max_q,
                SymInt max, double dropout_p, double scale, const Maybe& seed) {
  return call<Attention>(needs_node(q, k, v), q, k, v, cu_q, cu, max_q, max, dropout_p, scale, seed);
}

struct PackedAttention : Function<PackedAttention> {
  static const auto& op() {
    static const auto op = find<Three(const Tensor&, const Tensor&, SymInt, double, double, const Maybe&)>(
        "bertnli::varlen_attention_packed");
    return op;
  }
  static variable_list forward(AutogradContext* ctx, const Tensor& qkv, const Tensor& cu, const SymInt& max,
                               double dropout_p, double scale, const Maybe& seed) {
    const Three outputs = run<PackedAttention>(qkv, cu, max, dropout_p, scale, seed);
    const auto& [out, weight_sum, lse] = outputs;
    ctx->save_for_backward({qkv, out, weight_sum, lse, cu, seed.value_or(Tensor())});
    ctx->saved_data["max"] = max;
    ctx->saved_data["dropout_p"] = dropout_p;
    ctx->saved_data["scale"] = scale;
    return first_of(ctx, outputs);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto op =
        find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, SymInt,
                    double, double, const Maybe&)>("bertnli::varlen_attention_packed_backward");
    if (!gradients[0].defined()) return variable_list(6);
    const variable_list s = ctx->get_saved_variables();
    auto& numbers = ctx->saved_data;
    return {op.call(gradients[0], s[0], s[1], s[2], s[3], s[4], numbers["max"].toSymInt(),
                    numbers["dropout_p"].toDouble(), numbers["scale"].toDouble(), maybe(s[5])),
            {},
            {},
            {},
            {},
            {}};
  }
};
Three packed_attention(const Tensor& qkv, const Tensor& cu, SymInt max, double dropout_p, double scale,
                       const Maybe& seed) {
  return call<PackedAttention>(needs_node(qkv), qkv, cu, max, dropout_p, scale, seed);
}

// ---- row by row ----

struct AddNorm : Function<AddNorm> {
  static const auto& op() {
    static const auto op = find<Three(const Tensor&, const Tensor&, const Maybe&, const Tensor&, const Tensor&, double,
                                      double, const Maybe&)>("bertnli::add_norm");
    return op;
  }
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& y, const Maybe& y_bias,
                               const Tensor& weight, const Tensor& bias, double eps, double dropout_p,
                               const Maybe& seed) {
    const Three outputs = run<AddNorm>(x, y, y_bias, weight, bias, eps, dropout_p, seed);
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
Three add_norm(const Tensor& x, const Tensor& y, const Maybe& y_bias, const Tensor& weight, const Tensor& bias,
               double eps, double dropout_p, const Maybe& seed) {
  return call<AddNorm>(needs_node(x, y, y_bias, weight, bias), x, y, y_bias, weight, bias, eps, dropout_p, seed);
}

struct Linear : Function<Linear> {
  static const auto& op() {
    static const auto op = find<Tensor(const Tensor&, const Tensor&, const Maybe&)>("bertnli::linear");
    return op;
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Maybe& bias) {
    // Each gradient takes the other factor.
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    if (bias.has_value() && bias->requires_grad()) ctx->saved_data["bias"] = bias->scalar_type();
    return run<Linear>(x, weight, bias);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto op = find<Two(const Tensor&, const Maybe&, const Maybe&)>("bertnli::linear_backward");
    const variable_list s = ctx->get_saved_variables();
    const Tensor &dout = gradients[0], &x = s[0], &weight = s[1];
    const bool x_wanted = ctx->needs_input_grad(0), weight_wanted = ctx->needs_input_grad(1);
    variable_list found(3);
    if (at::GradMode::is_enabled()) {  // PyTorch's products, which have gradients of their own
      if (x_wanted) found[0] = at::mm(dout, weight);
      if (weight_wanted) found[1] = at::mm(dout.t(), x);
    } else if (x_wanted || weight_wanted) {
      const auto [dx, dweight] = op.call(dout, weight_wanted ? Maybe(x) : Maybe(), x_wanted ? Maybe(weight) : Maybe());
      if (x_wanted) found[0] = dx;
      if (weight_wanted) found[1] = dweight;
    }
    const auto bias = ctx->saved_data.find("bias");  // there is no third input to ask about without one
    if (bias != ctx->saved_data.end()) found[2] = dout.sum({0}, false, bias->second.toScalarType());
    return found;
  }
};
Tensor linear(const Tensor& x, const Tensor& weight, const Maybe& bias) {
  return call<Linear>(needs_node(x, weight, bias), x, weight, bias);
}

struct BiasAct : Function<BiasAct> {
  static const auto& op() {
    static const auto op = find<Tensor(const Tensor&, const Tensor&, c10::string_view)>("bertnli::bias_act");
    return op;
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& bias, const std::string& kind) {
    ctx->save_for_backward({x, bias});
    ctx->saved_data["kind"] = kind;
    return run<BiasAct>(x, bias, kind);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto op =
        find<Two(const Tensor&, const Tensor&, const Tensor&, c10::string_view)>("bertnli::bias_act_backward");
    const variable_list s = ctx->get_saved_variables();
    const auto [dx, dbias] = op.call(gradients[0], s[0], s[1], ctx->saved_data["kind"].toStringRef());
    return {dx, dbias, {}};
  }
};
Tensor bias_act(const Tensor& x, const Tensor& bias, c10::string_view kind) {
  return call<BiasAct>(needs_node(x, bias), x, bias, std::string(kind));
}

// The gradients of three tables from that of the sum of their rows; undefined where none is wanted.
variable_list table_gradients(AutogradContext* ctx, const Tensor& dout, const Tensor& ids, const Tensor& segments,
                              const Tensor& positions) {
  static const auto op =
      find<Three(const Tensor&, const Tensor&, const Tensor&, const Tensor&, SymInt, SymInt, SymInt, bool, bool, bool)>(
          "bertnli::embed_backward");
  const std::array<bool, 3> wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2)};
  if (!(wanted[0] || wanted[1] || wanted[2])) return variable_list(3);
  std::vector<SymInt> rows = ctx->saved_data["rows"].toSymIntVector();
  const SymInt tokens = rows[0];
  const bool sparse = ctx->saved_data["sparse"].toBool() && wanted[0];
  Tensor distinct, slots = ids;
  if (sparse) {
    std::tie(distinct, slots, std::ignore) = at::_unique2(ids, true, true);
    slots = slots.to(at::kInt);
    rows[0] = distinct.sym_size(0);
  }
  auto [token, segment, position] =
      op.call(dout, slots, segments, positions, rows[0], rows[1], rows[2], wanted[0], wanted[1], wanted[2]);
  if (sparse)
    token = at::_sparse_coo_tensor_unsafe_symint(distinct.to(at::kLong).unsqueeze(0), token, {tokens, dout.sym_size(1)},
                                                 token.options().layout(at::kSparse), true);
  return {wanted[0] ? token : Tensor(), wanted[1] ? segment : Tensor(), wanted[2] ? position : Tensor()};
}
void save_tables(AutogradContext* ctx, const Tensor& token, const Tensor& segment, const Tensor& position,
                 bool sparse) {
  ctx->saved_data["rows"] = std::vector<SymInt>{token.sym_size(0), segment.sym_size(0), position.sym_size(0)};
  ctx->saved_data["sparse"] = sparse;
}

struct Embed : Function<Embed> {
  static const auto& op() {
    static const auto op =
        find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool)>(
            "bertnli::embed");
    return op;
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& token, const Tensor& segment, const Tensor& position,
                        const Tensor& ids, const Tensor& segments, const Tensor& positions, bool sparse) {
    ctx->save_for_backward({ids, segments, positions});
    save_tables(ctx, token, segment, position, sparse);
    return run<Embed>(token, segment, position, ids, segments, positions, sparse);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list s = ctx->get_saved_variables();
    variable_list found = table_gradients(ctx, gradients[0], s[0], s[1], s[2]);
    found.resize(7);
    return found;
  }
};
Tensor embed(const Tensor& token, const Tensor& segment, const Tensor& position, const Tensor& ids,
             const Tensor& segments, const Tensor& positions, bool sparse) {
  return call<Embed>(needs_node(token, segment, position), token, segment, position, ids, segments, positions, sparse);
}

struct EmbedNorm : Function<EmbedNorm> {
  static const auto& op() {
    static const auto op =
        find<Three(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                   const Tensor&, const Tensor&, double, double, const Maybe&, at::ScalarType, bool)>(
            "bertnli::embed_norm");
    return op;
  }
  static variable_list forward(AutogradContext* ctx, const Tensor& token, const Tensor& segment, const Tensor& position,
                               const Tensor& ids, const Tensor& segments, const Tensor& positions, const Tensor& weight,
                               const Tensor& bias, double eps, double dropout_p, const Maybe& seed,
                               at::ScalarType dtype, bool sparse) {
    const Three outputs = run<EmbedNorm>(token, segment, position, ids, segments, positions, weight, bias, eps,
                                         dropout_p, seed, dtype, sparse);
    const auto& [out, mean, rstd] = outputs;
    ctx->save_for_backward(
        {token, segment, position, ids, segments, positions, weight, bias, mean, rstd, seed.value_or(Tensor())});
    ctx->saved_data["dropout_p"] = dropout_p;
    save_tables(ctx, token, segment, position, sparse);
    return first_of(ctx, outputs);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static const auto op =
        find<Three(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                   const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, const Maybe&)>(
            "bertnli::embed_norm_backward");
    if (!gradients[0].defined()) return variable_list(13);
    const variable_list s = ctx->get_saved_variables();
    const auto [dz, dweight, dbias] = op.call(gradients[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9],
                                              ctx->saved_data["dropout_p"].toDouble(), maybe(s[10]));
    variable_list found = table_gradients(ctx, dz, s[3], s[4], s[5]);
    for (Tensor& gradient : found)
      if (gradient.defined()) gradient = gradient.to(s[0].scalar_type());
    found.resize(6);
    found.insert(found.end(), {dweight, dbias});
    found.resize(13);
    return found;
  }
};
Three embed_norm(const Tensor& token, const Tensor& segment, const Tensor& position, const Tensor& ids,
                 const Tensor& segments, const Tensor& positions, const Tensor& weight, const Tensor& bias, double eps,
                 double dropout_p, const Maybe& seed, at::ScalarType dtype, bool sparse) {
  return call<EmbedNorm>(needs_node(token, segment, position, weight, bias), token, segment, position, ids, segments,
                         positions, weight, bias, eps, dropout_p, seed, dtype, sparse);
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, Autograd, m) {
  m.impl("varlen_attention", attention);
  m.impl("varlen_attention_packed", packed_attention);
  m.impl("add_norm", add_norm);
  m.impl("linear", linear);
  m.impl("bias_act", bias_act);
  m.impl("embed", embed);
  m.impl("embed_norm", embed_norm);
}

}  // namespace bertnli
