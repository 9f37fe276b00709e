// A batch is cut into chunks of whole sequences. Each thread takes a chunk through all layers by itself, so that its
// rows stay in the thread's caches; a batch too small for that is one chunk, whose every step all threads share.
#include "encoder.h"

#include "checks.h"
#include "encoder_chunk.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cmath>

namespace bertnli {

using at::Tensor;

namespace {

// The first tokens of the sequences of checked cu_seqlens.
std::vector<int64_t> first_tokens(const int32_t* cu, int64_t batch) {
  for (int64_t b = 0; b < batch; b++)
    TORCH_CHECK_VALUE(cu[b] < cu[b + 1], "every sequence needs at least its <cls> token; found a valid length of 0");
  return {cu, cu + batch};
}

// A copy: another thread may write to the caller's tensor.
std::vector<int64_t> checked_token_index(const Tensor& index, int64_t tokens) {
  TORCH_CHECK(index.dim() == 1 && index.scalar_type() == at::kLong && index.device().is_cpu(),
              "rows must be int64 [R] on the CPU; found ", index.dtype(), " ", index.sizes());
  const Tensor dense = index.contiguous();
  const int64_t* from = dense.const_data_ptr<int64_t>();
  std::vector<int64_t> found(from, from + dense.size(0));
  for (size_t i = 0; i < found.size(); i++) {
    TORCH_CHECK_INDEX(found[i] >= 0 && found[i] < tokens, "rows must lie between 0 and ", tokens - 1,
                      ", the last token; found ", found[i]);
    TORCH_CHECK_VALUE(i == 0 || found[i] >= found[i - 1], "rows must be ascending");
  }
  return found;
}

// Chunks of about `wanted` tokens; token_index as in Batch.
std::vector<Chunk> split(const int32_t* cu, int64_t batch, const std::vector<int64_t>* token_index, int64_t wanted) {
  std::vector<Chunk> chunks;
  for (int64_t b = 0, r = 0; b < batch;) {
    Chunk c{b, b, r, r};
    do c.end++;
    while (c.end < batch && cu[c.end + 1] - cu[c.begin] <= wanted);
    if (token_index)
      while (c.read_end < int64_t(token_index->size()) && (*token_index)[size_t(c.read_end)] < cu[c.end]) c.read_end++;
    else
      c.read_begin = cu[c.begin], c.read_end = cu[c.end];
    b = c.end, r = c.read_end;
    chunks.push_back(c);
  }
  return chunks;
}

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

// x weight^T + bias, float32: x [R, in], weight [out, in], bias [out].
Tensor dense(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const int64_t rows = x.size(0), in = x.size(1);
  for (const Tensor& t : {weight, bias})
    TORCH_CHECK(t.is_cpu() && t.scalar_type() == at::kFloat, "a head's weights must be float32 on the CPU, as its ",
                "encoder's are; found ", t.dtype(), " on ", t.device());
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(1) == in && bias.dim() == 1 && bias.size(0) == weight.size(0),
                    "a head's layer must take vectors of ", in, "; found weights ", weight.sizes(), " and biases ",
                    bias.sizes());
  if (!few(x)) return at::linear(x, weight, bias);
  const int64_t out = weight.size(0);
  const Tensor y = at::empty({rows, out}, at::kFloat), w = weight.contiguous(), b = bias.contiguous();
  const float *from = x.const_data_ptr<float>(), *ws = w.const_data_ptr<float>(), *bs = b.const_data_ptr<float>();
  float* to = y.data_ptr<float>();
  share(out, 2.0 * double(rows * in), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++)
      for (int64_t r = 0; r < rows; r++) to[r * out + o] = dot(from + r * in, ws + o * in, in) + bs[o];
  });
  return y;
}

}  // namespace

Tensor FusedEncoder::features(const Tensor& ids, const Tensor& segments, const Tensor& positions,
                              const Tensor& cu_seqlens, const std::optional<Tensor>& token_index, bool first) const {
  EmbedCall embed = checked_embed(ids, segments, positions, encoder_.token.size(0), encoder_.segment.size(0),
                                  encoder_.position.size(0));
  Embed& e = embed.args;
  e.token = encoder_.token.const_data_ptr();
  e.segment = encoder_.segment.const_data_ptr();
  e.position = encoder_.position.const_data_ptr();
  e.width = encoder_.width;
  const auto checked = checked_cu_seqlens(cu_seqlens, "cu_seqlens", e.tokens, e.tokens, "the number of tokens");
  const int32_t* const cu = checked.data();
  const int64_t batch = int64_t(checked.size()) - 1;
  std::optional<std::vector<int64_t>> index;
  if (first)
    index = first_tokens(cu, batch);
  else if (token_index.has_value())
    index = checked_token_index(*token_index, e.tokens);
  const int64_t read = index ? int64_t(index->size()) : e.tokens;
  const Tensor out = at::empty({read, encoder_.width}, at::kFloat);
  if (read == 0) return out;  // of no tokens, or of none of them

  const Batch call{e, cu, index ? index->data() : nullptr, out.data_ptr<float>(), index && read <= batch};
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t wanted = std::clamp<int64_t>(e.tokens / (3 * threads), 64, encoder_.kernels.tokens);
  const std::vector<Chunk> chunks = split(cu, batch, index ? &*index : nullptr, wanted);
  if (threads > 1 && int64_t(chunks.size()) < 2 * threads) {
    encode(encoder_, call, {0, batch, 0, read}, true);
    return out;
  }
  const double per_token = double(encoder_.width * encoder_.widest);  // of one product of a layer
  share_longest_first(
      int64_t(chunks.size()), [&](int64_t i) { return per_token * (cu[chunks[i].end] - cu[chunks[i].begin]); },
      [&](int64_t i) { encode(encoder_, call, chunks[i], false); });
  return out;
}

Tensor FusedEncoder::outputs(const Tensor& ids, const Tensor& segments, const Tensor& positions,
                             const Tensor& cu_seqlens, const std::optional<Tensor>& token_index, bool first,
                             const std::vector<Tensor>& head) const {
  TORCH_CHECK(head.size() == 2 || head.size() == 4, "a head has one or two layers; found ", head.size(), " tensors");
  const at::NoGradGuard no_gradients;
  const c10::impl::ExcludeDispatchKeyGuard in_float32(c10::DispatchKey::AutocastCPU);
  Tensor x = features(ids, segments, positions, cu_seqlens, token_index, first);
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

}  // namespace bertnli
