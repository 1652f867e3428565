#pragma once
#include <pybind11/pybind11.h>

namespace fastssl {

// What decides which compiled Triton kernel fits these arguments, as a pair (key, the arguments with addresses in place of
// tensors); None where Triton is to decide. kernels/host/launch.py says what the key holds and has the same function in Python.
pybind11::object launch_key(const pybind11::tuple& arguments);

}  // namespace fastssl
