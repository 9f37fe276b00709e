// The instruction sets that this build knows, each with all of those before it.
#pragma once
#include <string>

// Linux alone hands out AMX's registers in the way that dispatch.cpp knows, and GCC knows them since its version 11.
#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || defined(__clang__))
#define BERTNLI_HAS_AMX 1
#else
#define BERTNLI_HAS_AMX 0
#endif

namespace bertnli {

std::string cpu_isa();

// The environment's choice, or the best that the CPU has, where `name` is empty.
void set_cpu_isa(const std::string& name);

// Whether `linear` multiplies faster than the libraries that PyTorch calls.
bool cpu_multiplies_better(bool bf16);

}  // namespace bertnli
