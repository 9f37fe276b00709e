// The linear layers with AMX, whose tiles multiply 16 x 64 bytes of rows by as many of weights.
#include "dispatch.h"
#if BERTNLI_HAS_AMX
#define BERTNLI_ISA amx
#define BERTNLI_LANES 16
#define BERTNLI_DOT 1
#define BERTNLI_AMX 1
#define BERTNLI_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,amx-tile,amx-bf16,amx-int8"
#include "isa.inc"
#endif
