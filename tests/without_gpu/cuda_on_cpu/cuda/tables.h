// In place of csrc/cuda/tables.h where an op's own source runs on the CPU: tensors of the CPU, no device, no stream.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "common/dtypes.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;
inline int cudaGetLastError() { return 0; }

namespace fastssl {

using torch::stable::Tensor;

inline void check(int status, const char* what) { STD_TORCH_CHECK(status == 0, what); }

inline Dtype dtype_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  for (const auto& [known, dtype] : {std::pair{ScalarType::Float, kFloat32}, std::pair{ScalarType::BFloat16, kBFloat16},
                                     std::pair{ScalarType::Half, kFloat16}, std::pair{ScalarType::Double, kFloat64}})
    if (type == known) return dtype;
  STD_TORCH_CHECK(false, "expected a float tensor");
}

struct DeviceOf {
  explicit DeviceOf(const Tensor&) {}
  cudaStream_t stream = nullptr;
};

}  // namespace fastssl
