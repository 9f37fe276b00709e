// The linear layers with AMX, whose tiles multiply 16 x 64 bytes of rows by as many of weights. The
// headers come before the pragma, so that nothing in them that another file may share is compiled for this instruction
// set.
#include "kernels.h"
#if BERTNLI_HAS_AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__clang__)
#pragma clang attribute push(                                                                  \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma," \
                          "amx-tile,amx-bf16,amx-int8"))),                                     \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,amx-tile,amx-bf16,amx-int8")
#endif

#define BERTNLI_LANES 16
#define BERTNLI_DOT 1
#define BERTNLI_AMX 1
namespace bertnli::amx {
#include "vectors.inc"
//
#include "rows_kernel.inc"
//
#include "gemm_kernel.inc"
}  // namespace bertnli::amx

namespace bertnli {
LinearKernels linear_amx(Precision precision) { return amx::linear_kernels(precision); }
}  // namespace bertnli
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace bertnli {
// By the CPU and the operating system, which keeps the tiles of those processes only that have asked for it.
bool amx_allowed() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 13) != 13)
    return false;                                   // bits 22, 24, 25: bf16, tile, int8
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
}  // namespace bertnli
#endif
