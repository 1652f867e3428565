#pragma once
#include <pybind11/pybind11.h>

namespace fastssl {

// Empty tensors of one dtype on the device of ``like``, one for each shape; a shape is a tuple of whole numbers.
pybind11::tuple new_tensors(const pybind11::handle& like, const pybind11::handle& dtype, const pybind11::args& shapes);

// The rows of a matrix, as ``tensor.unbind()`` gives them.
pybind11::tuple rows_of(const pybind11::handle& matrix);

}  // namespace fastssl
