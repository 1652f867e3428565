// An array of elements of one dtype, and the array of a tensor.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "common/dtypes.h"

namespace fastssl {

struct Array {
  void* data;
  Dtype dtype;  // kNothing where no tensor was given
};

inline Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return kFloat32;
    case at::kBFloat16:
      return kBFloat16;
    case at::kHalf:
      return kFloat16;
    case at::kDouble:
      return kFloat64;
    default:
      TORCH_CHECK(false, "expected a float tensor, got ", tensor.scalar_type());
  }
}

inline Array array_of(const at::Tensor& tensor) { return {tensor.data_ptr(), dtype_of(tensor)}; }

}  // namespace fastssl
