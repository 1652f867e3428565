// New tensors and rows for the launchers of kernels/. torch.empty takes the host 13,000 instructions and unbind 16,000, most of
// which read arguments that are known here.
#include "python/new_tensors.h"

#include <ATen/ATen.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>

namespace fastssl {

namespace {

const at::Tensor& unpack(const pybind11::handle& object) {
  if (!THPVariable_Check(object.ptr())) throw pybind11::type_error("expected a tensor");
  return THPVariable_Unpack(object.ptr());
}

}  // namespace

pybind11::tuple new_tensors(const pybind11::handle& like, const pybind11::handle& dtype, const pybind11::args& shapes) {
  if (!THPDtype_Check(dtype.ptr())) throw pybind11::type_error("new_tensors: expected a dtype");
  const auto options = unpack(like).options().dtype(reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type);
  pybind11::tuple found(shapes.size());
  for (size_t i = 0; i < shapes.size(); i++) {
    c10::SmallVector<int64_t, 4> sizes;
    for (const auto& size : pybind11::reinterpret_borrow<pybind11::tuple>(shapes[i])) sizes.push_back(size.cast<int64_t>());
    PyTuple_SET_ITEM(found.ptr(), Py_ssize_t(i), THPVariable_Wrap(at::empty(sizes, options)));
  }
  return found;
}

pybind11::tuple rows_of(const pybind11::handle& matrix) {
  const auto rows = unpack(matrix).unbind(0);
  pybind11::tuple found(rows.size());
  for (size_t i = 0; i < rows.size(); i++) PyTuple_SET_ITEM(found.ptr(), Py_ssize_t(i), THPVariable_Wrap(rows[i]));
  return found;
}

}  // namespace fastssl
