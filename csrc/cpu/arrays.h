// An array of elements of one dtype, and the array of a tensor.
#pragma once
#include <cstdint>

#include "common/dtypes.h"
#include "cpu/tensor.h"

namespace fastssl {

struct Array {
  void* data;
  Dtype dtype;  // kNothing where no tensor was given
};

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Half:
      return kFloat16;
    case ScalarType::Double:
      return kFloat64;
    default:
      refuse<std::runtime_error>("expected a float tensor, got ", tensor.scalar_type());
  }
}

inline Array array_of(const Tensor& tensor) { return {tensor.data_ptr(), dtype_of(tensor)}; }

}  // namespace fastssl
