// The kernels for any CPU: four lanes of float (SSE2, NEON), and the only ones for double.
#define BERTNLI_ISA plain
#define BERTNLI_LANES 4
#include "isa.inc"
