// The dtypes that the kernels know. The CPU and the CUDA kernels share them.
#pragma once
#include <cstdint>

namespace fastssl {

enum Dtype : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kNothing };  // kNothing where a tensor was not given

#if defined(__CUDACC__)
__host__ __device__
#endif
    constexpr int bytes_of(Dtype dtype) {
  return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2;
}

}  // namespace fastssl
