// What the operators' autograd nodes share. A node calls the operator's `_backward` through the dispatcher, so it is
// the same on every device. (In Python, a call and its gradient would take a tenth of a millisecond each, a fifth of a
// step of sixteen pairs.)
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#pragma GCC diagnostic pop

#include <optional>
#include <tuple>
#include <type_traits>

namespace bertnli {

using at::Tensor;
using c10::SymInt;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Maybe = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline Maybe maybe(const Tensor& x) { return x.defined() ? Maybe(x) : std::nullopt; }

// What `forward` returns where only the first output has a gradient.
inline variable_list first_of(AutogradContext* ctx, const Three& outputs) {
  const auto& [out, one, two] = outputs;
  ctx->mark_non_differentiable({one, two});
  ctx->set_materialize_grads(false);
  return {out, one, two};
}

// Forward-mode derivatives do not ask whether gradients are on; the node refuses them.
inline bool has_gradient(const Tensor& x) {
  return (x.requires_grad() && at::GradMode::is_enabled()) || x._fw_grad(0).defined();
}
inline bool has_gradient(const Maybe& x) { return x.has_value() && x->defined() && has_gradient(*x); }
template <class... T>
bool needs_node(const T&... tensors) {
  return (has_gradient(tensors) || ...);
}

// The operator of Node, below the gradients.
template <class Node, class... Args>
auto run(const Args&... args) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return Node::op().call(args...);
}

// The same with a node where one of its inputs has a gradient.
template <class Node, class... Args>
auto call(bool node, const Args&... args) -> decltype(Node::op().call(args...)) {
  if (!node) return run<Node>(args...);
  auto outputs = Node::apply(args...);
  if constexpr (std::is_same_v<decltype(outputs), Tensor>) {
    return outputs;
  } else {
    // Compiled autograd refuses a node that remembers which outputs have none.
    if (auto* const made = dynamic_cast<torch::autograd::CppNode<Node>*>(outputs[0].grad_fn().get()))
      made->ctx_.mark_non_differentiable({});
    return {outputs[0], outputs[1], outputs[2]};
  }
}

}  // namespace bertnli
