// Enough of CUDA to run a kernel's source on the CPU: one fiber a thread, block after block, __syncthreads as a meeting of fibers.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  dim3 index;
  bool done = false;
};
inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline std::function<void()> body;

inline void run() {
  body();
  current->done = true;
}

// Fibers run one after another up to their next meeting until all are done.
inline void run_block(const dim3& block) {
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (unsigned y = 0; y < block.y; y++)
    for (unsigned x = 0; x < block.x; x++) {
      auto& fiber = fibers.emplace_back(std::make_unique<Fiber>());
      fiber->index = {x, y, 0};
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.data();
      fiber->context.uc_stack.ss_size = fiber->stack.size();
      fiber->context.uc_link = &scheduler;
      makecontext(&fiber->context, run, 0);
    }
  for (bool left = true; left;) {
    left = false;
    for (auto& fiber : fibers)
      if (!fiber->done) {
        current = fiber.get();
        threadIdx = fiber->index;
        swapcontext(&scheduler, &fiber->context);
        left |= !fiber->done;
      }
  }
}

template <class F>
void launch(dim3 grid, dim3 block, F&& kernel) {
  gridDim = grid, blockDim = block, body = kernel;
  for (unsigned y = 0; y < grid.y; y++)
    for (unsigned x = 0; x < grid.x; x++) {
      blockIdx = {x, y, 0};
      run_block(block);
    }
}

}  // namespace shim

inline void __syncthreads() { swapcontext(&shim::current->context, &shim::scheduler); }

template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}
template <class T>
T atomicExch(T* to, T value) {
  const T before = *to;
  *to = value;
  return before;
}
