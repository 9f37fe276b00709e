#include "encoder_chunk.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "memory.h"
#include "parallel.h"

namespace bertnli {

using at::Tensor;

namespace {

// Runs work(begin, end) over `count` parts that cost `cost` multiplications each: here, or shared among threads.
struct Team {
  bool shared;
  template <class F>
  void operator()(int64_t count, double cost, const F& work) const {
    if (shared)
      share(count, cost, work);
    else
      work(0, count);
  }
};

int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }  // buffers begin a line of the cache
int64_t size_of(Type type) { return type == Type::bf16 ? 2 : 4; }

// The activations from a row on.
Activations rows_from(Activations a, int64_t row, int64_t stride) {
  a.data = (char*)a.data + row * stride;
  a.scale += row, a.zero += row, a.sum += row;
  return a;
}

int64_t step_bytes(const LinearKernels& kernels, int64_t width) {
  return (width + kernels.per_step - 1) / kernels.per_step * kernels.row_bytes;
}

// Takes one chunk, of m tokens of which n are read, through all layers.
class ChunkEncoder {
 public:
  ChunkEncoder(const PrepackedEncoder& encoder, const Batch& batch, const Chunk& chunk, Team team)
      : encoder_(encoder), batch_(batch), chunk_(chunk), team_(team) {
    char* next = memory_.data();
    each_buffer([&]<class T>(T*& pointer, int64_t n) {
      pointer = (T*)next;
      next += rounded(n);
    });
  }

  void run() {
    if (m_ == 0) return;
    for (int64_t b = 0; b <= sequences_; b++) {
      cu_[b] = int32_t(batch_.cu_seqlens[chunk_.begin + b] - first_token_);
      if (b) longest_ = std::max<int64_t>(longest_, cu_[b] - cu_[b - 1]);
    }
    embed();
    const bool some = batch_.token_index;
    for (size_t i = 0; i < encoder_.layers.size(); i++) {
      const PrepackedLayer& layer = encoder_.layers[i];
      const bool read = some && i + 1 == encoder_.layers.size();
      if (read && batch_.absorb)
        attend_absorbed();
      else
        attend_all(layer);
      if (read && !batch_.absorb) {
        gather(x_, read_, width_ * 4);
        gather(attended_, qkv_, width_ * bytes_);  // a row may be read twice: not in place
        std::swap(attended_, qkv_);
      }
      finish(layer, read ? read_ : x_, read ? n_ : m_);
    }
    if (some && encoder_.layers.empty()) gather(x_, read_, width_ * 4);
    std::memcpy(batch_.out + chunk_.read_begin * width_, some ? read_ : x_, size_t(n_ * width_ * 4));
  }

 private:
  // Calls take(pointer, bytes) for each buffer.
  template <class F>
  void each_buffer(const F& take) {
    const int64_t most = std::max(m_, n_), widest = encoder_.widest;
    take(x_, m_ * width_ * 4);
    take(y_, most * width_ * 4);
    take(read_, n_ * width_ * 4);
    take(mean_, most * 4), take(rstd_, most * 4);
    take(qkv_, std::max(3 * m_, n_) * width_ * bytes_);
    take(attended_, most * width_ * bytes_);
    take(hidden_, most * widest * bytes_);
    take(activations_.data, most * step_bytes(encoder_.kernels, std::max(width_, widest)));
    take(activations_.scale, most * 4), take(activations_.zero, most * 4), take(activations_.sum, most * 4);
    take(cu_, (sequences_ + 1) * 4), take(cu_read_, (sequences_ + 1) * 4);
    if (batch_.absorb) {
      take(absorbed_, n_ * heads_ * width_ * bytes_);
      take(context_, n_ * heads_ * width_ * bytes_);
      const int64_t rows = std::max(m_, n_ * heads_);
      Activations& a = absorbed_activations_;
      take(a.data, rows * step_bytes(encoder_.absorbed_kernels, width_));
      take(a.scale, rows * 4), take(a.zero, rows * 4), take(a.sum, rows * 4);
    }
  }
  size_t buffer_bytes() {
    int64_t bytes = 0;
    each_buffer([&](auto&, int64_t n) { bytes += rounded(n); });
    return size_t(bytes);
  }

  // ---- steps that the layers share ----

  // Rows as activations of `kernels`: in place where they are that already, else converted into `into`.
  static Activations activations(const LinearKernels& kernels, const void* x, Type type, int64_t stride, int64_t rows,
                                 int64_t width, Activations into, const Team& team) {
    const bool same =
        kernels.no_repack && type == kernels.between && width % kernels.per_step == 0 && stride % kernels.per_step == 0;
    if (same) return {const_cast<void*>(x), stride * size_of(type), nullptr, nullptr, nullptr};
    into.stride = step_bytes(kernels, width);
    team(rows, width * 4, [&](int64_t begin, int64_t end) {
      kernels.pack_activations((const char*)x + begin * stride * size_of(type), type, stride, end - begin, width,
                               rows_from(into, begin, into.stride));
    });
    return into;
  }

  static void linear(const LinearKernels& kernels, const PrepackedLinear& w, const Activations& x, int64_t rows,
                     void* out, Type out_type, int64_t out_stride, Activation epilogue, const Team& team) {
    const LinearCall call{w.linear, x, rows, out, out_type, out_stride, {epilogue}};
    const size_t bytes = kernels.scratch_bytes(w.linear.in, rows);
    const int64_t panels = (w.linear.out + kernels.panel - 1) / kernels.panel;
    team(panels, rows * w.linear.in * kernels.panel * kernels.cost,
         [&](int64_t begin, int64_t end) { kernels.linear(call, begin, end, Scratch(bytes).data()); });
  }
  // From contiguous rows to contiguous rows, by the layers' kernels.
  void linear(const PrepackedLinear& w, const void* x, Type x_type, int64_t rows, void* out, Type out_type,
              Activation epilogue = Activation::identity) const {
    const LinearKernels& kernels = encoder_.kernels;
    const int64_t in = w.linear.in;
    const Activations packed = activations(kernels, x, x_type, in, rows, in, activations_, team_);
    linear(kernels, w, packed, rows, out, out_type, w.linear.out, epilogue, team_);
  }

  // x = LayerNorm(x + y + y_bias) in place.
  void add_norm(float* x, const Tensor& y_bias, const NormWeights& norm, int64_t rows) const {
    AddNorm a{};
    a.x = x, a.y = y_, a.out = x;
    a.y_bias = y_bias.const_data_ptr();
    a.weight = norm.weight.const_data_ptr();
    a.bias = norm.bias.const_data_ptr();
    a.mean = mean_, a.rstd = rstd_;
    a.width = width_, a.eps = encoder_.eps;
    team_(rows, width_ * 8, [&](int64_t begin, int64_t end) {
      encoder_.norm_kernels.add_norm(a, begin, end, Scratch(row_scratch_bytes(width_)).data());
    });
  }

  void attend(const Attention& a) const {
    const AttentionKernels& kernels = encoder_.attention_kernels;
    const size_t bytes = kernels.scratch_bytes(a);
    const int64_t cost = a.max_q * a.max_k * (a.heads / a.kv_heads) * (a.d + a.d_v);
    team_(sequences_ * a.kv_heads, cost, [&](int64_t begin, int64_t end) {
      const Scratch scratch(bytes);
      for (int64_t task = begin; task < end; task++)
        kernels.forward(a, task / a.kv_heads, task % a.kv_heads, scratch.data());
    });
  }
  Attention attention() const {
    Attention a{};
    a.cu_q = a.cu_k = cu_;
    a.max_q = a.max_k = longest_;
    a.scale = 1 / std::sqrt(double(d_));
    a.heads = a.kv_heads = heads_;
    a.d = a.d_v = d_;
    return a;
  }

  // The rows of the tokens that are read, `bytes` each.
  void gather(const void* from, void* to, int64_t bytes) const {
    const int64_t* const index = batch_.token_index + chunk_.read_begin;
    for (int64_t r = 0; r < n_; r++)
      std::memcpy((char*)to + r * bytes, (const char*)from + (index[r] - first_token_) * bytes, size_t(bytes));
  }

  // ---- the layers ----

  // To x.
  void embed() const {
    const EmbeddingKernels& kernels = encoder_.embedding_kernels;
    Embed rows = batch_.embed;
    rows.ids += first_token_, rows.segments += first_token_, rows.positions += first_token_;
    rows.out = x_;
    if (!encoder_.embedding_norm.weight.defined()) {
      team_(m_, width_ * 8, [&](int64_t begin, int64_t end) { kernels.embed(rows, begin, end); });
      return;
    }
    EmbedNorm a{};
    a.rows = rows;
    a.weight = encoder_.embedding_norm.weight.const_data_ptr();
    a.bias = encoder_.embedding_norm.bias.const_data_ptr();
    a.out = x_, a.mean = mean_, a.rstd = rstd_;
    a.eps = encoder_.eps;
    team_(m_, width_ * 8, [&](int64_t begin, int64_t end) {
      kernels.embed_norm(a, begin, end, Scratch(row_scratch_bytes(width_)).data());
    });
  }

  // The attention of all tokens, to attended.
  void attend_all(const PrepackedLayer& layer) const {
    linear(layer.qkv, x_, Type::f32, m_, qkv_, type_);
    Attention a = attention();
    char* const qkv = (char*)qkv_;
    a.q = {qkv, 3 * width_, d_};
    a.k = {qkv + width_ * bytes_, 3 * width_, d_};
    a.v = {qkv + 2 * width_ * bytes_, 3 * width_, d_};
    a.out = {attended_, width_, d_};
    attend(a);
  }

  // The attention of the tokens that are read, over the layer's inputs themselves: to attended; those inputs to read.
  void attend_absorbed() {
    Attention a = attention();
    a.cu_q = cu_read_;
    a.max_q = 0;
    for (int64_t b = 0, r = 0; b <= sequences_; b++) {
      while (r < n_ && batch_.token_index[chunk_.read_begin + r] < batch_.cu_seqlens[chunk_.begin + b]) r++;
      cu_read_[b] = int32_t(r);
      if (b) a.max_q = std::max<int64_t>(a.max_q, cu_read_[b] - cu_read_[b - 1]);
    }
    gather(x_, read_, width_ * 4);
    linear(encoder_.absorbed.query, read_, Type::f32, n_, attended_, type_);  // the queries, for now
    project_heads(encoder_.absorbed.keys, attended_, d_, absorbed_, width_);
    a.kv_heads = 1;
    a.d = a.d_v = width_;
    a.q = {absorbed_, heads_ * width_, width_};
    a.k = a.v = {inputs_as_keys(), width_, width_};
    a.out = {context_, heads_ * width_, width_};
    attend(a);
    project_heads(encoder_.absorbed.values, context_, width_, attended_, d_);
  }

  // The tokens that are read, head by head: from [n, heads, in] to [n, heads, out].
  void project_heads(const std::vector<PrepackedLinear>& w, const void* from, int64_t in, void* to, int64_t out) const {
    const LinearKernels& kernels = encoder_.absorbed_kernels;
    const Team alone{false};
    team_(heads_, n_ * in * out * kernels.cost, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; h++) {
        const Activations part = rows_from(absorbed_activations_, h * n_, step_bytes(kernels, in));
        const Activations x =
            activations(kernels, (const char*)from + h * in * bytes_, type_, heads_ * in, n_, in, part, alone);
        linear(kernels, w[size_t(h)], x, n_, (char*)to + h * out * bytes_, type_, heads_ * out, Activation::identity,
               alone);
      }
    });
  }

  // x [m, H] in the type that attention reads.
  void* inputs_as_keys() const {
    if (type_ != Type::bf16) return x_;
    // One row after the other, each over the padding of the one before.
    const LinearKernels& kernels = encoder_.absorbed_kernels;
    const Team ordered{team_.shared && width_ % kernels.per_step == 0};
    ordered(m_, width_ * 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++)
        kernels.pack_activations(x_ + t * width_, Type::f32, width_, 1, width_,
                                 {(char*)qkv_ + t * width_ * 2, width_ * 2, nullptr, nullptr, nullptr});
    });
    return qkv_;
  }

  // The block's second half: x = LN(x + W_o attended), x = LN(x + FFN(x)).
  void finish(const PrepackedLayer& layer, float* x, int64_t rows) const {
    linear(layer.out, attended_, type_, rows, y_, Type::f32);
    add_norm(x, layer.out_bias, layer.norm1, rows);
    linear(layer.dense1, x, Type::f32, rows, hidden_, type_, encoder_.activation);
    linear(layer.dense2, hidden_, type_, rows, y_, Type::f32);
    add_norm(x, layer.dense2_bias, layer.norm2, rows);
  }

  const PrepackedEncoder& encoder_;
  const Batch& batch_;
  const Chunk chunk_;
  const Team team_;
  const int64_t width_ = encoder_.width, heads_ = encoder_.heads, d_ = width_ / heads_;
  const int64_t first_token_ = batch_.cu_seqlens[chunk_.begin], m_ = batch_.cu_seqlens[chunk_.end] - first_token_;
  const int64_t n_ = chunk_.read_end - chunk_.read_begin, sequences_ = chunk_.end - chunk_.begin;
  const Type type_ = encoder_.kernels.between;  // of what attention reads and writes, and inside feed-forward layers
  const int64_t bytes_ = size_of(type_);        // of an element of that type
  int64_t longest_ = 0;

  // Buffers; all but those of float are of `type_`.
  float *x_, *y_, *read_, *mean_, *rstd_;               // [m, H], [max(m, n), H], [n, H], [max(m, n)] twice
  void *qkv_, *attended_, *hidden_;                     // [m, 3H], [max(m, n), H], [max(m, n), widest]
  void *absorbed_, *context_;                           // [n, heads, H] each
  Activations activations_{}, absorbed_activations_{};  // of max(m, n) rows
  int32_t *cu_, *cu_read_;                              // [sequences + 1]: where each begins among m and n
  const Scratch memory_{buffer_bytes()};
};

}  // namespace

void encode(const PrepackedEncoder& encoder, const Batch& batch, const Chunk& chunk, bool shared) {
  ChunkEncoder(encoder, batch, chunk, Team{shared}).run();
}

}  // namespace bertnli
