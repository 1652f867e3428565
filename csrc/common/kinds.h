// What the kernels know of a tensor of a list: the kind of its elements. Shared by CPU and CUDA.
#pragma once
#include <cstdint>

namespace fastssl {

enum Kind : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kNothing };

constexpr int bytes_of(Kind kind) { return kind == kFloat64 ? 8 : kind == kFloat32 ? 4 : 2; }

}  // namespace fastssl
