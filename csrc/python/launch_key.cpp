// The quick look of kernels/host/launch.py at the arguments of a launch: 100 instructions for each, where Python takes 6,000 to
// read the dtype and the address of a tensor.
#include "python/launch_key.h"

#include <torch/csrc/autograd/python_variable.h>

#include <cstring>
#include <optional>
#include <string>

namespace fastssl {

pybind11::object launch_key(const pybind11::tuple& arguments) {
  const Py_ssize_t count = PyTuple_GET_SIZE(arguments.ptr());
  std::string key;
  key.reserve(9 * size_t(count));
  pybind11::tuple values(count);
  std::optional<at::Device> device;
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject* object = PyTuple_GET_ITEM(arguments.ptr(), i);
    PyObject* value = object;
    if (object == Py_None) {
      key += 'n';
    } else if (PyFloat_CheckExact(object)) {
      key += 'f';
    } else if (PyLong_CheckExact(object)) {
      int overflow = 0;
      const long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
      if (overflow) return pybind11::none();
      key += 'i';
      key.append(reinterpret_cast<const char*>(&number), sizeof number);
    } else if (THPVariable_CheckExact(object)) {
      const at::Tensor& tensor = THPVariable_Unpack(object);
      if (!device) device = tensor.device();
      if (!tensor.has_storage() || tensor.layout() != at::kStrided || tensor.device() != *device) return pybind11::none();
      const auto address = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
      if (address % 16) return pybind11::none();
      key += 't';
      key += char(tensor.scalar_type());
      PyTuple_SET_ITEM(values.ptr(), i, PyLong_FromUnsignedLongLong(address));
      continue;
    } else {
      return pybind11::none();
    }
    Py_INCREF(value);
    PyTuple_SET_ITEM(values.ptr(), i, value);
  }
  return pybind11::make_tuple(pybind11::bytes(key), values);
}

}  // namespace fastssl
