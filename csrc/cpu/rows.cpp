// Compiles the element functions once per ISA and picks the set in use.
#include "cpu/rows.h"

#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "cpu/isa.h"

namespace fastssl {

namespace baseline {
#define FASTSSL_WIDTH 4
#include "cpu/lanes.h"
#include "cpu/rows.inl"
#undef FASTSSL_WIDTH
}  // namespace baseline

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define FASTSSL_WIDTH 8
#include "cpu/lanes.h"
#include "cpu/rows.inl"
#undef FASTSSL_WIDTH
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
namespace avx512 {
#define FASTSSL_WIDTH 16
#include "cpu/lanes.h"
#include "cpu/rows.inl"
#undef FASTSSL_WIDTH
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace isa {
namespace {

bool runs(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::kBaseline;
}

Isa widest() {
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2})
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
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : baseline;
}

std::vector<std::string> available() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (runs(isa)) names.push_back(name(isa));
  return names;
}

void use(const std::string& wanted) {
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (wanted == name(isa) && runs(isa)) {
      in_use() = isa;
      return;
    }
  std::string list;
  for (const auto& each : available()) list += (list.empty() ? "" : ", ") + each;
  throw std::invalid_argument("set_isa: expected one of " + list + ", got " + wanted);
}

}  // namespace isa

template <>
const Rows<float>& rows<float>() {
#if defined(__x86_64__)
  if (isa::current() == isa::Isa::kAvx512) return avx512::RowFunctions<avx512::FloatLane>::table;
  if (isa::current() == isa::Isa::kAvx2) return avx2::RowFunctions<avx2::FloatLane>::table;
#endif
  return baseline::RowFunctions<baseline::FloatLane>::table;
}

template <>
const Rows<double>& rows<double>() {
  return baseline::RowFunctions<baseline::DoubleLane>::table;
}

}  // namespace fastssl
