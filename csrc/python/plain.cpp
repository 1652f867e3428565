// The quick look at the arguments of a loss. Where it says no, Python checks them, and refuses them or takes another way.
#include "python/plain.h"

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <cmath>
#include <limits>

namespace fastssl {

bool nothing_listens() {
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  return keys.included_ == c10::default_included_set && (keys.excluded_ - c10::autocast_dispatch_keyset).empty() &&
         !at::impl::torch_function_mode_enabled() && !torch::jit::tracer::isTracing();
}

namespace {

const at::Tensor* plain_tensor(const pybind11::handle& object, int64_t dims) {
  static const c10::DispatchKeySet plain = at::empty({0}).key_set();
  if (!THPVariable_CheckExact(object.ptr())) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object.ptr());
  if (tensor.key_set() != plain || tensor.dim() != dims || tensor.numel() == 0) return nullptr;
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const bool has_memory = impl.has_storage() && impl.data() &&
                          at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), impl.itemsize(),
                                                           impl.storage_offset()) <= impl.unsafe_storage().nbytes();
  return has_memory && !tensor._fw_grad(0).defined() ? &tensor : nullptr;
}

}  // namespace

const at::Tensor* plain_floats(const pybind11::handle& object, int64_t dims) {
  const at::Tensor* tensor = plain_tensor(object, dims);
  if (!tensor) return nullptr;
  const at::ScalarType type = tensor->scalar_type();
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf ? tensor : nullptr;
}

const at::Tensor* plain_integers(const pybind11::handle& object, int64_t dims) {
  const at::Tensor* tensor = plain_tensor(object, dims);
  if (!tensor) return nullptr;
  const at::ScalarType type = tensor->scalar_type();
  const bool integers = type == at::kLong || type == at::kInt || type == at::kShort || type == at::kChar || type == at::kByte;
  return integers ? tensor : nullptr;
}

std::optional<double> finite(const pybind11::handle& number, const at::Tensor& like) {
  if (!PyFloat_CheckExact(number.ptr())) return std::nullopt;
  const double value = PyFloat_AS_DOUBLE(number.ptr());
  const bool wide = like.scalar_type() == at::kDouble;
  const double largest = wide ? std::numeric_limits<double>::max() : double(std::numeric_limits<float>::max());
  return std::abs(value) <= largest ? std::optional(value) : std::nullopt;  // nor a NaN
}

std::optional<double> inverse(const pybind11::handle& temperature, const at::Tensor& like) {
  const auto value = finite(temperature, like);
  const bool wide = like.scalar_type() == at::kDouble;
  const double least = wide ? std::numeric_limits<double>::min() : double(std::numeric_limits<float>::min());
  return value && std::abs(*value) >= least ? std::optional(1.0 / *value) : std::nullopt;
}

}  // namespace fastssl
