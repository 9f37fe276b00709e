// The CPU kernels: what the operators hand to them, and how one finds those of the chosen instruction set.
#pragma once
#include <cstddef>
#include <cstdint>

// Linux alone hands out AMX's registers in the way that kernels_amx.cpp knows, and GCC knows them since its version 11.
#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || defined(__clang__))
#define BERTNLI_HAS_AMX 1
#else
#define BERTNLI_HAS_AMX 0
#endif

namespace bertnli {

enum class Type { f32, bf16, f64 };

// Keep an element iff its word of Philox4x32-7 is at least `threshold`, and multiply it by `keep_scale`. (Seven rounds
// are the fewest that pass every test of BigCrush: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.)
struct Dropout {
  uint32_t threshold = 0;    // 0 keeps all
  uint32_t keys[7][2] = {};  // of each round; the first is the seed
  double keep_scale = 1;     // 1 / (1 - p)
};

// ---- variable-length attention ----

// A [tokens, heads, width] tensor: strides in elements, width contiguous.
struct Rows {
  void* data;
  int64_t token, head;
};

// One call. Sequence b has the queries cu_q[b] to cu_q[b+1] and the keys cu_k[b] to cu_k[b+1]; query head h reads the
// key and value head h / (heads / kv_heads).
struct Attention {
  Rows q, k, v, out;
  void *weight_sum, *lse;  // [Tq, heads], float (double for f64); both null where no backward pass follows
  int64_t heads, kv_heads, d, d_v;
  const int32_t *cu_q, *cu_k;
  int64_t max_q, max_k;  // no sequence is longer
  double scale;

  Dropout dropout;  // of (sequence, head, query, key): lane key % 4, counter (sequence, head, query, key / 4)

  // Backward only. dweight_sum is null where nothing reads weight_sum.
  Rows dout, dq, dk, dv;
  const void* dweight_sum;
};

// A task is one sequence and one key/value head, with every query head that reads it; tasks write disjoint memory.
struct AttentionKernel {
  size_t (*scratch_bytes)(const Attention&);  // what each task needs; it does not grow with the square of the length
  void (*forward)(const Attention&, int64_t sequence, int64_t kv_head, void* scratch);
  void (*backward)(const Attention&, int64_t sequence, int64_t kv_head, void* scratch);
};

// ---- row by row ----
// "Computed type" is float, or double where the tensors are f64.

// out = LayerNorm(x + dropout(y + y_bias)) of rows of `width`; x, y and out are contiguous.
struct AddNorm {
  const void *x, *y;                   // y may be bf16 where x is f32
  const void *y_bias, *weight, *bias;  // [width], computed type; y_bias may be null
  void* out;                           // x's type
  void *mean, *rstd;                   // [rows], computed type: written forward, read backward
  int64_t width;
  double eps;

  // Of (row, column): lane column % 4, counter (row, 2^32 - 1, 0, column / 4). Attention's heads are never so many, so
  // no mask is used twice.
  Dropout dropout;

  // Backward only.
  const void* dout;  // x's type
  void *dx, *dy;     // x's and y's type
};

enum class Activation { relu, gelu, gelu_tanh };

// out = activation(x + bias) of contiguous rows; bias in the computed type.
struct BiasAct {
  const void *x, *bias;
  void* out;
  int64_t width;
  Activation kind;
  const void* dout;  // backward only
  void* dx;
};

// out[t] = token[ids[t]] + segment[segments[t]] + position[positions[t]]; tables and rows are contiguous.
struct Embed {
  const void *token, *segment, *position;
  const int32_t *ids, *segments, *positions;
  int64_t tokens, width;
  void* out;
};

// sums[g] = the sum of the rows of x whose group is g, in ascending order. The sums are in the computed type, and those
// of groups without rows stay as they are.
struct RowSums {
  const void* x;                 // rows of `width`, contiguous
  const int32_t *order, *group;  // [rows]: row order[i] is one of group[i], which does not decrease
  int64_t rows, width;
  void* sums;
};

// out = dropout(LayerNorm(the sum of `rows`)); the tables have the x type of the kernels, out and dout the y type.
struct EmbedNorm {
  Embed rows;                 // up to `width`
  const void *weight, *bias;  // [width], computed type
  void *out, *mean, *rstd;    // as AddNorm's
  double eps;
  Dropout dropout;  // as AddNorm's
  // Backward only.
  const void* dout;
  void* dz;  // of the sum, computed type
};

// Each call does rows `begin` to `end`. Where sums over the rows are wanted, `sums` gets the partial ones of these
// rows, in the computed type: [3, padded(width)] dweight, dbias, dy_bias; [1, padded(width)] dbias; [2, padded(width)]
// dweight, dbias.
struct RowKernels {
  int64_t (*padded)(int64_t width);
  size_t (*scratch_bytes)(int64_t width);
  void (*add_norm)(const AddNorm&, int64_t begin, int64_t end, void* scratch);
  void (*add_norm_backward)(const AddNorm&, int64_t begin, int64_t end, void* sums, void* scratch);
  void (*bias_act)(const BiasAct&, int64_t begin, int64_t end);
  void (*bias_act_backward)(const BiasAct&, int64_t begin, int64_t end, void* sums);
  void (*embed)(const Embed&, int64_t begin, int64_t end);
  // The groups that begin at `begin` to `end`, each whole.
  void (*sum_rows)(const RowSums&, int64_t begin, int64_t end);
  void (*embed_norm)(const EmbedNorm&, int64_t begin, int64_t end, void* scratch);
  void (*embed_norm_backward)(const EmbedNorm&, int64_t begin, int64_t end, void* sums, void* scratch);
};

// ---- Adam ----

// What a step's number and learning rate make of it.
struct AdamStep {
  double size, root, shrink;  // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), 1 - lr * decoupled weight decay
};

// m = beta1 m + (1 - beta1) g and v = beta2 v + (1 - beta2) g^2 with g = scale * gradient + l2 * parameter, then
// parameter = shrink * parameter - size * m / (root * sqrt(v) + eps).
struct Adam {
  void *parameter, *m, *v;  // computed type
  void* copy;               // gets the parameter in bf16; may be null
  const void* gradient;     // computed type, or bf16 where that is float
  double beta1, beta2, eps, l2, scale;
  const AdamStep* steps;
  int64_t steps_felt;  // after so many steps without a gradient, the moments move nothing any more
};

struct AdamKernels {
  double (*squares)(const void* gradient, int64_t begin, int64_t end);  // the sum of them
  void (*adam)(const Adam&, int64_t begin, int64_t end);                // the first of `steps`
  // Steps `first` to `last` of a row of `width` that has no gradient in them.
  void (*skipped)(const Adam&, int64_t row, int64_t width, int64_t first, int64_t last);
};

// ---- linear layers ----

enum class Precision { fp32, bf16, int8 };

// Weights in the kernels' own order, [out, in]; bias, scale and sum are padded to whole panels. An output's int8
// weights are scale times the integers, whose sum is sum; bias may be null.
struct Linear {
  const void* panels;
  const float *scale, *bias;
  const int32_t* sum;
  int64_t in, out;
};
// Rows in a precision, `stride` bytes apart; int8: row r's elements are scale[r] (integer - zero[r]), and sum[r] is the
// integers' sum.
struct Operand {
  void* data;
  int64_t stride;
  float* scale;
  int32_t *zero, *sum;
};
enum class Then { nothing, relu, gelu, gelu_tanh };
// out[rows, w.out] = then(x w^T + bias), f32 or bf16, `out_stride` elements apart; `more` adds it to what is there.
struct LinearCall {
  Linear w;
  Operand x;
  int64_t rows;
  void* out;
  Type out_type;
  int64_t out_stride;
  Then then;
  bool more = false;
};
struct LinearKernels {
  int64_t panel;                    // outputs of a panel
  int64_t per_step;                 // elements: rows of operands and weights end with a whole step
  int64_t weight_bytes, row_bytes;  // of a step: of one output, of a row
  Type between;                     // f32 or bf16: best for what lies between products
  bool as_is;                       // whether rows of that type in whole steps are operands as they are
  double cost;                      // of a product of two elements, beside a multiplication by vectors of floats
  int64_t tokens;  // that a thread best takes through all layers at a time: weights pass the caches once for them
  // weight[out, in] with strides in elements to whole panels; int8 writes scale and sum, [out].
  void (*pack)(const float* weight, int64_t out_stride, int64_t in_stride, int64_t out, int64_t in, void* panels,
               float* scale, int32_t* sum);
  // f32 or bf16 rows, `stride` elements apart, to an operand.
  void (*operand)(const void* x, Type, int64_t stride, int64_t rows, int64_t width, const Operand&);
  void (*linear)(const LinearCall&, int64_t begin_panel, int64_t end_panel, void* scratch);
  size_t (*scratch_bytes)(int64_t in, int64_t rows);

  // Training: matrices in the precision's type, rows `stride` elements apart, become operands anew in every step. Null
  // for int8, and for bf16 where no instruction multiplies pairs.
  // m[out, in] to whole panels, and m[in, out].
  void (*pack_rows)(const void* m, int64_t stride, int64_t out, int64_t in, void* panels);
  void (*pack_columns)(const void* m, int64_t stride, int64_t out, int64_t in, void* panels);
  // m[in, rows] to rows in whole steps, `to_stride` bytes apart.
  void (*turn)(const void* m, int64_t stride, int64_t rows, int64_t in, void* to, int64_t to_stride);
};

// ---- instruction sets ----

AttentionKernel attention_plain(Type);
RowKernels rows_plain(Type x, Type y);
AdamKernels adam_plain(Type gradient, Type parameter);
LinearKernels linear_plain(Precision);
#if defined(__x86_64__)
AttentionKernel attention_avx2(Type);  // f32 and bf16 only, as the others of these sets
AttentionKernel attention_avx512(Type);
AttentionKernel attention_avx512_bf16(Type);
RowKernels rows_avx2(Type x, Type y);
RowKernels rows_avx512(Type x, Type y);
LinearKernels linear_avx2(Precision);
LinearKernels linear_avx512(Precision);
LinearKernels linear_avx512_bf16(Precision);
AdamKernels adam_avx2(Type gradient, Type parameter);
AdamKernels adam_avx512(Type gradient, Type parameter);
#endif
#if BERTNLI_HAS_AMX
bool amx_allowed();
LinearKernels linear_amx(Precision);  // bf16 and int8 only
#endif

LinearKernels linear_kernels(Precision);
AttentionKernel attention_kernel(Type);
RowKernels row_kernels(Type x, Type y);                   // (f32, f32), (f32, bf16), (bf16, bf16) or (f64, f64)
AdamKernels adam_kernels(Type gradient, Type parameter);  // (f32, f32), (bf16, f32) or (f64, f64)

// One block of memory a thread and purpose, kept between calls: fresh pages would cost more than the kernels
// themselves.
enum class Scratch { kernel, packed, turned, sums };
void* scratch_memory(size_t bytes, Scratch purpose = Scratch::kernel);

}  // namespace bertnli
