#pragma once
#include <pybind11/pybind11.h>

namespace fastssl {

// Whether each row of ids (N, L) is a permutation of 0 .. L - 1. False may also mean that this is no plain int64 matrix on the CPU.
bool are_permutations(const pybind11::handle& ids);

}  // namespace fastssl
