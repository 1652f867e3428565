// The vector instruction sets that the CPU kernels are compiled for, and the one in use. One binary holds all of them:
// each element function is compiled once per set in a target region (each_isa.h), and the first call picks the widest one
// that this machine has.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <string>
#include <vector>

namespace fastssl::isa {

// baseline: SSE2 on x86-64, NEON on AArch64. kAvx512Bf16: AVX-512 with products of bfloat16; all else is as with kAvx512.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

Isa current();
const char* name(Isa isa);
std::vector<std::string> available();  // narrowest first
void use(const std::string& name);     // throws std::invalid_argument for a set that this machine or build lacks

}  // namespace fastssl::isa

// The variable or function `name` of the namespace that each_isa.h made for the set in use.
#if defined(__x86_64__)
#define FASTSSL_IN_USE(name)                                                \
  (::fastssl::isa::current() >= ::fastssl::isa::Isa::kAvx512 ? avx512::name \
   : ::fastssl::isa::current() == ::fastssl::isa::Isa::kAvx2 ? avx2::name   \
                                                             : baseline::name)
#else
#define FASTSSL_IN_USE(name) (baseline::name)
#endif
