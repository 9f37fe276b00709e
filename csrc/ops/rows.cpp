// The operators that go row by row on CPU tensors: argument checks, division of the work among threads, and sums over
// rows whose order does not depend on the number of threads.
#include "tensors.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>
#pragma GCC diagnostic pop

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

namespace bertnli {
namespace {

using at::Tensor;

at::ScalarType computed(Type type) { return type == Type::f64 ? at::kDouble : at::kFloat; }

// A vector of x's width as the kernels read it.
Tensor checked_vector(const Tensor& v, const char* name, const Tensor& x, Type type) {
  TORCH_CHECK(v.dim() == 1 && v.size(0) == x.size(1), name, " must have shape [", x.size(1), "]; found ", v.sizes());
  TORCH_CHECK(at::isFloatingType(v.scalar_type()), name, " must have a floating-point dtype; found ", v.dtype());
  TORCH_CHECK(v.device().is_cpu(), name, " must lie on x's device, the CPU; found ", v.device());
  return v.to(computed(type)).contiguous();
}

void check_like(const Tensor& dout, const Tensor& x) {
  TORCH_CHECK(dout.sizes() == x.sizes() && dout.scalar_type() == x.scalar_type(),
              "the gradient of the output must have the output's dtype and shape ", x.dtype(), " ", x.sizes(),
              "; found ", dout.dtype(), " ", dout.sizes());
}

// Calls work(begin, end) for parts of 0 to `count` whose elements cost `cost` each, in threads where that pays.
template <class F>
void in_threads(int64_t count, int64_t cost, const F& work) {
  at::parallel_for(0, count, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, cost)), work);
}

// The sums over rows of `vectors` vectors, computed type [vectors, width]: work(begin, end, sums) does those of some
// rows. The parts depend on the number of rows alone and are added in their order, in double.
template <class F>
Tensor summed(const RowKernels& kernels, int64_t rows, int64_t width, int64_t vectors, Type type, const F& work) {
  const int64_t part = std::max<int64_t>(32, (rows + 63) / 64), parts = (rows + part - 1) / part;
  const int64_t padded = kernels.padded(width);
  const Tensor partial = at::empty({parts, vectors, padded}, at::dtype(computed(type)));
  const Tensor total = at::empty({vectors, width}, partial.options());
  const auto add = [&]<class C>(C) {
    C *from = partial.data_ptr<C>(), *to = total.data_ptr<C>();
    in_threads(parts, part * width, [&](int64_t begin, int64_t end) {
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

// ---- dropout + residual + LayerNorm ----

struct AddNormCall {
  AddNorm args{};
  Tensor x, y, y_bias, weight, bias;  // keep what `args` points to
  Type type;
  RowKernels kernels;
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
  call.kernels = row_kernels(call.type, type_of(y, "add_norm", "y"));
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
  in_threads(x.size(0), a.width, [&](int64_t begin, int64_t end) {
    call.kernels.add_norm(a, begin, end, scratch_memory(call.kernels.scratch_bytes(a.width)));
  });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_norm_backward(
    const Tensor& dout_in, const Tensor& x, const Tensor& y, const std::optional<Tensor>& y_bias, const Tensor& weight,
    const Tensor& bias, const Tensor& mean_in, const Tensor& rstd_in, double dropout_p,
    const std::optional<Tensor>& seed) {
  AddNormCall call = checked_add_norm(x, y, y_bias, weight, bias, dropout_p, seed);
  check_like(dout_in, x);
  const Tensor dout = dout_in.contiguous(), mean = mean_in.contiguous(), rstd = rstd_in.contiguous();
  const Tensor dx = at::empty(x.sizes(), x.options()), dy = at::empty(y.sizes(), y.options());
  AddNorm& a = call.args;
  a.mean = mean.data_ptr();
  a.rstd = rstd.data_ptr();
  a.dout = dout.const_data_ptr();
  a.dx = dx.data_ptr();
  a.dy = dy.data_ptr();
  const Tensor sums = summed(call.kernels, x.size(0), a.width, 3, call.type, [&](int64_t begin, int64_t end, void* to) {
    call.kernels.add_norm_backward(a, begin, end, to, scratch_memory(call.kernels.scratch_bytes(a.width)));
  });
  const auto row = [&](int i, const Tensor& like) { return sums[i].to(like.scalar_type(), false, true); };
  return {dx, dy, y_bias.has_value() ? row(2, *y_bias) : at::empty({0}, sums.options()), row(0, weight), row(1, bias)};
}

// ---- bias + activation ----

struct BiasActCall {
  BiasAct args{};
  Tensor x, bias;
  Type type;
  RowKernels kernels;
};

BiasActCall checked_bias_act(const Tensor& x, const Tensor& bias, c10::string_view kind) {
  BiasActCall call;
  call.type = type_of(x, "bias_act", "x");
  TORCH_CHECK(x.dim() == 2, "x must have shape [tokens, width]; found ", x.sizes());
  call.x = x.contiguous();
  call.bias = checked_vector(bias, "bias", x, call.type);
  call.kernels = row_kernels(call.type, call.type);
  BiasAct& a = call.args;
  a.x = call.x.const_data_ptr();
  a.bias = call.bias.const_data_ptr();
  a.width = x.size(1);
  TORCH_CHECK(kind == "relu" || kind == "gelu" || kind == "gelu_tanh",
              "kind must be 'relu', 'gelu' or 'gelu_tanh'; found '", kind, "'");
  a.kind = kind == "relu" ? Activation::relu : kind == "gelu" ? Activation::gelu : Activation::gelu_tanh;
  return call;
}

Tensor bias_act(const Tensor& x, const Tensor& bias, c10::string_view kind) {
  BiasActCall call = checked_bias_act(x, bias, kind);
  const Tensor out = at::empty(x.sizes(), x.options());
  call.args.out = out.data_ptr();
  in_threads(x.size(0), call.args.width,
             [&](int64_t begin, int64_t end) { call.kernels.bias_act(call.args, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> bias_act_backward(const Tensor& dout_in, const Tensor& x, const Tensor& bias,
                                             c10::string_view kind) {
  BiasActCall call = checked_bias_act(x, bias, kind);
  check_like(dout_in, x);
  const Tensor dout = dout_in.contiguous(), dx = at::empty(x.sizes(), x.options());
  call.args.dout = dout.const_data_ptr();
  call.args.dx = dx.data_ptr();
  const Tensor sums =
      summed(call.kernels, x.size(0), call.args.width, 1, call.type,
             [&](int64_t begin, int64_t end, void* to) { call.kernels.bias_act_backward(call.args, begin, end, to); });
  return {dx, sums[0].to(bias.scalar_type())};
}

// ---- embedding ----

Tensor checked_ids(const Tensor& ids, const char* name, const char* what, int64_t tokens, int64_t rows,
                   const char* hint) {
  TORCH_CHECK(ids.dim() == 1 && ids.size(0) == tokens, name, " must have shape [", tokens, "]; found ", ids.sizes());
  TORCH_CHECK(ids.scalar_type() == at::kInt, name, " must be int32; found ", ids.dtype());
  TORCH_CHECK(ids.device().is_cpu(), name, " must lie on the tables' device, the CPU; found ", ids.device());
  const Tensor dense = ids.contiguous();
  const int32_t* at = dense.const_data_ptr<int32_t>();
  for (int64_t t = 0; t < tokens; t++)
    TORCH_CHECK_INDEX(at[t] >= 0 && at[t] < rows, what, " ", at[t], " lies outside the model's ", hint);
  return dense;
}

}  // namespace

EmbedCall checked_embed(const Tensor& ids, const Tensor& segments, const Tensor& positions, int64_t token_rows,
                        int64_t segment_rows, int64_t position_rows) {
  EmbedCall call;
  const int64_t tokens = ids.dim() ? ids.size(0) : 0;
  const auto number = [](int64_t n) { return std::to_string(n); };
  call.ids = checked_ids(
      ids, "input_ids", "token id", tokens, token_rows,
      ("vocabulary of " + number(token_rows) + "; is this the tokenizer that the model was trained with?").c_str());
  call.segments = checked_ids(segments, "segment_ids", "segment id", tokens, segment_rows,
                              (number(segment_rows) + " segment embeddings").c_str());
  call.positions = checked_ids(positions, "positions", "position", tokens, position_rows,
                               (number(position_rows) + " position embeddings").c_str());
  call.args.ids = call.ids.const_data_ptr<int32_t>();
  call.args.segments = call.segments.const_data_ptr<int32_t>();
  call.args.positions = call.positions.const_data_ptr<int32_t>();
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
  const RowKernels kernels = row_kernels(type, type);
  in_threads(a.tokens, a.width, [&](int64_t begin, int64_t end) { kernels.embed(a, begin, end); });
  return out;
}

// Zeros; large ones the system provides, in huge pages where it has them: a fresh table's 4 KiB pages would cost more
// time, one fault each, than everything else that is done to it here. Up to 32 MiB the C library reuses what was freed,
// which is faster than any fresh page.
Tensor fresh_zeros(int64_t rows, int64_t width, at::ScalarType type) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t huge = size_t(2) << 20;
  const size_t bytes = (size_t(rows) * width * c10::elementSize(type) + huge - 1) / huge * huge;
  if (bytes > 16 * huge) {
    void* memory = mmap(nullptr, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) {
      char* start = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + huge - 1) / huge * huge);
      madvise(start, bytes, MADV_HUGEPAGE);
      return at::from_blob(
          start, {rows, width}, [memory, bytes](void*) { munmap(memory, bytes + huge); }, at::dtype(type));
    }
  }
#endif
  return at::zeros({rows, width}, at::dtype(type));
}

// The sums of the rows of x by key, an int32 below `keys` for each: [keys, width] in the computed type.
Tensor summed_by(const std::vector<int32_t>& key, int64_t keys, const Tensor& x, Type type) {
  const int64_t rows = x.size(0), width = x.size(1);
  const Tensor sums = fresh_zeros(keys, width, computed(type));
  std::vector<int32_t> at(keys + 1), order(rows), group(rows);  // a counting sort
  for (const int32_t k : key) at[k + 1]++;
  for (int64_t k = 0; k < keys; k++) at[k + 1] += at[k];
  for (int64_t i = 0; i < rows; i++) {
    const int32_t to = at[key[i]]++;
    order[to] = int32_t(i), group[to] = key[i];
  }
  const RowSums a{x.const_data_ptr(), order.data(), group.data(), rows, width, sums.data_ptr()};
  const RowKernels kernels = row_kernels(type, type);
  in_threads(rows, width, [&](int64_t begin, int64_t end) { kernels.sum_rows(a, begin, end); });
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
  std::tuple<Tensor, Tensor, Tensor> found{none, none, none};
  if (token_wanted) {
    const std::vector<int32_t> key(call.args.ids, call.args.ids + tokens);
    std::get<0>(found) = as(summed_by(key, token_rows, dout, type));
  }
  if (segment_wanted || position_wanted) {  // few pairs of them occur: these are summed first
    const int32_t* position = call.args.positions;
    const int64_t reached = tokens ? *std::max_element(position, position + tokens) + 1 : 0;
    std::vector<int32_t> key(tokens);
    for (int64_t t = 0; t < tokens; t++) key[t] = int32_t(position[t] * segment_rows + call.args.segments[t]);
    const Tensor pairs = summed_by(key, reached * segment_rows, dout, type);
    key.resize(pairs.size(0));
    const Type pairs_type = type == Type::f64 ? Type::f64 : Type::f32;
    if (segment_wanted) {
      for (size_t i = 0; i < key.size(); i++) key[i] = int32_t(i % segment_rows);
      std::get<1>(found) = as(summed_by(key, segment_rows, pairs, pairs_type));
    }
    if (position_wanted) {
      for (size_t i = 0; i < key.size(); i++) key[i] = int32_t(i / segment_rows);
      std::get<2>(found) = as(summed_by(key, position_rows, pairs, pairs_type));
    }
  }
  return found;
}

// ---- embedding + LayerNorm + dropout ----

struct EmbedNormCall {
  EmbedNorm args{};
  EmbedCall rows;
  Tensor weight, bias;
  Type type;
  RowKernels kernels;
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
  call.kernels = row_kernels(call.type, dtype == at::kBFloat16 ? Type::bf16 : call.type);
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
  in_threads(a.rows.tokens, a.rows.width, [&](int64_t begin, int64_t end) {
    call.kernels.embed_norm(a, begin, end, scratch_memory(call.kernels.scratch_bytes(a.rows.width)));
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
  TORCH_CHECK(dout_in.dim() == 2 && dout_in.size(0) == tokens && dout_in.size(1) == width,
              "the gradient of the output must have shape [", tokens, ", ", width, "]; found ", dout_in.sizes());
  const Tensor dout = dout_in.contiguous(), mean = mean_in.contiguous(), rstd = rstd_in.contiguous();
  const Tensor dz = at::empty({tokens, width}, call.weight.options());
  a.mean = mean.data_ptr();
  a.rstd = rstd.data_ptr();
  a.dout = dout.const_data_ptr();
  a.dz = dz.data_ptr();
  const Tensor sums = summed(call.kernels, tokens, width, 2, call.type, [&](int64_t begin, int64_t end, void* to) {
    call.kernels.embed_norm_backward(a, begin, end, to, scratch_memory(call.kernels.scratch_bytes(width)));
  });
  const auto row = [&](int i, const Tensor& like) { return sums[i].to(like.scalar_type(), false, true); };
  return {dz, row(0, weight), row(1, bias)};
}

}  // namespace

TORCH_LIBRARY_IMPL(bertnli, CPU, m) {
  m.impl("add_norm", add_norm);
  m.impl("add_norm_backward", add_norm_backward);
  m.impl("bias_act", bias_act);
  m.impl("bias_act_backward", bias_act_backward);
  m.impl("embed", embed);
  m.impl("embed_backward", embed_backward);
  m.impl("embed_norm", embed_norm);
  m.impl("embed_norm_backward", embed_norm_backward);
}

}  // namespace bertnli
