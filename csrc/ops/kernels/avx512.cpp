// The kernels with AVX-512: sixteen lanes of float.
#if defined(__x86_64__)
#define BERTNLI_ISA avx512
#define BERTNLI_LANES 16
#define BERTNLI_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#include "isa.inc"
#endif
