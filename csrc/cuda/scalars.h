// Numbers of a call that may lie on the device.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include "cuda/access.cuh"
#include "cuda/tables.h"

namespace fastssl {

// `tensor` float32 or float64 of one element, instead of `number` where given.
inline Scalar scalar_of(double number, const std::optional<Tensor>& tensor) {
  if (!tensor) return {number, nullptr, false};
  return {0.0, tensor->data_ptr(), kind_of(*tensor) == kFloat64};
}

}  // namespace fastssl
