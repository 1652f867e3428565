// The quick way through ops/queue.py: its checks take Python longer than the push itself.
#include "python/push_now.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <limits>
#include <optional>

namespace fastssl {
namespace {

using at::Tensor;

bool is_text(const pybind11::handle& given, const char* text) {
  return PyUnicode_CheckExact(given.ptr()) && PyUnicode_CompareWithASCIIString(given.ptr(), text) == 0;
}

bool is_float(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

bool is_integer(at::ScalarType type) {
  return type == at::kLong || type == at::kInt || type == at::kShort || type == at::kChar || type == at::kByte;
}

// Bytes from a tensor's first element to the end of its last one.
int64_t reach(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); d++) last += (tensor.size(d) - 1) * tensor.stride(d);
  return (last + 1) * int64_t(tensor.itemsize());
}

// A tensor of torch's own type with elements in memory on this device, none of them lazily negated.
bool is_plain(const Tensor& tensor, at::Device device) {
  if (tensor.is_nested() || tensor.layout() != at::kStrided || tensor.device() != device || tensor.numel() == 0) return false;
  if (tensor.is_neg() || tensor.is_conj() || tensor._is_zerotensor() || tensor.is_inference()) return false;
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  return impl.has_storage() && impl.data() &&
         impl.storage_offset() * int64_t(impl.itemsize()) + reach(tensor) <= int64_t(impl.unsafe_storage().nbytes());
}

struct Push {
  std::array<const Tensor*, 5> tensors{};  // queue, ptr, label_queue; keys, labels
  bool columns, truncate;

  static constexpr int kWritten = 3;
  const Tensor& queue() const { return *tensors[0]; }
  const Tensor& ptr() const { return *tensors[1]; }
  const Tensor& keys() const { return *tensors[3]; }

  bool shapes_fit() const {
    if (queue().dim() != 2 || keys().dim() != 2 || ptr().numel() != 1 || ptr().scalar_type() != at::kLong) return false;
    if (!is_float(queue().scalar_type()) || keys().scalar_type() != queue().scalar_type()) return false;
    const int64_t size = queue().size(columns ? 1 : 0), width = queue().size(columns ? 0 : 1), count = keys().size(0);
    if (keys().size(1) != width || std::max(size, count) >= std::numeric_limits<int32_t>::max()) return false;
    const Tensor *label_queue = tensors[2], *labels = tensors[4];
    if (!label_queue != !labels) return false;
    return !labels || (labels->dim() == 1 && labels->size(0) == count && label_queue->dim() == 1 && label_queue->size(0) == size &&
                       is_integer(labels->scalar_type()) && labels->scalar_type() == label_queue->scalar_type());
  }

  // The pointer's value is looked at on the CPU alone.
  bool in_memory() const {
    const at::Device device = queue().device();
    if (!device.is_cpu() && !device.is_cuda()) return false;
    for (size_t i = 0; i < tensors.size(); i++) {
      if (!tensors[i]) continue;
      if (!is_plain(*tensors[i], device) || (i < kWritten && !tensors[i]->is_non_overlapping_and_dense())) return false;
      const auto begin = reinterpret_cast<uintptr_t>(tensors[i]->const_data_ptr()), end = begin + reach(*tensors[i]);
      for (size_t k = 0; k < std::min<size_t>(i, kWritten); k++) {
        if (!tensors[k]) continue;
        const auto other = reinterpret_cast<uintptr_t>(tensors[k]->const_data_ptr());
        if (begin < other + reach(*tensors[k]) && other < end) return false;
      }
    }
    if (!device.is_cpu()) return true;
    const int64_t place = *ptr().const_data_ptr<int64_t>();
    return place >= 0 && place < queue().size(columns ? 1 : 0);
  }

  void run() const {
    using Optional = std::optional<Tensor>;
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("fastssl::queue_push_", "")
            .typed<void(const Tensor&, const Tensor&, const Tensor&, const Optional&, const Optional&, bool, bool)>();
    const pybind11::gil_scoped_release no_lock;
    const c10::AutoGradMode no_grad(false);
    const auto given = [&](int i) { return tensors[i] ? Optional(*tensors[i]) : Optional(); };
    op.call(queue(), ptr(), keys(), given(2), given(4), columns, truncate);
    for (int i = 0; i < kWritten; i++)
      if (tensors[i]) tensors[i]->unsafeGetTensorImpl()->bump_version();
  }
};

}  // namespace

bool push_now(const pybind11::handle& queue, const pybind11::handle& ptr, const pybind11::handle& keys,
              const pybind11::handle& label_queue, const pybind11::handle& labels, const pybind11::handle& layout,
              const pybind11::handle& overflow) {
  Push push{{}, is_text(layout, "dk"), is_text(overflow, "truncate")};
  if ((!push.columns && !is_text(layout, "kd")) || (!push.truncate && !is_text(overflow, "wrap"))) return false;
  if (c10::InferenceMode::is_enabled() || c10::impl::TorchDispatchModeTLS::any_modes_set() ||
      at::impl::torch_function_mode_enabled())
    return false;
  const pybind11::handle given[5] = {queue, ptr, label_queue, keys, labels};
  for (int i = 0; i < 5; i++) {
    if (given[i].is_none() && (i == 2 || i == 4)) continue;
    if (!THPVariable_CheckExact(given[i].ptr())) return false;
    push.tensors[i] = &THPVariable_Unpack(given[i].ptr());
  }
  if (!push.shapes_fit() || !push.in_memory()) return false;
  push.run();
  return true;
}

}  // namespace fastssl
