// Varlen attention on CPU tensors: argument checks and the division of the work among threads.
#include "tensors.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

namespace bertnli {
namespace {

using at::Tensor;

// ---- checks ----

Rows rows_of(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1)}; }

Tensor with_contiguous_width(const Tensor& x) { return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous(); }

struct Call {
  Attention attention{};
  Tensor cu_q, cu_k;  // keep what `attention` points to
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
  TORCH_CHECK(cu_q.size(0) == cu_k.size(0), "cu_seqlens_q must have cu_seqlens's length ", cu_k.size(0), "; found ",
              cu_q.size(0));
  call.batch = cu_k.size(0) - 1;

  Attention& a = call.attention;
  a.heads = q.size(1);
  a.kv_heads = k.size(1);
  a.d = q.size(2);
  a.d_v = v.size(2);
  a.cu_q = call.cu_q.const_data_ptr<int32_t>();
  a.cu_k = call.cu_k.const_data_ptr<int32_t>();
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

void run(const Call& call, const AttentionKernel& kernel, bool backward) {
  const Attention& a = call.attention;
  const auto work = backward ? kernel.backward : kernel.forward;
  const size_t bytes = kernel.scratch_bytes(a);
  const int64_t tasks = call.batch * a.kv_heads;
  int64_t products = 0;
  for (int64_t b = 0; b < call.batch; b++) products += int64_t(a.cu_q[b + 1] - a.cu_q[b]) * (a.cu_k[b + 1] - a.cu_k[b]);
  products *= a.heads * (a.d + a.d_v);
  if (tasks < 2 || products < 200'000 || at::get_num_threads() == 1 || at::in_parallel_region()) {
    void* scratch = scratch_memory(bytes);
    for (int64_t b = 0; b < call.batch; b++)
      for (int64_t h = 0; h < a.kv_heads; h++) work(a, b, h, scratch);
    return;
  }
  // Longest first, each thread taking the next: no thread is left with a long sequence at the end. A sequence's heads
  // lie side by side, so one thread takes them all where there are sequences enough.
  const int64_t threads = at::get_num_threads();
  const int64_t heads = call.batch >= 8 * threads ? a.kv_heads : 1, pieces = tasks / heads;
  std::vector<int32_t> order(call.batch);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t x, int32_t y) {
    return int64_t(a.cu_q[x + 1] - a.cu_q[x]) * (a.cu_k[x + 1] - a.cu_k[x]) >
           int64_t(a.cu_q[y + 1] - a.cu_q[y]) * (a.cu_k[y + 1] - a.cu_k[y]);
  });
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min(threads, pieces), 1, [&](int64_t, int64_t) {
    void* scratch = scratch_memory(bytes);
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
      for (int64_t task = piece * heads; task < (piece + 1) * heads; task++)
        work(a, order[task / a.kv_heads], task % a.kv_heads, scratch);
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

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                           const Tensor& cu_q, const Tensor& cu_k, int64_t max_q, int64_t max_k,
                                           double dropout_p, double scale, const std::optional<Tensor>& seed) {
  Call call = checked_call(q_in, k_in, v_in, cu_q, cu_k, max_q, max_k, dropout_p, scale, seed);
  const Tensor q = with_contiguous_width(q_in), k = with_contiguous_width(k_in), v = with_contiguous_width(v_in);
  const auto row_options = q.options().dtype(call.type == Type::f64 ? at::kDouble : at::kFloat);
  Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  Tensor weight_sum = at::empty({q.size(0), q.size(1)}, row_options),
         lse = at::empty({q.size(0), q.size(1)}, row_options);
  point_to(call.attention, q, k, v, out, weight_sum, lse);
  run(call, attention_kernel(call.type), false);
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
  TORCH_CHECK(dout_in.sizes() == out_in.sizes() && dout_in.scalar_type() == out_in.scalar_type(),
              "the gradient of the output must have the output's dtype and shape ", out_in.dtype(), " ", out_in.sizes(),
              "; found ", dout_in.dtype(), " ", dout_in.sizes());
  const Tensor dout = with_contiguous_width(dout_in), out = out_in.contiguous();
  const Tensor weight_sum = weight_sum_in.contiguous(), lse = lse_in.contiguous();
  Tensor dweight_sum;
  if (dweight_sum_in.has_value()) dweight_sum = dweight_sum_in->to(weight_sum.scalar_type()).contiguous();
  Attention& a = call.attention;
  point_to(a, q, k, v, out, weight_sum, lse);
  a.dout = rows_of(dout);
  a.dq = rows_of(dq);
  a.dk = rows_of(dk);
  a.dv = rows_of(dv);
  a.dweight_sum = dweight_sum.defined() ? dweight_sum.const_data_ptr() : nullptr;
  run(call, attention_kernel(call.type), true);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dout, const std::optional<Tensor>& dweight_sum,
                                            const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                            const Tensor& weight_sum, const Tensor& lse, const Tensor& cu_q,
                                            const Tensor& cu_k, int64_t max_q, int64_t max_k, double dropout_p,
                                            double scale, const std::optional<Tensor>& seed) {
  const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  const Tensor dv = at::empty(v.sizes(), v.options());
  backward_into(dq, dk, dv, dout, dweight_sum, q, k, v, out, weight_sum, lse, cu_q, cu_k, max_q, max_k, dropout_p,
                scale, seed);
  return {dq, dk, dv};
}

// ---- queries, keys and values in one tensor [T, 3, heads, d] ----

void check_packed(const Tensor& qkv) {
  TORCH_CHECK(qkv.dim() == 4 && qkv.size(1) == 3, "qkv must have shape [tokens, 3, heads, d]; found ", qkv.sizes());
}

std::tuple<Tensor, Tensor, Tensor> packed_forward(const Tensor& qkv, const Tensor& cu, int64_t max_seqlen,
                                                  double dropout_p, double scale, const std::optional<Tensor>& seed) {
  check_packed(qkv);
  return forward(qkv.select(1, 0), qkv.select(1, 1), qkv.select(1, 2), cu, cu, max_seqlen, max_seqlen, dropout_p, scale,
                 seed);
}

Tensor packed_backward(const Tensor& dout, const Tensor& qkv, const Tensor& out, const Tensor& weight_sum,
                       const Tensor& lse, const Tensor& cu, int64_t max_seqlen, double dropout_p, double scale,
                       const std::optional<Tensor>& seed) {
  check_packed(qkv);
  const Tensor dqkv = at::empty(qkv.sizes(), qkv.options());
  backward_into(dqkv.select(1, 0), dqkv.select(1, 1), dqkv.select(1, 2), dout, std::nullopt, qkv.select(1, 0),
                qkv.select(1, 1), qkv.select(1, 2), out, weight_sum, lse, cu, cu, max_seqlen, max_seqlen, dropout_p,
                scale, seed);
  return dqkv;
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("varlen_attention", forward);
  m.impl("varlen_attention_backward", backward);
  m.impl("varlen_attention_packed", packed_forward);
  m.impl("varlen_attention_packed_backward", packed_backward);
}

}  // namespace bertnli
