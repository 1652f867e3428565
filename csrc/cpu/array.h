// An array of elements of one dtype, and a list of arrays: no torch, so that fastssl._C and the kernels' library may pass them on.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <span>

#include "common/dtypes.h"
#include "cpu/check.h"

namespace fastssl {

struct Array {
  void* data;
  Dtype dtype;  // kNothing where no tensor was given
};

struct ListedArray {
  Array array;
  int64_t numel;
};

using Arrays = std::span<const ListedArray>;

inline Dtype dtype_of(c10::ScalarType type) {
  switch (type) {
    case c10::ScalarType::Float:
      return kFloat32;
    case c10::ScalarType::BFloat16:
      return kBFloat16;
    case c10::ScalarType::Half:
      return kFloat16;
    case c10::ScalarType::Double:
      return kFloat64;
    default:
      refuse<std::runtime_error>("expected a float tensor, got ", type);
  }
}

}  // namespace fastssl
