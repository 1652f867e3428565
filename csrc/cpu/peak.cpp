// Measures the peaks of peak.h, and has the loops of float32. A measurement takes about 20 ms on a quiet machine, less than a
// second on a busy one.
#include "cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastssl {
namespace {

#define FASTSSL_ISA_SOURCE "cpu/peak.inl"
#include "cpu/each_isa.h"

std::vector<PeakLoops> all_loops() {
  std::vector<PeakLoops> found = float_loops();
  for (const PeakLoops& each : sixteen_bit_loops()) found.push_back(each);
  return found;
}

template <class F>
double seconds_of(const F& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The most FLOP/s that all threads reach together in loop(thread, rounds), which returns the FLOPs of one thread. As many rounds as
// take one thread alone a millisecond, beside which the start of the others is short. Another process only ever makes a run slower:
// they are repeated until five are as fast as the fastest, within 2 %, which on a quiet machine are the first five.
template <class F>
double fastest(int threads, const F& loop) {
  int64_t rounds = 1;
  while (seconds_of([&] { loop(0, rounds); }) < 1e-3) rounds *= 2;
  std::vector<int64_t> flops(threads);
  std::vector<double> rates;
  double best = 0;
  const auto near_best = [&](double rate) { return rate >= 0.98 * best; };
  while (rates.size() < 100 && std::count_if(rates.begin(), rates.end(), near_best) < 5) {
    const double seconds = seconds_of([&] {
      parallel_tasks(threads, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++) flops[t] = loop(t, rounds);
      });
    });
    double all = 0;
    for (const int64_t each : flops) all += double(each);
    rates.push_back(all / seconds);
    best = std::max(best, rates.back());
  }
  return best;
}

Peak measure(const PeakLoops& loops) {
  const int threads = lost_its_team() ? 1 : thread_count();
  Peak peak{fastest(threads, [&](int64_t, int64_t rounds) { return loops.registers(rounds); }), 0};
  if (!loops.tile) return peak;
  constexpr int64_t kPage = 4096;
  const int64_t room = (loops.bytes + kPage - 1) / kPage * kPage;
  std::vector<unsigned char> memory(threads * room + kPage, 0x3c);  // about 0.01 in float32 and bfloat16, about 1 in float16
  auto* const first = memory.data() + (kPage - uintptr_t(memory.data()) % kPage);
  peak.tile = fastest(threads, [&](int64_t thread, int64_t rounds) { return loops.tile(first + thread * room, rounds); });
  return peak;
}

}  // namespace

std::vector<PeakLoops> float_loops() {
  std::vector<PeakLoops> found;
  for (const std::string& set : isa::available()) {
#if defined(__x86_64__)
    if (set == isa::name(isa::Isa::kAvx2)) found.push_back(avx2::loops<avx2::Floats>("float32", set));
    if (set == isa::name(isa::Isa::kAvx512)) found.push_back(avx512::loops<avx512::Floats>("float32", set));
#endif
    if (set == isa::name(isa::Isa::kBaseline)) found.push_back(baseline::loops<baseline::Floats>("float32", set));
  }
  return found;
}

std::vector<std::pair<std::string, std::string>> peak_units() {
  std::vector<std::pair<std::string, std::string>> names;
  for (const PeakLoops& each : all_loops()) names.emplace_back(each.dtype, each.unit);
  return names;
}

Peak measure_peak(const std::string& dtype, const std::string& unit) {
  for (const PeakLoops& each : all_loops())
    if (each.dtype == dtype && each.unit == unit) return measure(each);
  std::string list;
  for (const auto& [known, by] : peak_units()) list += (list.empty() ? "" : ", ") + known + " by " + by;
  throw std::invalid_argument("peak_flops: expected one of " + list + ", got " + dtype + " by " + unit);
}

}  // namespace fastssl
