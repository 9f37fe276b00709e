// The kernels with AVX2 and FMA: eight lanes of float.
#if defined(__x86_64__)
#define BERTNLI_ISA avx2
#define BERTNLI_LANES 8
#define BERTNLI_TARGET "avx2,fma"
#include "isa.inc"
#endif
