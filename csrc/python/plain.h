#pragma once
#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <optional>

namespace fastssl {

// Whether a call of PyTorch would run a kernel for the CPU and nothing else: no tracing, no mode of Python's, no torch.func and no
// inference mode is active. Autocast may be.
bool nothing_listens();

// A tensor of float32, float64, bfloat16 or float16 and of `dims` dimensions, none of them empty, that is a plain tensor or
// parameter on the CPU with memory of its own and without a tangent of forward-mode differentiation; otherwise null.
const at::Tensor* plain_floats(const pybind11::handle& object, int64_t dims);

// The same of signed or 8-bit integers.
const at::Tensor* plain_integers(const pybind11::handle& object, int64_t dims);

// A Python float that is finite in the dtype that sums over `like` are kept in; for the inverse, which must be so too, 1 /
// temperature.
std::optional<double> finite(const pybind11::handle& number, const at::Tensor& like);
std::optional<double> inverse(const pybind11::handle& temperature, const at::Tensor& like);

}  // namespace fastssl
