// The loops over threads that all kernels use. A loop below a grain of elements starts no threads, and neither does one in a child
// of fork, which lacks its parent's threads. Which thread does a task changes no bit of any result.
#pragma once
#include <ATen/Parallel.h>
#include <c10/util/ParallelGuard.h>

#include <algorithm>
#include <cstdint>

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for is a serial loop in this build: compile with -fopenmp"
#endif

namespace fastssl {

// 16,384 elements take a few microseconds, about as long as it takes to start the threads.
constexpr int64_t kGrain = 1 << 14;

// Whether this thread came through a fork that left other threads behind. GNU's OpenMP believes that its team of threads is still
// there and waits for it for ever. Threads that the child starts get new teams.
bool lost_its_team();

// While this object lives, nothing in its thread starts other threads, neither our loops nor a BLAS that has OpenMP.
class Alone {
 public:
  Alone();
  ~Alone();
  Alone(const Alone&) = delete;

 private:
  c10::ParallelGuard serial_;
  int before_;
};

inline int64_t grain_of(int64_t elements) { return 1 + kGrain / std::max<int64_t>(1, elements); }

// Calls task(begin, end) for ranges that make up [0, count), where each of the `count` items is about `elements` elements of work.
template <class F>
void parallel_for(int64_t count, int64_t elements, const F& task) {
  if (!lost_its_team()) return at::parallel_for(0, count, grain_of(elements), task);
  const Alone alone;
  at::parallel_for(0, count, grain_of(elements), task);
}

// The same for tasks each of which is worth a thread, such as tiles of a matrix product.
template <class F>
void parallel_tasks(int64_t count, const F& task) {
  parallel_for(count, 2 * kGrain, task);
}

// Joins task(begin, end, start) over such ranges; the result of `join` must not depend on the order.
template <class T, class F, class J>
T parallel_reduce(int64_t count, int64_t elements, T start, const F& task, const J& join) {
  if (!lost_its_team()) return at::parallel_reduce(0, count, grain_of(elements), start, task, join);
  const Alone alone;
  return at::parallel_reduce(0, count, grain_of(elements), start, task, join);
}

}  // namespace fastssl
