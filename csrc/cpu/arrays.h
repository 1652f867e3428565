// The array of a tensor.
#pragma once
#include "cpu/array.h"
#include "cpu/tensor.h"

namespace fastssl {

inline Dtype dtype_of(const Tensor& tensor) { return dtype_of(tensor.scalar_type()); }

inline Array array_of(const Tensor& tensor) { return {tensor.data_ptr(), dtype_of(tensor)}; }

}  // namespace fastssl
