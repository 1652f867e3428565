// Which vector instruction sets this machine has, and the one in use.
#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

namespace fastssl::isa {
namespace {

bool runs(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Bf16) return runs(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
  if (isa == Isa::kAvx512)
    return runs(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return isa == Isa::kBaseline;
}

Isa widest() {
  for (Isa isa : {Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2})
    if (runs(isa)) return isa;
  return Isa::kBaseline;
}

std::atomic<Isa>& in_use() {
  static std::atomic<Isa> isa{widest()};
  return isa;
}

}  // namespace

Isa current() { return in_use(); }

const char* name(Isa isa) {
#if defined(__aarch64__)
  const char* baseline = "neon";
#elif defined(__x86_64__)
  const char* baseline = "sse2";
#else
  const char* baseline = "scalar";
#endif
  return isa == Isa::kAvx512Bf16 ? "avx512_bf16" : isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : baseline;
}

std::vector<std::string> available() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16})
    if (runs(isa)) names.push_back(name(isa));
  return names;
}

void use(const std::string& wanted) {
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16})
    if (wanted == name(isa) && runs(isa)) {
      in_use() = isa;
      return;
    }
  std::string list;
  for (const auto& each : available()) list += (list.empty() ? "" : ", ") + each;
  throw std::invalid_argument("set_isa: expected one of " + list + ", got " + wanted);
}

}  // namespace fastssl::isa
