// Variable-length attention on the CPU: what the operator hands to the kernels, and the kernels of each instruction
// set.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bertnli {

enum class Type { f32, bf16, f64 };

// A [tokens, heads, width] tensor: strides in elements, width contiguous.
struct Rows {
  void* data;
  int64_t token, head;
};

// One call. Sequence b has the queries cu_q[b] to cu_q[b+1] and the keys cu_k[b] to cu_k[b+1]; query head h reads the
// key and value head h / (heads / kv_heads).
struct Attention {
  Rows q, k, v, out;
  void *weight_sum, *lse;  // [Tq, heads], float (double for f64)
  int64_t heads, kv_heads, d, d_v;
  const int32_t *cu_q, *cu_k;
  int64_t max_q, max_k;  // no sequence is longer
  double scale;

  // Dropout: keep the weight of (sequence, head, query, key) iff lane key % 4 of
  // Philox4x32-10(counter = (sequence, head, query, key / 4), key = seed) is at least `threshold`; 0 keeps all.
  uint32_t threshold, seed[2];
  double keep_scale;  // 1 / (1 - p)

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

AttentionKernel attention_plain(Type);
#if defined(__x86_64__)
AttentionKernel attention_avx2(Type);    // f32 and bf16
AttentionKernel attention_avx512(Type);  // f32 and bf16
#endif

}  // namespace bertnli
