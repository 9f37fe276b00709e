// The encoder in inference: every layer's weights packed once, and one call from token ids to hidden states, or to the
// outputs of a head.
//
// A batch is cut into chunks of whole sequences. Each thread takes a chunk through all layers by itself, so that its
// rows stay in the thread's caches; a batch too small for that is one chunk, whose every step all threads share.
#include "tensors.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace bertnli {
namespace {

using at::Tensor;

// ---- packed weights ----

struct Packed {
  Linear linear;
  Tensor panels, scale, bias, sum;  // keep what `linear` points to
};

Packed pack(const LinearKernels& kernels, const Tensor& weight, const Tensor& bias) {
  Packed p;
  const int64_t out = weight.size(0), in = weight.size(1), panel = kernels.panel, panels = (out + panel - 1) / panel;
  const int64_t panel_bytes = (in + kernels.per_step - 1) / kernels.per_step * panel * kernels.weight_bytes;
  p.panels = at::empty({panels * panel_bytes}, at::kByte);
  p.scale = at::zeros({panels * panel}, at::kFloat);
  p.sum = at::zeros({panels * panel}, at::kInt);
  const float* from = weight.const_data_ptr<float>();
  char* to = (char*)p.panels.data_ptr();
  float* scale = p.scale.data_ptr<float>();
  int32_t* sum = p.sum.data_ptr<int32_t>();
  at::parallel_for(0, panels, std::max<int64_t>(1, 65536 / (panel * in)), [&](int64_t begin, int64_t end) {
    kernels.pack(from + begin * panel * weight.stride(0), weight.stride(0), weight.stride(1),
                 std::min(out, end * panel) - begin * panel, in, to + begin * panel_bytes, scale + begin * panel,
                 sum + begin * panel);
  });
  if (bias.defined()) {
    p.bias = at::zeros({panels * panel}, at::kFloat);
    p.bias.slice(0, 0, out).copy_(bias);
  }
  p.linear = {to, scale, bias.defined() ? p.bias.const_data_ptr<float>() : nullptr, sum, in, out};
  return p;
}

struct Norm {
  Tensor weight, bias;
};
struct Layer {
  Packed qkv, out, dense1, dense2;
  Tensor out_bias, dense2_bias;  // added with the residual
  Norm norm1, norm2;
};
// The last layer where few rows are read: each head's query is absorbed into its key weights (bertnli/model.py,
// MultiHeadAttention.read_rows).
struct Absorbed {
  Packed query;
  std::vector<Packed> keys, values;  // one a head: d to H, and H to d
};

// ---- memory ----

// What one chunk works in: cut out of one block a thread, which is kept while it is of moderate size.
class Memory {
 public:
  explicit Memory(size_t bytes) {
    if (size_ < bytes) {
      size_ = 0;  // should the allocation fail
      block_.reset();
      block_.reset(new char[bytes + 64]);
      size_ = bytes;
    }
    at_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block_.get()) + 63) / 64 * 64);
  }
  ~Memory() {
    if (size_ > kKept) block_.reset(), size_ = 0;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* take(size_t bytes) { return std::exchange(at_, at_ + rounded(bytes)); }
  static size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  static constexpr size_t kKept = size_t(32) << 20;
  static thread_local std::unique_ptr<char[]> block_;
  static thread_local size_t size_;
  char* at_;
};
thread_local std::unique_ptr<char[]> Memory::block_;
thread_local size_t Memory::size_ = 0;

// Runs work(begin, end) over `count` parts that cost `cost` multiplications each: here, or shared among threads.
struct Team {
  bool shared;
  template <class F>
  void operator()(int64_t count, double cost, const F& work) const {
    if (shared)
      at::parallel_for(0, count, std::max<int64_t>(1, int64_t(200'000 / std::max(1.0, cost))), work);
    else
      work(0, count);
  }
};

// ---- a head ----

// A library's operator takes longer to begin than the products of so few rows.
bool few(const Tensor& x) { return x.size(0) <= 4; }

float dot(const float* a, const float* b, int64_t n) {
  using Four = float __attribute__((vector_size(16), aligned(4)));
  Four sums[4] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int k = 0; k < 4; k++) sums[k] += *(const Four*)(a + i + 4 * k) * *(const Four*)(b + i + 4 * k);
  const Four s = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = (s[0] + s[1]) + (s[2] + s[3]);
  for (; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// x weight^T + bias, float32.
Tensor dense(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (!few(x)) return at::linear(x, weight, bias);
  const int64_t rows = x.size(0), in = x.size(1), out = weight.size(0);
  TORCH_CHECK(weight.is_cpu() && bias.is_cpu(), "a head's weights must be on the CPU, as its encoder's are");
  TORCH_CHECK(weight.dim() == 2 && weight.size(1) == in && bias.dim() == 1 && bias.size(0) == out,
              "a head's layer must take the encoder's vectors of ", in, "; found weights ", weight.sizes(),
              " and biases ", bias.sizes());
  const Tensor y = at::empty({rows, out}, at::kFloat), w = weight.contiguous(), b = bias.contiguous();
  const float *from = x.const_data_ptr<float>(), *ws = w.const_data_ptr<float>(), *bs = b.const_data_ptr<float>();
  float* to = y.data_ptr<float>();
  at::parallel_for(0, out, 1 + 100'000 / (1 + rows * in), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++)
      for (int64_t r = 0; r < rows; r++) to[r * out + o] = dot(from + r * in, ws + o * in, in) + bs[o];
  });
  return y;
}

// ---- the encoder ----

class PreparedEncoder {
 public:
  // The order of `tensors` is that of bertnli/prepared.py: token, segment and position tables, the embeddings' norm
  // where they have one, and sixteen for each layer. All float32 [..], on the CPU.
  PreparedEncoder(const std::vector<Tensor>& tensors, int64_t heads, double eps, const std::string& activation,
                  const std::string& precision)
      : heads_(heads), eps_(eps) {
    const at::NoGradGuard no_gradients;
    for (const Tensor& t : tensors)
      TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == at::kFloat,
                  "a prepared encoder takes float32 parameters on the CPU; found ", t.dtype(), " on ", t.device());
    TORCH_CHECK(precision == "fp32" || precision == "bf16" || precision == "int8",
                "precision must be fp32, bf16 or int8; found '", precision, "'");
    TORCH_CHECK(activation == "relu" || activation == "gelu" || activation == "gelu_tanh",
                "activation must be relu, gelu or gelu_tanh; found '", activation, "'");
    const Precision p = precision == "int8" ? Precision::int8 : precision == "bf16" ? Precision::bf16 : Precision::fp32;
    kernels_ = linear_kernels(p);
    type_ = kernels_.between;
    fine_ = linear_kernels(p == Precision::int8 ? Precision::bf16 : p);
    rows_ = row_kernels(Type::f32, Type::f32);
    attention_ = attention_kernel(type_);
    then_ = activation == "relu" ? Then::relu : activation == "gelu" ? Then::gelu : Then::gelu_tanh;

    TORCH_CHECK(tensors.size() % 16 == 3 || tensors.size() % 16 == 5, "unexpected number of tensors");
    auto at = tensors.begin();
    const auto next = [&] { return (at++)->contiguous(); };
    token_ = next(), segment_ = next(), position_ = next().flatten(0, -2);
    width_ = token_.size(1);
    TORCH_CHECK(heads > 0 && width_ % heads == 0, "heads must divide the width ", width_, "; found ", heads);
    if (tensors.size() % 16 == 5) embedding_norm_ = {next(), next()};
    while (at != tensors.end()) {
      const Tensor wq = next(), bq = next(), wk = next(), bk = next(), wv = next(), bv = next(), wo = next(),
                   bo = next();
      Layer layer;
      layer.norm1 = {next(), next()};
      const Tensor w1 = next(), b1 = next(), w2 = next(), b2 = next();
      layer.norm2 = {next(), next()};
      layer.qkv = pack(kernels_, at::cat({wq, wk, wv}), at::cat({bq, bk, bv}));
      layer.out = pack(kernels_, wo, {});
      layer.dense1 = pack(kernels_, w1, b1);
      layer.dense2 = pack(kernels_, w2, {});
      layer.out_bias = bo, layer.dense2_bias = b2;
      inner_ = w1.size(0);
      layers_.push_back(std::move(layer));
      if (at == tensors.end()) {
        last_.query = pack(kernels_, wq, bq);
        const int64_t d = width_ / heads;
        for (int64_t h = 0; h < heads; h++) {
          last_.keys.push_back(pack(fine_, wk.narrow(0, h * d, d).t(), {}));
          last_.values.push_back(pack(fine_, wv.narrow(0, h * d, d), bv.narrow(0, h * d, d)));
        }
      }
    }
  }

  // Token ids, segments and positions int32 [T] of sequences that begin at cu_seqlens, int32 [B+1]; rows int64 [R],
  // ascending. Returns float32 [T, H], or [R, H].
  Tensor forward(const Tensor& ids, const Tensor& segments, const Tensor& positions, const Tensor& cu_seqlens,
                 const std::optional<Tensor>& rows_in) const {
    EmbedCall embed = checked_embed(ids, segments, positions, token_.size(0), segment_.size(0), position_.size(0));
    Embed& e = embed.args;
    e.token = token_.const_data_ptr();
    e.segment = segment_.const_data_ptr();
    e.position = position_.const_data_ptr();
    e.width = width_;
    const int64_t tokens = e.tokens;
    const Tensor cu_tensor = checked_cu_seqlens(cu_seqlens, "cu_seqlens", tokens, tokens, "the number of tokens");
    const int32_t* cu = cu_tensor.const_data_ptr<int32_t>();
    const int64_t batch = cu_tensor.size(0) - 1;
    Tensor rows_tensor;
    const int64_t* rows = nullptr;
    int64_t n_rows = tokens;
    if (rows_in.has_value()) {
      TORCH_CHECK(rows_in->dim() == 1 && rows_in->scalar_type() == at::kLong && rows_in->device().is_cpu(),
                  "rows must be int64 [R] on the CPU; found ", rows_in->dtype(), " ", rows_in->sizes());
      rows_tensor = rows_in->contiguous();
      rows = rows_tensor.const_data_ptr<int64_t>();
      n_rows = rows_tensor.size(0);
      for (int64_t i = 0; i < n_rows; i++) {
        TORCH_CHECK_INDEX(rows[i] >= 0 && rows[i] < tokens, "rows must lie between 0 and ", tokens - 1,
                          ", the last token; found ", rows[i]);
        TORCH_CHECK_VALUE(i == 0 || rows[i] >= rows[i - 1], "rows must be ascending");
      }
    }
    const bool some = rows_in.has_value(), absorb = some && n_rows <= batch;
    const Tensor out = at::empty({n_rows, width_}, at::kFloat);
    if (tokens == 0) return out;

    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    const int64_t wanted = std::clamp<int64_t>(tokens / (3 * threads), 64, kernels_.tokens);
    std::vector<Chunk> chunks;
    for (int64_t b = 0, r = 0; b < batch;) {
      Chunk c{b, b, r, r};
      do c.end++;
      while (c.end < batch && cu[c.end + 1] - cu[c.begin] <= wanted);
      if (some)
        while (c.row_end < n_rows && rows[c.row_end] < cu[c.end]) c.row_end++;
      else
        c.row_begin = cu[c.begin], c.row_end = cu[c.end];
      b = c.end, r = c.row_end;
      chunks.push_back(c);
    }
    const Call call{e, cu, some, rows, out.data_ptr<float>(), absorb};
    if (threads > 1 && int64_t(chunks.size()) < 2 * threads) {
      encode(call, {0, batch, 0, n_rows}, Team{true});
      return out;
    }
    // Longest first, each thread taking the next: no thread is left with a long chunk at the end.
    std::stable_sort(chunks.begin(), chunks.end(),
                     [&](const Chunk& x, const Chunk& y) { return cu[x.end] - cu[x.begin] > cu[y.end] - cu[y.begin]; });
    std::atomic<size_t> at{0};
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      for (size_t i; (i = at.fetch_add(1, std::memory_order_relaxed)) < chunks.size();)
        encode(call, chunks[i], Team{false});
    });
    return out;
  }

  // The same, of each sequence's first token where `first` says so, and what a head makes of it: float32 [T or R,
  // outputs]. Its weights, [H, H] and [H] of a hidden layer with tanh if there is one, [outputs, H] and [outputs] of
  // the output layer, are as they are at the call.
  Tensor outputs(const Tensor& ids, const Tensor& segments, const Tensor& positions, const Tensor& cu_seqlens,
                 const std::optional<Tensor>& rows, bool first, const std::vector<Tensor>& head) const {
    TORCH_CHECK(head.size() == 2 || head.size() == 4, "a head has one or two layers");
    const at::NoGradGuard no_gradients;
    const c10::impl::ExcludeDispatchKeyGuard in_float32(c10::DispatchKey::AutocastCPU);
    Tensor x = forward(ids, segments, positions, cu_seqlens, first ? first_tokens(cu_seqlens, ids.numel()) : rows);
    if (head.size() == 4) {
      x = dense(x, head[0], head[1]);
      float* const begin = x.data_ptr<float>();
      if (few(x))
        std::transform(begin, begin + x.numel(), begin, [](float v) { return std::tanh(v); });
      else
        x.tanh_();
    }
    return dense(x, head[head.size() - 2], head.back());
  }

 private:
  static Tensor first_tokens(const Tensor& cu_seqlens, int64_t tokens) {
    const Tensor cu = checked_cu_seqlens(cu_seqlens, "cu_seqlens", tokens, tokens, "the number of tokens");
    const int32_t* const at = cu.const_data_ptr<int32_t>();
    const Tensor rows = at::empty({cu.size(0) - 1}, at::kLong);
    for (int64_t b = 0; b < rows.size(0); b++) {
      TORCH_CHECK_VALUE(at[b] < at[b + 1], "every sequence needs at least its <cls> token; found a valid length of 0");
      rows.data_ptr<int64_t>()[b] = at[b];
    }
    return rows;
  }

  struct Chunk {  // sequences and rows of the result
    int64_t begin, end, row_begin, row_end;
  };
  struct Call {
    const Embed& embed;
    const int32_t* cu;
    bool some;  // rows, or all
    const int64_t* rows;
    float* out;
    bool absorb;
  };
  // Buffers of one chunk of m tokens and R rows; M is the larger.
  struct Work {
    float *x, *y, *read, *mean, *rstd;
    void *qkv, *attended, *hidden, *absorbed, *context;
    Operand operand, fine_operand;
    int32_t *cu, *cu_rows;
  };

  int64_t size(Type type) const { return type == Type::bf16 ? 2 : 4; }
  static int64_t step_bytes(const LinearKernels& kernels, int64_t width) {
    return (width + kernels.per_step - 1) / kernels.per_step * kernels.row_bytes;
  }

  // Calls take(pointer, bytes) for each buffer.
  template <class F>
  void buffers(Work& w, int64_t m, int64_t r, int64_t batch, bool absorb, const F& take) const {
    const int64_t most = std::max(m, r), wide = std::max(width_, inner_), bytes = size(type_);
    take(w.x, m * width_ * 4);
    take(w.y, most * width_ * 4);
    take(w.read, r * width_ * 4);
    take(w.mean, most * 4), take(w.rstd, most * 4);
    take(w.qkv, std::max(3 * m, r) * width_ * bytes);
    take(w.attended, most * width_ * bytes);
    take(w.hidden, most * inner_ * bytes);
    take(w.operand.data, most * step_bytes(kernels_, wide));
    take(w.operand.scale, most * 4), take(w.operand.zero, most * 4), take(w.operand.sum, most * 4);
    take(w.cu, (batch + 1) * 4), take(w.cu_rows, (batch + 1) * 4);
    if (absorb) {
      take(w.absorbed, r * heads_ * width_ * bytes);
      take(w.context, r * heads_ * width_ * bytes);
      take(w.fine_operand.data, std::max(m, r * heads_) * step_bytes(fine_, width_));
    }
  }

  // Rows as an operand of `kernels`: in place where they are one already, else converted into `into`.
  Operand operand(const LinearKernels& kernels, const void* x, Type type, int64_t stride, int64_t rows, int64_t width,
                  Operand into, const Team& team) const {
    const bool same =
        kernels.as_is && type == kernels.between && width % kernels.per_step == 0 && stride % kernels.per_step == 0;
    if (same) return {const_cast<void*>(x), stride * size(type), nullptr, nullptr, nullptr};
    into.stride = step_bytes(kernels, width);
    team(rows, width * 4, [&](int64_t begin, int64_t end) {
      Operand part = into;
      part.data = (char*)into.data + begin * into.stride;
      if (into.scale) part.scale += begin, part.zero += begin, part.sum += begin;
      kernels.operand((const char*)x + begin * stride * size(type), type, stride, end - begin, width, part);
    });
    return into;
  }

  void linear(const LinearKernels& kernels, const Packed& w, const Operand& x, int64_t rows, void* out, Type out_type,
              int64_t out_stride, Then then, const Team& team) const {
    const LinearCall call{w.linear, x, rows, out, out_type, out_stride, then};
    const size_t bytes = kernels.scratch_bytes(w.linear.in, rows);
    const int64_t panels = (w.linear.out + kernels.panel - 1) / kernels.panel;
    team(panels, rows * w.linear.in * kernels.panel * kernels.cost, [&](int64_t begin, int64_t end) {
      kernels.linear(call, begin, end, bytes ? scratch_memory(bytes) : nullptr);
    });
  }

  // x = LayerNorm(x + y + y_bias) in place.
  void add_norm(float* x, const float* y, const Tensor& y_bias, const Norm& norm, int64_t rows, const Work& w,
                const Team& team) const {
    AddNorm a{};
    a.x = x, a.y = y, a.out = x;
    a.y_bias = y_bias.defined() ? y_bias.const_data_ptr() : nullptr;
    a.weight = norm.weight.const_data_ptr();
    a.bias = norm.bias.const_data_ptr();
    a.mean = w.mean, a.rstd = w.rstd;
    a.width = width_, a.eps = eps_;
    team(rows, width_ * 8, [&](int64_t begin, int64_t end) {
      rows_.add_norm(a, begin, end, scratch_memory(rows_.scratch_bytes(width_)));
    });
  }

  void attend(Attention& a, int64_t batch, const Team& team) const {
    const size_t bytes = attention_.scratch_bytes(a);
    const int64_t cost = a.max_q * a.max_k * (a.heads / a.kv_heads) * (a.d + a.d_v);
    team(batch * a.kv_heads, cost, [&](int64_t begin, int64_t end) {
      void* scratch = scratch_memory(bytes);
      for (int64_t task = begin; task < end; task++)
        attention_.forward(a, task / a.kv_heads, task % a.kv_heads, scratch);
    });
  }

  // The block's second half: x = LN(x + W_o attended), x = LN(x + FFN(x)).
  void finish(const Layer& layer, float* x, int64_t rows, const Work& w, const Team& team) const {
    const Operand attended = operand(kernels_, w.attended, type_, width_, rows, width_, w.operand, team);
    linear(kernels_, layer.out, attended, rows, w.y, Type::f32, width_, Then::nothing, team);
    add_norm(x, w.y, layer.out_bias, layer.norm1, rows, w, team);
    const Operand in = operand(kernels_, x, Type::f32, width_, rows, width_, w.operand, team);
    linear(kernels_, layer.dense1, in, rows, w.hidden, type_, inner_, then_, team);
    const Operand hidden = operand(kernels_, w.hidden, type_, inner_, rows, inner_, w.operand, team);
    linear(kernels_, layer.dense2, hidden, rows, w.y, Type::f32, width_, Then::nothing, team);
    add_norm(x, w.y, layer.dense2_bias, layer.norm2, rows, w, team);
  }

  void encode(const Call& call, const Chunk& chunk, const Team& team) const {
    const int64_t t0 = call.cu[chunk.begin], m = call.cu[chunk.end] - t0, batch = chunk.end - chunk.begin;
    const int64_t n_rows = chunk.row_end - chunk.row_begin, d = width_ / heads_;
    Work w{};
    size_t bytes = 0;
    buffers(w, m, n_rows, batch, call.absorb, [&](auto&, int64_t n) { bytes += Memory::rounded(size_t(n)); });
    Memory memory(bytes);
    buffers(w, m, n_rows, batch, call.absorb, [&](auto& pointer, int64_t n) {
      pointer = (std::remove_reference_t<decltype(pointer)>)memory.take(size_t(n));
    });
    if (m == 0) return;
    int64_t longest = 0;
    for (int64_t b = 0; b <= batch; b++) w.cu[b] = int32_t(call.cu[chunk.begin + b] - t0);
    for (int64_t b = 0; b < batch; b++) longest = std::max<int64_t>(longest, w.cu[b + 1] - w.cu[b]);

    Embed embed = call.embed;
    embed.ids += t0, embed.segments += t0, embed.positions += t0;
    embed.out = w.x;
    if (embedding_norm_.weight.defined()) {
      EmbedNorm a{};
      a.rows = embed;
      a.weight = embedding_norm_.weight.const_data_ptr();
      a.bias = embedding_norm_.bias.const_data_ptr();
      a.out = w.x, a.mean = w.mean, a.rstd = w.rstd;
      a.eps = eps_;
      team(m, width_ * 8, [&](int64_t begin, int64_t end) {
        rows_.embed_norm(a, begin, end, scratch_memory(rows_.scratch_bytes(width_)));
      });
    } else {
      team(m, width_ * 8, [&](int64_t begin, int64_t end) { rows_.embed(embed, begin, end); });
    }

    float* const out = call.out + chunk.row_begin * width_;
    for (size_t i = 0; i < layers_.size(); i++) {
      const Layer& layer = layers_[i];
      const bool read = call.some && i + 1 == layers_.size();
      Attention a{};
      a.cu_q = a.cu_k = w.cu;
      a.max_q = a.max_k = longest;
      a.scale = 1 / std::sqrt(double(d));
      a.heads = a.kv_heads = heads_;
      a.d = a.d_v = d;
      if (read && call.absorb) {
        absorbed(call, chunk, a, w, team);
      } else {
        const Operand in = operand(kernels_, w.x, Type::f32, width_, m, width_, w.operand, team);
        linear(kernels_, layer.qkv, in, m, w.qkv, type_, 3 * width_, Then::nothing, team);
        char* const qkv = (char*)w.qkv;
        a.q = {qkv, 3 * width_, d};
        a.k = {qkv + width_ * size(type_), 3 * width_, d};
        a.v = {qkv + 2 * width_ * size(type_), 3 * width_, d};
        a.out = {w.attended, width_, d};
        attend(a, batch, team);
      }
      if (read) {
        if (!call.absorb) {
          gather(call, chunk, w.x, w.read, width_ * 4);
          gather(call, chunk, w.attended, w.qkv, width_ * size(type_));  // a row may be read twice: not in place
          std::swap(w.attended, w.qkv);
        }
        finish(layer, w.read, n_rows, w, team);
      } else {
        finish(layer, w.x, m, w, team);
      }
    }
    if (call.some && layers_.empty()) gather(call, chunk, w.x, w.read, width_ * 4);
    std::memcpy(out, call.some ? w.read : w.x, size_t(n_rows * width_ * 4));
  }

  static void gather(const Call& call, const Chunk& chunk, const void* from, void* to, int64_t bytes) {
    for (int64_t r = chunk.row_begin; r < chunk.row_end; r++)
      std::memcpy((char*)to + (r - chunk.row_begin) * bytes,
                  (const char*)from + (call.rows[r] - call.cu[chunk.begin]) * bytes, size_t(bytes));
  }

  // Attention of the rows that are read, over the layer's inputs themselves: to w.attended; those inputs to w.read.
  void absorbed(const Call& call, const Chunk& chunk, Attention& a, const Work& w, const Team& team) const {
    const int64_t t0 = call.cu[chunk.begin], m = call.cu[chunk.end] - t0, n = chunk.row_end - chunk.row_begin;
    const int64_t d = width_ / heads_, bytes = size(type_), batch = chunk.end - chunk.begin;
    for (int64_t b = 0, r = chunk.row_begin; b <= batch; b++) {
      while (r < chunk.row_end && call.rows[r] < call.cu[chunk.begin + b]) r++;
      w.cu_rows[b] = int32_t(r - chunk.row_begin);
    }
    gather(call, chunk, w.x, w.read, width_ * 4);
    const Operand in = operand(kernels_, w.read, Type::f32, width_, n, width_, w.operand, team);
    linear(kernels_, last_.query, in, n, w.attended, type_, width_, Then::nothing, team);  // the queries, for now
    team(heads_, n * d * width_ * fine_.cost, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; h++) {
        Operand part = w.fine_operand;
        part.data = (char*)part.data + h * n * step_bytes(fine_, d);
        const Operand q = operand(fine_, (char*)w.attended + h * d * bytes, type_, width_, n, d, part, Team{false});
        linear(fine_, last_.keys[size_t(h)], q, n, (char*)w.absorbed + h * width_ * bytes, type_, heads_ * width_,
               Then::nothing, Team{false});
      }
    });
    const void* x = w.x;
    if (type_ == Type::bf16) {  // one row after the other, each over the padding of the one before
      x = w.qkv;
      const LinearKernels& to = fine_;
      const Team ordered{team.shared && width_ % fine_.per_step == 0};
      ordered(m, width_ * 4, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++)
          to.operand(w.x + t * width_, Type::f32, width_, 1, width_,
                     {(char*)w.qkv + t * width_ * 2, width_ * 2, nullptr, nullptr, nullptr});
      });
    }
    a.kv_heads = 1;
    a.d = a.d_v = width_;
    a.cu_q = w.cu_rows;
    a.max_q = 0;
    for (int64_t b = 0; b < batch; b++) a.max_q = std::max<int64_t>(a.max_q, w.cu_rows[b + 1] - w.cu_rows[b]);
    a.q = {w.absorbed, heads_ * width_, width_};
    a.k = a.v = {const_cast<void*>(x), width_, width_};
    a.out = {w.context, heads_ * width_, width_};
    attend(a, batch, team);
    team(heads_, n * d * width_ * fine_.cost, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; h++) {
        Operand part = w.fine_operand;
        part.data = (char*)part.data + h * n * step_bytes(fine_, width_);
        const Operand context =
            operand(fine_, (char*)w.context + h * width_ * bytes, type_, heads_ * width_, n, width_, part, Team{false});
        linear(fine_, last_.values[size_t(h)], context, n, (char*)w.attended + h * d * bytes, type_, width_,
               Then::nothing, Team{false});
      }
    });
  }

  int64_t heads_, width_ = 0, inner_ = 1;
  double eps_;
  Type type_;  // of what attention reads and writes, and of the feed-forward layer's inside
  Then then_;
  LinearKernels kernels_, fine_;  // `fine_`: of the absorbed projections, bf16 where the others are int8
  RowKernels rows_;
  AttentionKernel attention_;
  Tensor token_, segment_, position_;
  Norm embedding_norm_;
  std::vector<Layer> layers_;
  Absorbed last_;
};

}  // namespace

void define_encoder(pybind11::module_& m) {
  pybind11::class_<PreparedEncoder>(m, "PreparedEncoder")
      .def(pybind11::init(
          torch::wrap_pybind_function_no_gil([](const std::vector<Tensor>& tensors, int64_t heads, double eps,
                                                const std::string& activation, const std::string& precision) {
            return std::make_unique<PreparedEncoder>(tensors, heads, eps, activation, precision);
          })))
      .def("forward", torch::wrap_pybind_function_no_gil(&PreparedEncoder::forward))
      .def("outputs", torch::wrap_pybind_function_no_gil(&PreparedEncoder::outputs));
}

}  // namespace bertnli
