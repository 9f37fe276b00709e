// Embedding sums: bertnli::embed, and bertnli::embed_norm with LayerNorm and dropout.
#include "autograd.h"
#include "checks.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/_unique2.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <vector>

TORCH_LIBRARY_FRAGMENT(bertnli, m) {
  m.def(
      "embed(Tensor token_table, Tensor segment_table, Tensor position_table, Tensor input_ids, Tensor segment_ids, "
      "Tensor positions, bool sparse) -> Tensor");
  m.def(
      "embed_backward(Tensor dout, Tensor input_ids, Tensor segment_ids, Tensor positions, SymInt token_rows, "
      "SymInt segment_rows, SymInt position_rows, bool token_wanted, bool segment_wanted, bool position_wanted) -> "
      "(Tensor dtoken, Tensor dsegment, Tensor dposition)");
  m.def(
      "embed_norm(Tensor token_table, Tensor segment_table, Tensor position_table, Tensor input_ids, "
      "Tensor segment_ids, Tensor positions, Tensor weight, Tensor bias, float eps, float dropout_p, Tensor? seed, "
      "ScalarType dtype, bool sparse) -> (Tensor out, Tensor mean, Tensor rstd)");
  m.def(
      "embed_norm_backward(Tensor dout, Tensor token_table, Tensor segment_table, Tensor position_table, "
      "Tensor input_ids, Tensor segment_ids, Tensor positions, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, "
      "float dropout_p, Tensor? seed) -> (Tensor dz, Tensor dweight, Tensor dbias)");
}

namespace bertnli {
namespace {

// Copies ids [tokens] to `to`, each below `rows`.
void copy_ids(const Tensor& ids, const char* name, const char* what, int64_t tokens, int64_t rows, const char* before,
              const char* after, int32_t* to) {
  TORCH_CHECK(ids.dim() == 1 && ids.size(0) == tokens, name, " must have shape [", tokens, "]; found ", ids.sizes());
  TORCH_CHECK(ids.scalar_type() == at::kInt, name, " must be int32; found ", ids.dtype());
  TORCH_CHECK(ids.device().is_cpu(), name, " must lie on the tables' device, the CPU; found ", ids.device());
  const Tensor dense = ids.contiguous();
  std::copy_n(dense.const_data_ptr<int32_t>(), tokens, to);
  for (int64_t t = 0; t < tokens; t++)
    TORCH_CHECK_INDEX(to[t] >= 0 && to[t] < rows, what, " ", to[t], " lies outside the model's ", before, rows, after);
}

}  // namespace

EmbedCall checked_embed(const Tensor& ids, const Tensor& segments, const Tensor& positions, int64_t token_rows,
                        int64_t segment_rows, int64_t position_rows) {
  EmbedCall call;
  const int64_t tokens = ids.dim() ? ids.size(0) : 0;
  TORCH_CHECK(tokens <= std::numeric_limits<int32_t>::max(), "a batch must have fewer than 2^31 tokens; found ",
              tokens);
  call.ids.resize(3 * tokens);
  int32_t *const id = call.ids.data(), *const segment = id + tokens, *const position = segment + tokens;
  copy_ids(ids, "input_ids", "token id", tokens, token_rows, "vocabulary of ",
           "; is this the tokenizer that the model was trained with?", id);
  copy_ids(segments, "segment_ids", "segment id", tokens, segment_rows, "", " segment embeddings", segment);
  copy_ids(positions, "positions", "position", tokens, position_rows, "", " position embeddings", position);
  call.args.ids = id, call.args.segments = segment, call.args.positions = position;
  call.args.tokens = tokens;
  return call;
}

namespace {

// The ids with the tables that they point into, which the caller keeps.
EmbedCall checked_tables(const Tensor& token_in, const Tensor& segment_in, const Tensor& position_in, const Tensor& ids,
                         const Tensor& segments, const Tensor& positions) {
  for (const auto& [table, name] : {std::pair(&token_in, "token_table"), std::pair(&segment_in, "segment_table"),
                                    std::pair(&position_in, "position_table")}) {
    TORCH_CHECK(table->dim() == 2 && table->size(1) == token_in.size(-1), name, " must have shape [rows, ",
                token_in.size(-1), "]; found ", table->sizes());
    TORCH_CHECK(table->scalar_type() == token_in.scalar_type(), name, " must have token_table's dtype ",
                token_in.dtype(), "; found ", table->dtype());
    TORCH_CHECK(table->device().is_cpu(), name, " must lie on the CPU; found ", table->device());
  }
  EmbedCall call = checked_embed(ids, segments, positions, token_in.size(0), segment_in.size(0), position_in.size(0));
  call.token = token_in.contiguous(), call.segment = segment_in.contiguous(), call.position = position_in.contiguous();
  Embed& a = call.args;
  a.token = call.token.const_data_ptr();
  a.segment = call.segment.const_data_ptr();
  a.position = call.position.const_data_ptr();
  a.width = call.token.size(1);
  return call;
}

Tensor embed(const Tensor& token, const Tensor& segment, const Tensor& position, const Tensor& ids,
             const Tensor& segments, const Tensor& positions, bool) {
  const Type type = type_of(token, "embed", "token_table");
  EmbedCall call = checked_tables(token, segment, position, ids, segments, positions);
  Embed& a = call.args;
  const Tensor out = at::empty({a.tokens, a.width}, token.options());
  a.out = out.data_ptr();
  const auto work = kernels().embedding[type][type].embed;
  share(a.tokens, kPerElement * double(a.width), [&](int64_t begin, int64_t end) { work(a, begin, end); });
  return out;
}

// The sums of the rows of x by key, an int32 below `keys` for each: [keys, width] in the computed type.
Tensor summed_by(const std::vector<int32_t>& key, int64_t keys, const Tensor& x, Type type) {
  const int64_t rows = x.size(0), width = x.size(1);
  const Tensor sums = fresh_zeros(keys, width, computed(type));
  if (width == 0) return sums;                            // else the counts of the keys are no larger than the sums
  const Tensor counts = at::zeros({keys + 1}, at::kInt);  // too many are PyTorch's error of memory
  int32_t* const places = counts.mutable_data_ptr<int32_t>();
  std::vector<int32_t> order(rows), group(rows);  // a counting sort
  for (const int32_t k : key) places[k + 1]++;
  for (int64_t k = 0; k < keys; k++) places[k + 1] += places[k];
  for (int64_t i = 0; i < rows; i++) {
    const int32_t to = places[key[i]]++;
    order[to] = int32_t(i), group[to] = key[i];
  }
  const RowSums a{x.const_data_ptr(), order.data(), group.data(), rows, width, sums.data_ptr()};
  const auto work = kernels().embedding[type][type].sum_rows;
  share(rows, kPerElement * double(width), [&](int64_t begin, int64_t end) { work(a, begin, end); });
  return sums;
}

// Gradients of the tables, whose numbers of rows are given; [0, width] for a table of which none is wanted.
std::tuple<Tensor, Tensor, Tensor> embed_backward(const Tensor& dout_in, const Tensor& ids, const Tensor& segments,
                                                  const Tensor& positions, int64_t token_rows, int64_t segment_rows,
                                                  int64_t position_rows, bool token_wanted, bool segment_wanted,
                                                  bool position_wanted) {
  const Type type = type_of(dout_in, "embed", "the gradient of the output");
  const EmbedCall call = checked_embed(ids, segments, positions, token_rows, segment_rows, position_rows);
  const int64_t tokens = call.args.tokens;
  TORCH_CHECK(dout_in.dim() == 2 && dout_in.size(0) == tokens, "the gradient of the output must have shape [", tokens,
              ", width]; found ", dout_in.sizes());
  const Tensor dout = dout_in.contiguous(), none = at::empty({0, dout.size(1)}, dout.options());
  const auto as = [&](const Tensor& x) { return x.to(dout.scalar_type()); };
  std::tuple<Tensor, Tensor, Tensor> gradients{none, none, none};
  if (token_wanted) {
    const std::vector<int32_t> key(call.args.ids, call.args.ids + tokens);
    std::get<0>(gradients) = as(summed_by(key, token_rows, dout, type));
  }
  if (segment_wanted || position_wanted) {  // few pairs of them occur: these are summed first
    const int32_t* position = call.args.positions;
    const int64_t reached = tokens ? *std::max_element(position, position + tokens) + 1 : 0;
    TORCH_CHECK(reached == 0 || segment_rows <= std::numeric_limits<int32_t>::max() / reached,
                "segment rows times positions must be below 2^31; found ", segment_rows, " times ", reached);
    std::vector<int32_t> key(tokens);
    for (int64_t t = 0; t < tokens; t++) key[t] = int32_t(position[t] * segment_rows + call.args.segments[t]);
    const Tensor pairs = summed_by(key, reached * segment_rows, dout, type);
    key.resize(pairs.size(0));
    const Type pairs_type = type == Type::f64 ? Type::f64 : Type::f32;
    if (segment_wanted) {
      for (size_t i = 0; i < key.size(); i++) key[i] = int32_t(i % segment_rows);
      std::get<1>(gradients) = as(summed_by(key, segment_rows, pairs, pairs_type));
    }
    if (position_wanted) {
      for (size_t i = 0; i < key.size(); i++) key[i] = int32_t(i / segment_rows);
      std::get<2>(gradients) = as(summed_by(key, position_rows, pairs, pairs_type));
    }
  }
  return gradients;
}

// ---- embedding + LayerNorm + dropout ----

struct EmbedNormCall {
  EmbedNorm args{};
  EmbedCall rows;
  Tensor weight, bias;
  Type type;
  EmbeddingKernels kernels;
};

EmbedNormCall checked_embed_norm(const Tensor& token, const Tensor& segment, const Tensor& position, const Tensor& ids,
                                 const Tensor& segments, const Tensor& positions, const Tensor& weight,
                                 const Tensor& bias, double dropout_p, const std::optional<Tensor>& seed,
                                 at::ScalarType dtype) {
  EmbedNormCall call;
  call.type = type_of(token, "embed_norm", "token_table");
  call.rows = checked_tables(token, segment, position, ids, segments, positions);
  TORCH_CHECK(token.size(1) > 0, "the tables' width must not be 0");
  TORCH_CHECK(dtype == token.scalar_type() || (call.type == Type::f32 && dtype == at::kBFloat16),
              "dtype must be the tables', ", token.dtype(), " (or bfloat16 where that is float32); found ", dtype);
  call.weight = checked_vector(weight, "weight", token, call.type);
  call.bias = checked_vector(bias, "bias", token, call.type);
  call.kernels = kernels().embedding[call.type][dtype == at::kBFloat16 ? Type::bf16 : call.type];
  EmbedNorm& a = call.args;
  a.rows = call.rows.args;
  a.weight = call.weight.const_data_ptr();
  a.bias = call.bias.const_data_ptr();
  a.dropout = checked_dropout(dropout_p, seed, "token_table");
  return call;
}

std::tuple<Tensor, Tensor, Tensor> embed_norm(const Tensor& token, const Tensor& segment, const Tensor& position,
                                              const Tensor& ids, const Tensor& segments, const Tensor& positions,
                                              const Tensor& weight, const Tensor& bias, double eps, double dropout_p,
                                              const std::optional<Tensor>& seed, at::ScalarType dtype, bool) {
  EmbedNormCall call =
      checked_embed_norm(token, segment, position, ids, segments, positions, weight, bias, dropout_p, seed, dtype);
  EmbedNorm& a = call.args;
  const Tensor out = at::empty({a.rows.tokens, a.rows.width}, token.options().dtype(dtype));
  const Tensor mean = at::empty({a.rows.tokens}, call.weight.options());
  const Tensor rstd = at::empty({a.rows.tokens}, call.weight.options());
  a.eps = eps;
  a.out = out.data_ptr();
  a.mean = mean.data_ptr();
  a.rstd = rstd.data_ptr();
  share(a.rows.tokens, kPerElement * double(a.rows.width), [&](int64_t begin, int64_t end) {
    call.kernels.embed_norm(a, begin, end, Scratch(row_scratch_bytes(a.rows.width)).data());
  });
  return {out, mean, rstd};
}

// Gradients of the embeddings' sum, in the computed type, and of weight and bias.
std::tuple<Tensor, Tensor, Tensor> embed_norm_backward(const Tensor& dout_in, const Tensor& token,
                                                       const Tensor& segment, const Tensor& position, const Tensor& ids,
                                                       const Tensor& segments, const Tensor& positions,
                                                       const Tensor& weight, const Tensor& bias, const Tensor& mean_in,
                                                       const Tensor& rstd_in, double dropout_p,
                                                       const std::optional<Tensor>& seed) {
  EmbedNormCall call = checked_embed_norm(token, segment, position, ids, segments, positions, weight, bias, dropout_p,
                                          seed, dout_in.scalar_type());
  EmbedNorm& a = call.args;
  const int64_t tokens = a.rows.tokens, width = a.rows.width;
  TORCH_CHECK(dout_in.dim() == 2 && dout_in.size(0) == tokens && dout_in.size(1) == width && dout_in.is_cpu(),
              "the gradient of the output must have shape [", tokens, ", ", width, "]; found ", dout_in.sizes());
  const Tensor dout = dout_in.contiguous(), mean = checked_saved(mean_in, "mean", {tokens}, computed(call.type));
  const Tensor rstd = checked_saved(rstd_in, "rstd", {tokens}, computed(call.type));
  const Tensor dz = at::empty({tokens, width}, call.weight.options());
  a.mean = mean.data_ptr();
  a.rstd = rstd.data_ptr();
  a.dout = dout.const_data_ptr();
  a.dz = dz.data_ptr();
  const Tensor sums = summed(tokens, width, 2, call.type, [&](int64_t begin, int64_t end, void* to) {
    call.kernels.embed_norm_backward(a, begin, end, to, Scratch(row_scratch_bytes(width)).data());
  });
  const auto row = [&](int i, const Tensor& like) { return sums[i].to(like.scalar_type(), false, true); };
  return {dz, row(0, weight), row(1, bias)};
}

// ---- autograd ----

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

struct EmbedNode : Function<EmbedNode> {
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
    return run<EmbedNode>(token, segment, position, ids, segments, positions, sparse);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list s = ctx->get_saved_variables();
    variable_list gradients_of_tables = table_gradients(ctx, gradients[0], s[0], s[1], s[2]);
    gradients_of_tables.resize(7);
    return gradients_of_tables;
  }
};
Tensor autograd_embed(const Tensor& token, const Tensor& segment, const Tensor& position, const Tensor& ids,
                      const Tensor& segments, const Tensor& positions, bool sparse) {
  return call<EmbedNode>(needs_node(token, segment, position), token, segment, position, ids, segments, positions,
                         sparse);
}

struct EmbedNormNode : Function<EmbedNormNode> {
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
    const Three outputs = run<EmbedNormNode>(token, segment, position, ids, segments, positions, weight, bias, eps,
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
    variable_list gradients_of_tables = table_gradients(ctx, dz, s[3], s[4], s[5]);
    for (Tensor& gradient : gradients_of_tables)
      if (gradient.defined()) gradient = gradient.to(s[0].scalar_type());
    gradients_of_tables.resize(6);
    gradients_of_tables.insert(gradients_of_tables.end(), {dweight, dbias});
    gradients_of_tables.resize(13);
    return gradients_of_tables;
  }
};
Three autograd_embed_norm(const Tensor& token, const Tensor& segment, const Tensor& position, const Tensor& ids,
                          const Tensor& segments, const Tensor& positions, const Tensor& weight, const Tensor& bias,
                          double eps, double dropout_p, const Maybe& seed, at::ScalarType dtype, bool sparse) {
  return call<EmbedNormNode>(needs_node(token, segment, position, weight, bias), token, segment, position, ids,
                             segments, positions, weight, bias, eps, dropout_p, seed, dtype, sparse);
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("embed", embed);
  m.impl("embed_backward", embed_backward);
  m.impl("embed_norm", embed_norm);
  m.impl("embed_norm_backward", embed_norm_backward);
}

TORCH_LIBRARY_IMPL(bertnli, Autograd, m) {
  m.impl("embed", autograd_embed);
  m.impl("embed_norm", autograd_embed_norm);
}

}  // namespace bertnli
