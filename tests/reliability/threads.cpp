// The C functions of torch that csrc/cpu/parallel.h calls, with threads that a sanitizer of threads understands: it does not see
// the barriers of OpenMP. Ranges, indices and nested loops are as torch has them, but a loop of two items has threads already, so
// that small tensors do. Each loop starts its threads and joins them.
#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

struct Place {
  uint32_t index = 0, count = 0;  // of this thread in its loop; no count outside
};
thread_local Place place;

uint32_t count_of_torch() {
  using Count = decltype(&torch_get_num_threads);
  static const Count of_torch = reinterpret_cast<Count>(dlsym(RTLD_NEXT, "torch_get_num_threads"));
  uint32_t count = 1;
  of_torch(&count);
  return count;
}

}  // namespace

extern "C" {

AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = place.count ? place.count : count_of_torch();
  return 0;
}

AOTITorchError torch_get_thread_idx(uint32_t* index) {
  *index = place.index;
  return 0;
}

AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc task, void* context) {
  const int64_t size = end - begin;
  if (size <= 0) return 0;
  const int64_t count = std::min<int64_t>(place.count ? 1 : count_of_torch(), size), part = (size + count - 1) / count;
  if (count == 1) {
    task(begin, end, context);
    return 0;
  }
  std::atomic<int64_t> started{0};
  const auto run = [=, &started](int64_t i) {
    started.fetch_add(1, std::memory_order_relaxed);  // so that one thread does not do all tasks before another one starts
    while (started.load(std::memory_order_relaxed) < count) std::this_thread::yield();
    const Place before = place;
    place = {uint32_t(i), uint32_t(count)};
    const int64_t first = begin + i * part;
    if (first < end) task(first, std::min(end, first + part), context);
    place = before;
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < count; i++) others.emplace_back(run, i);
  run(0);
  for (std::thread& each : others) each.join();
  return 0;
}

}  // extern "C"
