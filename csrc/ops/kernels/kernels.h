// The CPU kernels: what the operators hand to them, and the table of those of the chosen instruction set.
//
// "Computed type" is float, or double where the tensors are f64. Rows are contiguous unless a stride is given.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bertnli {

enum class Type { f32, bf16, f64 };
enum class Precision { fp32, bf16, int8 };
enum class Activation { identity, relu, gelu, gelu_tanh };

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
  Rows q, k, v, out;  // [Tq, heads, d], [T, kv_heads, d], [T, kv_heads, d_v], [Tq, heads, d_v]
  void* weight_sum;   // [Tq, heads], computed type; null where no backward pass follows, like lse
  void* lse;          // [Tq, heads], computed type: log(sum(exp(scores))) of each query
  int64_t heads, kv_heads, d, d_v;
  const int32_t *cu_q, *cu_k;  // [batch + 1]
  int64_t max_q, max_k;        // no sequence is longer
  double scale;

  Dropout dropout;  // of (sequence, head, query, key): lane key % 4, counter (sequence, head, query, key / 4)

  // Backward only.
  Rows dout, dq, dk, dv;    // of the shapes of out, q, k and v
  const void* dweight_sum;  // [Tq, heads], computed type; null where nothing reads weight_sum
};

// A task is one sequence and one key/value head, with every query head that reads it; tasks write disjoint memory.
struct AttentionKernels {
  size_t (*scratch_bytes)(const Attention&);  // what each task needs; it does not grow with the square of the length
  void (*forward)(const Attention&, int64_t sequence, int64_t kv_head, void* scratch);
  void (*backward)(const Attention&, int64_t sequence, int64_t kv_head, void* scratch);
};

// ---- row by row ----
// Each call does rows `begin` to `end`. `scratch` has row_scratch_bytes(width). `sums` gets the sums over these rows of
// some vectors, [vectors, width rounded up to kSumUnit] in the computed type.

constexpr int64_t kSumUnit = 16;
constexpr size_t row_scratch_bytes(int64_t width) { return size_t((width + 63) / 64 * 64) * 20; }

// out = LayerNorm(x + dropout(y + y_bias)).
struct AddNorm {
  const void* x;       // [rows, width]
  const void* y;       // [rows, width], x's type, or bf16 where that is f32
  const void* y_bias;  // [width], computed type; may be null
  const void* weight;  // [width], computed type
  const void* bias;    // [width], computed type
  void* out;           // [rows, width], x's type
  void* mean;          // [rows], computed type: written forward, read backward
  void* rstd;          // [rows], computed type, like mean
  int64_t width;
  double eps;

  // Of (row, column): lane column % 4, counter (row, 2^32 - 1, 0, column / 4). Attention's heads are never so many, so
  // no mask is used twice.
  Dropout dropout;

  // Backward only.
  const void* dout;  // [rows, width], x's type
  void* dx;          // [rows, width], x's type
  void* dy;          // [rows, width], y's type
};
struct NormKernels {
  void (*add_norm)(const AddNorm&, int64_t begin, int64_t end, void* scratch);
  // sums: dweight, dbias, dy_bias
  void (*add_norm_backward)(const AddNorm&, int64_t begin, int64_t end, void* sums, void* scratch);
};

// out = activation(x + bias).
struct BiasAct {
  const void* x;     // [rows, width]
  const void* bias;  // [width], computed type
  void* out;         // [rows, width], x's type
  int64_t width;
  Activation activation;

  // Backward only.
  const void* dout;  // [rows, width], x's type
  void* dx;          // [rows, width], x's type
};
struct ActivationKernels {
  void (*bias_act)(const BiasAct&, int64_t begin, int64_t end);
  void (*bias_act_backward)(const BiasAct&, int64_t begin, int64_t end, void* sums);  // sums: dbias
};

// out[t] = token[ids[t]] + segment[segments[t]] + position[positions[t]].
struct Embed {
  const void* token;         // [vocabulary, width]
  const void* segment;       // [segment rows, width], token's type
  const void* position;      // [position rows, width], token's type
  const int32_t* ids;        // [tokens]
  const int32_t* segments;   // [tokens]
  const int32_t* positions;  // [tokens]
  int64_t tokens, width;
  void* out;  // [tokens, width], token's type
};

// sums[g] = the sum of the rows of x whose group is g, in ascending order. Those of groups without rows stay.
struct RowSums {
  const void* x;         // [rows, width]
  const int32_t* order;  // [rows]: row order[i] is one of group[i]
  const int32_t* group;  // [rows], does not decrease
  int64_t rows, width;
  void* sums;  // [groups, width], computed type
};

// out = dropout(LayerNorm(the sum of `rows`)).
struct EmbedNorm {
  Embed rows;          // all but `out`
  const void* weight;  // [width], computed type
  const void* bias;    // [width], computed type
  void* out;           // [tokens, width], token's type, or bf16 where that is f32
  void* mean;          // [tokens], computed type: written forward, read backward
  void* rstd;          // [tokens], computed type, like mean
  double eps;
  Dropout dropout;  // as AddNorm's

  // Backward only.
  const void* dout;  // [tokens, width], out's type
  void* dz;          // [tokens, width], computed type: the gradient of the sum of `rows`
};
struct EmbeddingKernels {
  void (*embed)(const Embed&, int64_t begin, int64_t end);
  void (*sum_rows)(const RowSums&, int64_t begin, int64_t end);  // the groups that begin there, each whole
  void (*embed_norm)(const EmbedNorm&, int64_t begin, int64_t end, void* scratch);
  // sums: dweight, dbias
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
  void* parameter;       // [n], computed type
  void *m, *v;           // [n], computed type
  void* copy;            // [n], gets the parameter in bf16; may be null
  const void* gradient;  // [n], computed type, or bf16 where that is float
  double beta1, beta2, eps, l2, scale;
  const AdamStep* steps;  // [1], or [steps] of `skipped`
  int64_t steps_felt;     // after so many steps without a gradient, the moments move nothing any more
};

struct AdamKernels {
  double (*squares)(const void* gradient, int64_t begin, int64_t end);  // the sum of them
  void (*adam)(const Adam&, int64_t begin, int64_t end);                // the first of `steps`
  // Steps `first` to `last` of a row of `width` that has no gradient in them.
  void (*skipped)(const Adam&, int64_t row, int64_t width, int64_t first, int64_t last);
};

// ---- linear layers ----

// Weights [out, in] in the kernels' own order; bias, scale and sum are padded to whole panels. An output's int8 weights
// are scale times the integers, whose sum is sum.
struct Weights {
  const void* panels;  // [panels, steps, outputs of a panel, elements of a step]
  const float* scale;  // [out], int8 only
  const float* bias;   // [out]; may be null
  const int32_t* sum;  // [out], int8 only
  int64_t in, out;
};
// Rows in a precision, `stride` bytes apart. In int8 row r's elements are scale[r] (integer - zero[r]), and sum[r] is
// the integers' sum.
struct Activations {
  void* data;  // [rows, in rounded up to whole steps]
  int64_t stride;
  float* scale;         // [rows], int8 only
  int32_t *zero, *sum;  // [rows], int8 only
};
// What becomes of a product before it is written.
struct Epilogue {
  Activation activation = Activation::identity;
  bool accumulate = false;  // add to what is there
};
// out = activation(x w^T + bias).
struct LinearCall {
  Weights w;
  Activations x;
  int64_t rows;
  void* out;  // [rows, w.out], f32 or bf16, rows out_stride elements apart
  Type out_type;
  int64_t out_stride;
  Epilogue epilogue = {};
};
struct LinearKernels {
  int64_t panel;                    // outputs of a panel
  int64_t per_step;                 // elements of a step: rows of both operands end with a whole step
  int64_t weight_bytes, row_bytes;  // of a step: of one output, of a row
  Type between;                     // f32 or bf16: best for what lies between products
  bool no_repack;                   // rows of that type in whole steps are activations without pack_activations
  double cost;                      // of a product of two elements, beside a multiplication by vectors of floats
  int64_t tokens;  // that a thread best takes through all layers at a time: weights pass the caches once for them
  // weight[out, in] with strides in elements to whole panels; int8 writes scale and sum, [out].
  void (*pack_weights)(const float* weight, int64_t out_stride, int64_t in_stride, int64_t out, int64_t in,
                       void* panels, float* scale, int32_t* sum);
  // x[rows, width], f32 or bf16, `stride` elements apart.
  void (*pack_activations)(const void* x, Type, int64_t stride, int64_t rows, int64_t width, const Activations&);
  void (*linear)(const LinearCall&, int64_t begin_panel, int64_t end_panel, void* scratch);
  size_t (*scratch_bytes)(int64_t in, int64_t rows);

  // Training: matrices in the precision's type, rows `stride` elements apart, are packed anew in every step. Null for
  // int8, and for bf16 where no instruction multiplies pairs.
  void (*pack_rows)(const void* m, int64_t stride, int64_t out, int64_t in, void* panels);     // m[out, in] to panels
  void (*pack_columns)(const void* m, int64_t stride, int64_t out, int64_t in, void* panels);  // m[in, out] to panels
  // m[in, rows] to rows in whole steps, `to_stride` bytes apart.
  void (*transpose_pack)(const void* m, int64_t stride, int64_t rows, int64_t in, void* to, int64_t to_stride);
};

// ---- instruction sets ----

// One T for each enumerator of Key, a Type or a Precision.
template <class Key, class T>
struct By {
  T items[3];
  __attribute__((always_inline)) T& operator[](Key key) { return items[int(key)]; }
  __attribute__((always_inline)) const T& operator[](Key key) const { return items[int(key)]; }
};

// The kernels of one instruction set. Each build fills in what it has, over that of the sets before it.
struct Kernels {
  By<Type, AttentionKernels> attention;            // by the type of q, k and v
  By<Type, By<Type, NormKernels>> norm;            // by the types of x and y
  By<Type, ActivationKernels> activation;          // by the type of x
  By<Type, By<Type, EmbeddingKernels>> embedding;  // by the types of the tables and of the result
  By<Type, By<Type, AdamKernels>> adam;            // by the types of the gradient and of the parameter
  By<Precision, LinearKernels> linear;
};

// Those of the chosen instruction set.
const Kernels& kernels();

}  // namespace bertnli
