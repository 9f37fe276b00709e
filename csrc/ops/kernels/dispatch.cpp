// The choice of the instruction set, at run time.
#include "dispatch.h"

#include "kernels.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <c10/util/Exception.h>
#pragma GCC diagnostic pop

#if BERTNLI_HAS_AMX
#include <cpuid.h>

#include "../../system.h"
#endif

#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <string>

namespace bertnli {

namespace plain {
void fill(Kernels&);
}
#if defined(__x86_64__)
namespace avx2 {
void fill(Kernels&);
}
namespace avx512 {
void fill(Kernels&);
}
namespace avx512_bf16 {
void fill(Kernels&);
}
#endif
#if BERTNLI_HAS_AMX
namespace amx {
void fill(Kernels&);
}
#endif

namespace {

enum class Isa { plain, avx2, avx512, avx512_bf16, amx };  // each has all of those before it
const char* const kIsaNames[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};

#if BERTNLI_HAS_AMX
// By the CPU and the operating system.
bool amx_allowed() {
  unsigned a, b, c, d;
  constexpr unsigned kFeatures = 13u << 22;  // bits 22, 24, 25: bf16, tile, int8
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kFeatures) == kFeatures && allows_amx();
}
#endif

// By the CPU and the operating system: __builtin_cpu_supports also asks XGETBV whether the registers are kept.
bool supported(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::avx512_bf16) return avx512_bf16;
#if BERTNLI_HAS_AMX
  if (isa == Isa::amx) return avx512_bf16 && amx_allowed();
#endif
#endif
  return isa == Isa::plain;
}

Isa best_isa() {
  for (Isa isa : {Isa::amx, Isa::avx512_bf16, Isa::avx512, Isa::avx2})
    if (supported(isa)) return isa;
  return Isa::plain;
}

Isa isa_named(const std::string& name, const char* source) {
  for (int i = 0; i < int(std::size(kIsaNames)); i++)
    if (name == kIsaNames[i]) {
      TORCH_CHECK(supported(Isa(i)), source, " asks for ", name, ", which this CPU lacks; the best it has is ",
                  kIsaNames[int(best_isa())]);
      return Isa(i);
    }
  TORCH_CHECK(false, source, " must be plain, avx2, avx512, avx512_bf16 or amx; found '", name, "'");
}

// BERTNLI_ISA, else the best that the CPU has.
Isa first_isa() {
  const char* name = std::getenv("BERTNLI_ISA");
  return name && *name ? isa_named(name, "the environment variable BERTNLI_ISA") : best_isa();
}

Kernels table_of([[maybe_unused]] Isa isa) {
  Kernels k{};
  plain::fill(k);
#if defined(__x86_64__)
  if (isa >= Isa::avx2) avx2::fill(k);
  if (isa >= Isa::avx512) avx512::fill(k);
  const auto attention = k.attention;
  if (isa >= Isa::avx512_bf16) avx512_bf16::fill(k);
  // CPUs with AMX take more time for a dot product of bf16 pairs than for the two multiplications in float.
  if (isa == Isa::amx) k.attention = attention;
#endif
#if BERTNLI_HAS_AMX
  if (isa == Isa::amx) amx::fill(k);
#endif
  return k;
}

const Kernels& table(Isa isa) {
  static const auto tables = [] {
    std::array<Kernels, std::size(kIsaNames)> made{};
    for (int i = 0; i < int(made.size()); i++)
      if (supported(Isa(i))) made[i] = table_of(Isa(i));
    return made;
  }();
  return tables[int(isa)];
}

// At the first call `first_isa`.
std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> isa{first_isa()};
  return isa;
}

}  // namespace

const Kernels& kernels() { return table(chosen_isa().load()); }

std::string cpu_isa() { return kIsaNames[int(chosen_isa().load())]; }

void set_cpu_isa(const std::string& name) {
  chosen_isa().store(name.empty() ? first_isa() : isa_named(name, "set_cpu_isa"));
}

// On AMD's CPUs MKL leaves AVX-512 alone, and oneDNN compiles products of bf16 anew for every number of rows. Elsewhere
// they are as fast: Intel's with AVX-512 or AMX, AMD's with AVX2.
bool cpu_multiplies_better([[maybe_unused]] bool bf16) {
#if defined(__x86_64__) && defined(_OPENMP)
  return __builtin_cpu_is("amd") && chosen_isa().load() >= (bf16 ? Isa::avx512_bf16 : Isa::avx512);
#else
  return false;
#endif
}

}  // namespace bertnli
