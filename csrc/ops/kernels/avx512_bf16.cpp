// The kernels that gain from AVX-512's dot products of bf16 and int8.
#if defined(__x86_64__)
#define BERTNLI_ISA avx512_bf16
#define BERTNLI_LANES 16
#define BERTNLI_DOT 1
#define BERTNLI_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma"
#include "isa.inc"
#endif
