// Enough of CUDA to run a kernel's source on the CPU, block after block, with one fiber for each thread. Fibers run one after
// another up to their next meeting: that of a block (__syncthreads), or that of a warp, which the threads of other warps do not
// need to reach.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
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

constexpr unsigned kWarpSize = 32;
constexpr size_t kStackBytes = 1 << 16;

struct Meeting {
  unsigned arrived = 0, round = 0;
};
struct Warp {
  Meeting meeting;
  unsigned size = 0;
  uint64_t value[kWarpSize];  // what the threads show each other
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 index;
  unsigned lane;
  Warp* warp;
  bool done;
};
inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Fiber>> fibers;  // those of a block, which are kept for the next one
inline std::vector<Warp> warps;
inline Meeting everyone;
inline Fiber* current = nullptr;
inline std::function<void()> body;
inline bool moved = false;      // a thread arrived somewhere or ended since this was last set to false
inline bool backwards = false;  // threads and blocks run in the reverse order

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_cpu: %s\n", what);
  std::abort();
}

inline void run() {
  body();
  current->done = moved = true;
}

inline void meet(Meeting& meeting, unsigned size) {
  const unsigned round = meeting.round;
  moved = true;
  if (++meeting.arrived == size) {
    meeting.arrived = 0;
    meeting.round++;
  } else {
    while (meeting.round == round) swapcontext(&current->context, &scheduler);
  }
}

inline void prepare(const dim3& block) {
  const unsigned count = block.x * block.y;
  warps.assign((count + kWarpSize - 1) / kWarpSize, {});
  everyone = {};
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < count; i++) {
    Fiber& fiber = *fibers[i];
    fiber.index = {i % block.x, i / block.x, 0};
    fiber.lane = i % kWarpSize, fiber.warp = &warps[i / kWarpSize], fiber.done = false;
    fiber.warp->size++;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, run, 0);
  }
}

inline void run_block(const dim3& block) {
  prepare(block);
  const unsigned count = block.x * block.y;
  for (bool left = true; left;) {
    left = moved = false;
    for (unsigned i = 0; i < count; i++) {
      Fiber& fiber = *fibers[backwards ? count - 1 - i : i];
      if (fiber.done) continue;
      current = &fiber;
      threadIdx = fiber.index;
      swapcontext(&scheduler, &fiber.context);
      left |= !fiber.done;
    }
    if (left && !moved) fail("threads wait for others that do not come");
  }
}

template <class F>
void launch(dim3 grid, dim3 block, F&& kernel) {
  gridDim = grid, blockDim = block, body = kernel;
  const unsigned count = grid.x * grid.y;
  for (unsigned i = 0; i < count; i++) {
    const unsigned b = backwards ? count - 1 - i : i;
    blockIdx = {b % grid.x, b / grid.x, 0};
    run_block(block);
  }
}

// What every lane of the warp shows, to all of them.
inline const Warp& shown(unsigned mask, uint64_t value) {
  if (mask != ~0u || current->warp->size != kWarpSize) fail("only whole warps exchange values here");
  current->warp->value[current->lane] = value;
  meet(current->warp->meeting, kWarpSize);
  return *current->warp;
}

// The value that lane `from` shows; where there is no such lane, the caller's value.
template <class T>
T value_of_lane(unsigned mask, T value, unsigned from) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const Warp& warp = shown(mask, bits);
  bits = warp.value[from < kWarpSize ? from : current->lane];
  meet(current->warp->meeting, kWarpSize);  // nobody shows the next value before all have read this one
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace shim

inline void __syncthreads() { shim::meet(shim::everyone, blockDim.x * blockDim.y); }
inline void __syncwarp() { shim::meet(shim::current->warp->meeting, shim::current->warp->size); }

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const shim::Warp& warp = shim::shown(mask, predicate);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < shim::kWarpSize; lane++) bits |= unsigned(warp.value[lane]) << lane;
  shim::meet(shim::current->warp->meeting, shim::kWarpSize);
  return bits;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return shim::value_of_lane(mask, value, unsigned(from) % shim::kWarpSize);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other) {
  return shim::value_of_lane(mask, value, shim::current->lane ^ unsigned(other));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  return shim::value_of_lane(mask, value, shim::current->lane + by);
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <class T>
T __ldg(const T* from) {
  return *from;
}

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

struct CUstream_st;

namespace fastssl {

// In place of the launch in csrc/cuda/launch.cuh, so that whole .cu files run here.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), dim3 grid, dim3 block, CUstream_st*,
            const std::type_identity_t<Arguments>&... arguments) {
  shim::launch(grid, block, [&] { kernel(arguments...); });
}

}  // namespace fastssl
