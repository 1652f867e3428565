// The loops over threads that all kernels use, which are torch's. A loop below a grain of elements starts no threads, and neither
// does one in a child of fork, which lacks its parent's threads. Which thread does a task changes no bit of any result.
#pragma once
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "cpu/check.h"

namespace fastssl {

// 16,384 elements take a few microseconds, about as long as it takes to start the threads.
constexpr int64_t kGrain = 1 << 14;

// Whether this thread came through a fork that left other threads behind. GNU's OpenMP believes that its team of threads is still
// there and waits for it for ever. Threads that the child starts get new teams.
bool lost_its_team();

// While this object lives, nothing in its thread starts other threads, neither torch's loops nor a BLAS that has OpenMP.
class Alone {
 public:
  Alone();
  ~Alone();
  Alone(const Alone&) = delete;

 private:
  int before_;
};

int thread_count();  // of a loop, at most
int thread_index();  // of this thread in its loop, 0 outside

inline int64_t grain_of(int64_t elements) { return 1 + kGrain / std::max<int64_t>(1, elements); }

// Calls task(begin, end) for ranges that make up [0, count), where each of the `count` items is about `elements` elements of work.
// No exception may go through torch's C function: the first one waits outside.
template <class F>
void parallel_for(int64_t count, int64_t elements, const F& task) {
  if (count <= 0) return;
  if (lost_its_team()) {
    const Alone alone;
    return task(0, count);
  }
  struct Loop {
    const F& task;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr error = nullptr;
  } loop{task};
  const auto run = [](int64_t begin, int64_t end, void* context) {
    Loop& of = *static_cast<Loop*>(context);
    try {
      of.task(begin, end);
    } catch (...) {
      if (!of.failed.test_and_set()) of.error = std::current_exception();
    }
  };
  FASTSSL_TORCH(torch_parallel_for(0, count, grain_of(elements), run, &loop));
  if (loop.error) std::rethrow_exception(loop.error);
}

// The same for tasks each of which is worth a thread, such as tiles of a matrix product.
template <class F>
void parallel_tasks(int64_t count, const F& task) {
  parallel_for(count, 2 * kGrain, task);
}

// Joins task(begin, end, start) over such ranges; the result of `join` must not depend on the order.
template <class T, class F, class J>
T parallel_reduce(int64_t count, int64_t elements, T start, const F& task, const J& join) {
  T all = start;
  std::mutex lock;
  parallel_for(count, elements, [&](int64_t begin, int64_t end) {
    const T part = task(begin, end, start);
    const std::lock_guard<std::mutex> guard(lock);
    all = join(all, part);
  });
  return all;
}

}  // namespace fastssl
