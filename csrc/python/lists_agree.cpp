// The quick check of ops/_lists.py for lists that a kernel can take without changes. Where it says no, ops/_lists.py finds out why.
#include "python/lists_agree.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <deque>
#include <vector>

namespace fastssl {
namespace {

using at::Tensor;

bool is_float(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

// Equal strides. The stride of a dimension of one entry does not matter (a depthwise filter and its gradient differ there).
bool walked_alike(const Tensor& tensor, const Tensor& like) {
  const at::IntArrayRef sizes = tensor.sizes(), strides = tensor.strides(), wanted = like.strides();
  for (size_t d = 0; d < sizes.size(); d++)
    if (sizes[d] > 1 && strides[d] != wanted[d]) return false;
  return true;
}

// A storage may have been freed or cut short (storage.resize_) under tensors that still have their sizes.
bool has_memory(const Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  return impl.has_storage() && impl.data() &&
         impl.storage_offset() * impl.itemsize() + tensor.nbytes() <= impl.unsafe_storage().nbytes();
}

bool alike(const Tensor& tensor, const Tensor& like, at::Device device) {
  if (tensor.is_nested() || tensor.layout() != at::kStrided || !is_float(tensor.scalar_type()) || tensor.device() != device)
    return false;
  if (tensor.is_neg() || tensor._is_zerotensor() || tensor.is_inference() || !has_memory(tensor)) return false;
  if (tensor.is_same(like)) return true;
  return (tensor.scalar_type() == at::kDouble) == (like.scalar_type() == at::kDouble) && tensor.sizes() == like.sizes() &&
         (tensor.numel() == 0 || walked_alike(tensor, like));
}

struct Span {
  uintptr_t begin, end;
  size_t position;
  bool written;
  bool operator==(const Span&) const = default;
};

// Whether no two spans share memory. A position may read what it writes, from the same address on. Sorted by address, spans that
// share memory are neighbours.
bool apart(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  const Span* writer = nullptr;  // of the spans so far, the one that reaches furthest
  const Span* reader = nullptr;
  for (const Span& span : spans) {
    const auto meets = [&](const Span* other) {
      return other && other->end > span.begin &&
             !(other->position == span.position && other->begin == span.begin && other->end == span.end &&
               !(other->written && span.written));
    };
    if (meets(writer) || (span.written && meets(reader))) return false;
    const Span*& furthest = span.written ? writer : reader;
    if (!furthest || span.end > furthest->end) furthest = &span;
  }
  return true;
}

// The same lists come at every step, so those that were lately found to be apart are not sorted again. The interpreter's lock
// guards the list.
bool known_apart(std::vector<Span>&& spans) {
  static std::deque<std::vector<Span>> known;
  if (std::find(known.begin(), known.end(), spans) != known.end()) return true;
  if (!apart(spans)) return false;
  known.push_front(std::move(spans));
  if (known.size() > 8) known.pop_back();
  return true;
}

}  // namespace

bool lists_agree(const pybind11::list& written, const pybind11::list& read) {
  const Tensor* first = nullptr;  // of the position, in written[0]
  std::vector<Span> spans;
  size_t count = 0;
  PyObject* first_list = PyList_GET_ITEM(written.ptr(), 0);
  for (const auto& [lists, is_written] : {std::pair{written.ptr(), true}, std::pair{read.ptr(), false}})
    for (Py_ssize_t l = 0; l < PyList_GET_SIZE(lists); l++) {
      PyObject* list = PyList_GET_ITEM(lists, l);
      if (!PyList_CheckExact(list)) return false;
      if (list == first_list) count = PyList_GET_SIZE(list), spans.reserve(4 * count);
      if (count == 0 || size_t(PyList_GET_SIZE(list)) != count) return false;
      for (size_t i = 0; i < count; i++) {
        PyObject *object = PyList_GET_ITEM(list, i), *like = PyList_GET_ITEM(first_list, i);
        if (!THPVariable_CheckExact(object)) return false;
        const Tensor &tensor = THPVariable_Unpack(object), &anchor = THPVariable_Unpack(like);
        if (!first) first = &tensor;
        if (!alike(tensor, anchor, first->device())) return false;
        if (tensor.numel() == 0) continue;
        if (!tensor.is_non_overlapping_and_dense()) return false;
        const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
        spans.push_back({begin, begin + tensor.nbytes(), i, is_written});
      }
    }
  return known_apart(std::move(spans));
}

void bump_versions(const pybind11::list& tensors) {
  for (const pybind11::handle object : tensors) {
    if (!THPVariable_Check(object.ptr())) throw pybind11::type_error("bump_versions: expected a list of tensors");
    THPVariable_Unpack(object.ptr()).unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace fastssl
