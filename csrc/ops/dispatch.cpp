// The choice of the instruction set, at run time.
#include "kernels.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace bertnli {
namespace {

enum class Isa { plain, avx2, avx512, avx512_bf16, amx };  // each has all of those before it
const char* const kIsaNames[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};

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

// At the first call `first_isa`.
std::atomic<int>& chosen_isa() {
  static std::atomic<int> isa{int(first_isa())};
  return isa;
}

}  // namespace

AttentionKernel attention_kernel(Type type) {
  if (type == Type::f64) return attention_plain(type);
#if defined(__x86_64__)
  const Isa isa = Isa(chosen_isa().load());
  // CPUs with AMX take more time for a dot product of bf16 pairs than for the two multiplications in float.
  if (isa == Isa::avx512_bf16) return attention_avx512_bf16(type);
  if (isa >= Isa::avx512) return attention_avx512(type);
  if (isa == Isa::avx2) return attention_avx2(type);
#endif
  return attention_plain(type);
}

RowKernels row_kernels(Type x, Type y) {
  if (x == Type::f64) return rows_plain(x, y);
#if defined(__x86_64__)
  const Isa isa = Isa(chosen_isa().load());
  if (isa >= Isa::avx512) return rows_avx512(x, y);
  if (isa == Isa::avx2) return rows_avx2(x, y);
#endif
  return rows_plain(x, y);
}

LinearKernels linear_kernels(Precision precision) {
#if defined(__x86_64__)
  const Isa isa = Isa(chosen_isa().load());
#if BERTNLI_HAS_AMX
  if (isa == Isa::amx && precision != Precision::fp32) return linear_amx(precision);
#endif
  if (isa >= Isa::avx512_bf16) return linear_avx512_bf16(precision);
  if (isa == Isa::avx512) return linear_avx512(precision);
  if (isa == Isa::avx2) return linear_avx2(precision);
#endif
  return linear_plain(precision);
}

AdamKernels adam_kernels(Type gradient, Type parameter) {
  if (parameter == Type::f64) return adam_plain(gradient, parameter);
#if defined(__x86_64__)
  const Isa isa = Isa(chosen_isa().load());
  if (isa >= Isa::avx512) return adam_avx512(gradient, parameter);
  if (isa == Isa::avx2) return adam_avx2(gradient, parameter);
#endif
  return adam_plain(gradient, parameter);
}

void* scratch_memory(size_t bytes, Scratch purpose) {
  struct Block {
    std::unique_ptr<char[]> memory;
    size_t size = 0;
  };
  thread_local Block blocks[4];
  Block& block = blocks[int(purpose)];
  if (block.size < bytes + 64) {
    block.size = 0;
    block.memory.reset();
    block.memory.reset(new char[bytes + 64]);
    block.size = bytes + 64;
  }
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block.memory.get()) + 63) / 64 * 64);
}

int64_t cpu_threads() {
  std::vector<char> seen(size_t(at::get_num_threads()));
  at::parallel_for(0, int64_t(seen.size()), 1, [&](int64_t, int64_t) { seen[size_t(at::get_thread_num())] = 1; });
  return std::count(seen.begin(), seen.end(), 1);
}

// Whether `linear` multiplies faster than the libraries that PyTorch calls: on AMD's CPUs MKL leaves AVX-512 alone, and
// oneDNN compiles products of bf16 anew for every number of rows. (Elsewhere they are as fast: Intel's with AVX-512 or
// AMX, AMD's with AVX2.)
bool cpu_multiplies_better([[maybe_unused]] bool bf16) {
#if defined(__x86_64__) && defined(_OPENMP)
  return __builtin_cpu_is("amd") && Isa(chosen_isa().load()) >= (bf16 ? Isa::avx512_bf16 : Isa::avx512);
#else
  return false;
#endif
}

std::string cpu_isa() { return kIsaNames[chosen_isa().load()]; }
void set_cpu_isa(const std::string& name) {
  chosen_isa().store(int(name.empty() ? first_isa() : isa_named(name, "set_cpu_isa")));
}

}  // namespace bertnli
