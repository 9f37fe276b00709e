// Varlen attention: bertnli::varlen_attention and its packed form, [T, 3, heads, d] for queries, keys and values.
#include "autograd.h"
#include "checks.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

TORCH_LIBRARY_FRAGMENT(bertnli, m) {
  m.def(
      "varlen_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens, SymInt max_seqlen_q, "
      "SymInt max_seqlen, float dropout_p, float scale, Tensor? seed) -> (Tensor out, Tensor weight_sum, Tensor lse)");
  m.def(
      "varlen_attention_backward(Tensor dout, Tensor? dweight_sum, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor weight_sum, Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens, SymInt max_seqlen_q, SymInt max_seqlen, "
      "float dropout_p, float scale, Tensor? seed) -> (Tensor dq, Tensor dk, Tensor dv)");
  m.def(
      "varlen_attention_packed(Tensor qkv, Tensor cu_seqlens, SymInt max_seqlen, float dropout_p, float scale, "
      "Tensor? seed) -> (Tensor out, Tensor weight_sum, Tensor lse)");
  m.def(
      "varlen_attention_packed_backward(Tensor dout, Tensor qkv, Tensor out, Tensor weight_sum, Tensor lse, "
      "Tensor cu_seqlens, SymInt max_seqlen, float dropout_p, float scale, Tensor? seed) -> Tensor");
}

namespace bertnli {
namespace {

// ---- checks ----

Rows rows_of(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1)}; }

Tensor with_contiguous_width(const Tensor& x) { return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous(); }

struct Call {
  Attention attention{};
  std::vector<int32_t> cu_q, cu_k;  // `attention` points to them
  int64_t batch;
  Type type;
};

Call checked_call(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
                  int64_t max_q, int64_t max_k, double dropout_p, double scale, const std::optional<Tensor>& seed) {
  Call call;
  call.type = type_of(q, "varlen_attention", "q");
  TORCH_CHECK(q.dim() == 3, "q must have shape [query tokens, heads, d]; found ", q.sizes());
  TORCH_CHECK(k.dim() == 3, "k must have shape [tokens, kv_heads, d]; found ", k.sizes());
  TORCH_CHECK(v.dim() == 3, "v must have shape [tokens, kv_heads, d_v]; found ", v.sizes());
  for (const auto& [x, name] : {std::pair(&k, "k"), std::pair(&v, "v")}) {
    TORCH_CHECK(x->scalar_type() == q.scalar_type(), name, " must have q's dtype ", q.dtype(), "; found ", x->dtype());
    TORCH_CHECK(x->device() == q.device(), name, " must lie on q's device ", q.device(), "; found ", x->device());
  }
  TORCH_CHECK(k.size(2) == q.size(2), "k must have q's width ", q.size(2), "; found ", k.size(2));
  TORCH_CHECK(v.size(0) == k.size(0) && v.size(1) == k.size(1), "v must have k's tokens and heads [", k.size(0), ", ",
              k.size(1), "]; found ", v.sizes());
  TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "k's number of heads must divide q's, ", q.size(1),
              "; found ", k.size(1));
  TORCH_CHECK(scale > 0 && scale < std::numeric_limits<float>::max(), "scale must be positive and finite; found ",
              scale);
  call.cu_k = checked_cu_seqlens(cu_k, "cu_seqlens", k.size(0), max_k, "max_seqlen");
  call.cu_q = checked_cu_seqlens(cu_q, "cu_seqlens_q", q.size(0), max_q, "max_seqlen_q");
  TORCH_CHECK(call.cu_q.size() == call.cu_k.size(), "cu_seqlens_q must have cu_seqlens's length ", call.cu_k.size(),
              "; found ", call.cu_q.size());
  call.batch = int64_t(call.cu_k.size()) - 1;

  Attention& a = call.attention;
  a.heads = q.size(1);
  a.kv_heads = k.size(1);
  a.d = q.size(2);
  a.d_v = v.size(2);
  a.cu_q = call.cu_q.data();
  a.cu_k = call.cu_k.data();
  a.max_q = 0, a.max_k = 0;  // the lengths found, not the bounds given: scratch is sized by them
  for (int64_t b = 0; b < call.batch; b++) {
    a.max_q = std::max<int64_t>(a.max_q, a.cu_q[b + 1] - a.cu_q[b]);
    a.max_k = std::max<int64_t>(a.max_k, a.cu_k[b + 1] - a.cu_k[b]);
  }
  a.scale = scale;
  a.dropout = checked_dropout(dropout_p, seed, "q");
  return call;
}

// ---- work ----

// A sequence's heads lie side by side, so one thread takes them all where there are sequences enough.
void run_tasks(const Call& call, void (*task)(const Attention&, int64_t, int64_t, void*)) {
  const Attention& a = call.attention;
  const size_t bytes = kernels().attention[call.type].scratch_bytes(a);
  const int64_t heads = call.batch >= 8 * at::get_num_threads() ? a.kv_heads : 1, shares = a.kv_heads / heads;
  const auto cost = [&](int64_t i) {
    const int64_t b = i / shares, queries = a.cu_q[b + 1] - a.cu_q[b], keys = a.cu_k[b + 1] - a.cu_k[b];
    return queries * keys * (a.heads / shares) * (a.d + a.d_v);
  };
  share_longest_first(call.batch * shares, cost, [&](int64_t i) {
    const Scratch scratch(bytes);
    for (int64_t h = 0; h < heads; h++) task(a, i / shares, i % shares * heads + h, scratch.data());
  });
}

// What both passes read or write, in tensors that the caller keeps.
void point_to(Attention& a, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
              const Tensor& weight_sum, const Tensor& lse) {
  a.q = rows_of(q);
  a.k = rows_of(k);
  a.v = rows_of(v);
  a.out = rows_of(out);
  a.weight_sum = weight_sum.data_ptr();
  a.lse = lse.data_ptr();
}

std::tuple<Tensor, Tensor, Tensor> varlen_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                                    const Tensor& cu_q, const Tensor& cu_k, int64_t max_q,
                                                    int64_t max_k, double dropout_p, double scale,
                                                    const std::optional<Tensor>& seed) {
  Call call = checked_call(q_in, k_in, v_in, cu_q, cu_k, max_q, max_k, dropout_p, scale, seed);
  const Tensor q = with_contiguous_width(q_in), k = with_contiguous_width(k_in), v = with_contiguous_width(v_in);
  const auto row_options = q.options().dtype(computed(call.type));
  Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  Tensor weight_sum = at::empty({q.size(0), q.size(1)}, row_options),
         lse = at::empty({q.size(0), q.size(1)}, row_options);
  point_to(call.attention, q, k, v, out, weight_sum, lse);
  run_tasks(call, kernels().attention[call.type].forward);
  return {out, weight_sum, lse};
}

// Writes the gradients into dq, dk and dv, tensors or views of the inputs' shapes.
void backward_into(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout_in,
                   const std::optional<Tensor>& dweight_sum_in, const Tensor& q_in, const Tensor& k_in,
                   const Tensor& v_in, const Tensor& out_in, const Tensor& weight_sum_in, const Tensor& lse_in,
                   const Tensor& cu_q, const Tensor& cu_k, int64_t max_q, int64_t max_k, double dropout_p, double scale,
                   const std::optional<Tensor>& seed) {
  Call call = checked_call(q_in, k_in, v_in, cu_q, cu_k, max_q, max_k, dropout_p, scale, seed);
  const Tensor q = with_contiguous_width(q_in), k = with_contiguous_width(k_in), v = with_contiguous_width(v_in);
  const int64_t queries = q.size(0), heads = q.size(1);
  const Tensor out = checked_saved(out_in, "out", {queries, heads, v.size(2)}, q.scalar_type());
  const Tensor weight_sum = checked_saved(weight_sum_in, "weight_sum", {queries, heads}, computed(call.type));
  const Tensor lse = checked_saved(lse_in, "lse", {queries, heads}, computed(call.type));
  checked_gradient_of(out, dout_in);
  const Tensor dout = with_contiguous_width(dout_in);
  Tensor dweight_sum;
  if (dweight_sum_in.has_value())
    dweight_sum = checked_saved(*dweight_sum_in, "the gradient of weight_sum", {queries, heads}, computed(call.type));
  Attention& a = call.attention;
  point_to(a, q, k, v, out, weight_sum, lse);
  a.dout = rows_of(dout);
  a.dq = rows_of(dq);
  a.dk = rows_of(dk);
  a.dv = rows_of(dv);
  a.dweight_sum = dweight_sum.defined() ? dweight_sum.const_data_ptr() : nullptr;
  run_tasks(call, kernels().attention[call.type].backward);
}

std::tuple<Tensor, Tensor, Tensor> varlen_attention_backward(
    const Tensor& dout, const std::optional<Tensor>& dweight_sum, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out, const Tensor& weight_sum, const Tensor& lse, const Tensor& cu_q, const Tensor& cu_k,
    int64_t max_q, int64_t max_k, double dropout_p, double scale, const std::optional<Tensor>& seed) {
  const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  const Tensor dv = at::empty(v.sizes(), v.options());
  backward_into(dq, dk, dv, dout, dweight_sum, q, k, v, out, weight_sum, lse, cu_q, cu_k, max_q, max_k, dropout_p,
                scale, seed);
  return {dq, dk, dv};
}

void check_packed(const Tensor& qkv) {
  TORCH_CHECK(qkv.dim() == 4 && qkv.size(1) == 3, "qkv must have shape [tokens, 3, heads, d]; found ", qkv.sizes());
}

std::tuple<Tensor, Tensor, Tensor> varlen_attention_packed(const Tensor& qkv, const Tensor& cu, int64_t max_seqlen,
                                                           double dropout_p, double scale,
                                                           const std::optional<Tensor>& seed) {
  check_packed(qkv);
  return varlen_attention(qkv.select(1, 0), qkv.select(1, 1), qkv.select(1, 2), cu, cu, max_seqlen, max_seqlen,
                          dropout_p, scale, seed);
}

Tensor varlen_attention_packed_backward(const Tensor& dout, const Tensor& qkv, const Tensor& out,
                                        const Tensor& weight_sum, const Tensor& lse, const Tensor& cu,
                                        int64_t max_seqlen, double dropout_p, double scale,
                                        const std::optional<Tensor>& seed) {
  check_packed(qkv);
  const Tensor dqkv = at::empty(qkv.sizes(), qkv.options());
  backward_into(dqkv.select(1, 0), dqkv.select(1, 1), dqkv.select(1, 2), dout, std::nullopt, qkv.select(1, 0),
                qkv.select(1, 1), qkv.select(1, 2), out, weight_sum, lse, cu, cu, max_seqlen, max_seqlen, dropout_p,
                scale, seed);
  return dqkv;
}

// ---- autograd ----

struct AttentionNode : Function<AttentionNode> {
  static const auto& op() {
    static const auto op = find<Three(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, SymInt,
                                      SymInt, double, double, const Maybe&)>("bertnli::varlen_attention");
    return op;
  }
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& cu_q, const Tensor& cu, const SymInt& max_q, const SymInt& max,
                               double dropout_p, double scale, const Maybe& seed) {
    const auto [out, weight_sum, lse] = run<AttentionNode>(q, k, v, cu_q, cu, max_q, max, dropout_p, scale, seed);
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
Three autograd_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu,
                         SymInt max_q, SymInt max, double dropout_p, double scale, const Maybe& seed) {
  return call<AttentionNode>(needs_node(q, k, v), q, k, v, cu_q, cu, max_q, max, dropout_p, scale, seed);
}

struct PackedAttentionNode : Function<PackedAttentionNode> {
  static const auto& op() {
    static const auto op = find<Three(const Tensor&, const Tensor&, SymInt, double, double, const Maybe&)>(
        "bertnli::varlen_attention_packed");
    return op;
  }
  static variable_list forward(AutogradContext* ctx, const Tensor& qkv, const Tensor& cu, const SymInt& max,
                               double dropout_p, double scale, const Maybe& seed) {
    const Three outputs = run<PackedAttentionNode>(qkv, cu, max, dropout_p, scale, seed);
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
Three autograd_packed(const Tensor& qkv, const Tensor& cu, SymInt max, double dropout_p, double scale,
                      const Maybe& seed) {
  return call<PackedAttentionNode>(needs_node(qkv), qkv, cu, max, dropout_p, scale, seed);
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("varlen_attention", varlen_attention);
  m.impl("varlen_attention_backward", varlen_attention_backward);
  m.impl("varlen_attention_packed", varlen_attention_packed);
  m.impl("varlen_attention_packed_backward", varlen_attention_packed_backward);
}

TORCH_LIBRARY_IMPL(bertnli, Autograd, m) {
  m.impl("varlen_attention", autograd_attention);
  m.impl("varlen_attention_packed", autograd_packed);
}

}  // namespace bertnli
