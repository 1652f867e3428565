// New tensors of ops whose time is that of their memory.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

#include "cpu/parallel.h"

namespace fastssl {

// Asks for large pages: the first touch of 38 MB in pages of 4 KB takes 11 ms on 2 cores, longer than what is written there.
inline at::Tensor in_large_pages(at::Tensor t) {
#ifdef __linux__
  const uintptr_t page = 1 << 21, begin = (uintptr_t(t.data_ptr()) + page - 1) / page * page;
  const uintptr_t end = (uintptr_t(t.data_ptr()) + t.nbytes()) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return t;
}

inline at::Tensor new_tensor(at::IntArrayRef shape, const at::TensorOptions& options) {
  return in_large_pages(at::empty(shape, options));
}

// As at::zeros, which writes large ones in parallel.
inline at::Tensor zeros(at::IntArrayRef shape, const at::TensorOptions& options) {
  if (!lost_its_team()) return at::zeros(shape, options);
  const Alone alone;
  return at::zeros(shape, options);
}

}  // namespace fastssl
