// New tensors of ops whose time is that of their memory.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "cpu/parallel.h"

namespace fastssl {

// As at::empty. Large tensors lie in large pages, and the memory of those that are gone is taken again: the first touch of 38 MB
// takes 11 ms on 2 cores in pages of 4 KB and 3 ms in large ones, where what is written there takes 1 ms.
at::Tensor new_tensor(at::IntArrayRef shape, const at::TensorOptions& options);

// As at::zeros, which writes large ones in parallel.
inline at::Tensor zeros(at::IntArrayRef shape, const at::TensorOptions& options) {
  if (!lost_its_team()) return at::zeros(shape, options);
  const Alone alone;
  return at::zeros(shape, options);
}

}  // namespace fastssl
