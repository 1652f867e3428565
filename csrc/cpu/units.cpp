// Asks the CPU which 16-bit units it has: the compiler's own __builtin_cpu_supports knows their names in its newest versions only.
#include "cpu/units.h"

#include <cstdint>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastssl::units {
namespace {

constexpr Unit kAll[] = {Unit::kAvx512Bf16, Unit::kAvx512Fp16, Unit::kAmxBf16, Unit::kAmxFp16};

struct Bits {
  bool vectors, tiles;              // registers that the system keeps: AVX-512's, AMX's
  uint32_t seven_edx, seven_1_eax;  // CPUID leaf 7: EDX of subleaf 0, EAX of subleaf 1
};

Bits bits() {
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return {};
  uint32_t kept, upper;
  asm volatile("xgetbv" : "=a"(kept), "=d"(upper) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
  Bits found{__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"), (kept >> 17 & 3) == 3 && (d >> 24 & 1), d,
             0};
  if (a >= 1) __cpuid_count(7, 1, found.seven_1_eax, b, c, d);
  return found;
#else
  return {};
#endif
}

}  // namespace

const char* name(Unit unit) {
  switch (unit) {
    case Unit::kAvx512Bf16:
      return "avx512_bf16";
    case Unit::kAvx512Fp16:
      return "avx512_fp16";
    case Unit::kAmxBf16:
      return "amx_bf16";
    case Unit::kAmxFp16:
      return "amx_fp16";
  }
  return "";
}

bool has(Unit unit) {
  static const Bits found = bits();
  switch (unit) {
    case Unit::kAvx512Bf16:
      return found.vectors && found.seven_1_eax >> 5 & 1;
    case Unit::kAvx512Fp16:
      return found.vectors && found.seven_edx >> 23 & 1;
    case Unit::kAmxBf16:
      return found.tiles && found.seven_edx >> 22 & 1;
    case Unit::kAmxFp16:
      return found.tiles && found.seven_1_eax >> 21 & 1;
  }
  return false;
}

bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kAskFor = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kAskFor, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

std::vector<std::string> available() {
  std::vector<std::string> names;
  for (const Unit unit : kAll)
    if (has(unit)) names.push_back(name(unit));
  return names;
}

}  // namespace fastssl::units
