// Calls of torch's C functions behind tensor.h.
#include "cpu/tensor.h"

#include <array>

namespace fastssl {
namespace {

namespace stable = torch::stable::detail;

void drop(AtenTensorHandle handle) { aoti_torch_delete_tensor_object(handle); }

// Calls an operator of torch's whose first argument is a tensor and whose only result is one too.
template <class... Arguments>
Tensor call(const char* name, const char* overload, const Tensor& t, Arguments... arguments) {
  std::array<StableIValue, 1 + sizeof...(arguments)> stack{stable::from(t.new_handle()), stable::from(arguments)...};
  FASTSSL_TORCH(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return Tensor(stable::to<AtenTensorHandle>(stack[0]));
}

}  // namespace

Tensor::Tensor(AtenTensorHandle owned) {
  bool is_something;
  FASTSSL_TORCH(aoti_torch_is_defined(owned, &is_something));
  handle_ = std::shared_ptr<AtenTensorOpaque>(owned, drop);
  if (!is_something) {
    handle_.reset();
    return;
  }
  int64_t *sizes, *strides;
  int32_t dtype;
  FASTSSL_TORCH(aoti_torch_get_sizes(owned, &sizes));
  FASTSSL_TORCH(aoti_torch_get_strides(owned, &strides));
  FASTSSL_TORCH(aoti_torch_get_dim(owned, &dim_));
  FASTSSL_TORCH(aoti_torch_get_numel(owned, &numel_));
  FASTSSL_TORCH(aoti_torch_get_dtype(owned, &dtype));
  FASTSSL_TORCH(aoti_torch_is_contiguous(owned, &contiguous_));
  sizes_ = sizes, strides_ = strides, element_size_ = int64_t(aoti_torch_dtype_element_size(dtype));
  dtype_ = stable::to<ScalarType>(stable::from(dtype));
}

AtenTensorHandle Tensor::new_handle() const {
  AtenTensorHandle made;
  if (defined()) {
    FASTSSL_TORCH(aoti_torch_new_tensor_handle(get(), &made));
  } else {
    FASTSSL_TORCH(aoti_torch_new_uninitialized_tensor(&made));
  }
  return made;
}

void* Tensor::data_ptr() const {
  void* data;
  FASTSSL_TORCH(torch_get_mutable_data_ptr(get(), &data));
  return data;
}

const void* Tensor::const_data_ptr() const {
  const void* data;
  FASTSSL_TORCH(torch_get_const_data_ptr(get(), &data));
  return data;
}

std::vector<int64_t> contiguous_strides(IntArrayRef shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0; stride *= std::max<int64_t>(1, shape[d])) strides[d] = stride;
  return strides;
}

Tensor empty(IntArrayRef shape, ScalarType dtype) {
  AtenTensorHandle made;
  FASTSSL_TORCH(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), contiguous_strides(shape).data(),
                                         stable::to<int32_t>(stable::from(dtype)), aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Tensor as_dtype(const Tensor& t, ScalarType dtype) {
  if (t.scalar_type() == dtype) return t;
  return call("aten::to", "dtype", t, dtype, false, false, std::nullopt);  // non_blocking, copy, memory_format
}

Tensor as_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  return call("aten::contiguous", "", t, torch::headeronly::MemoryFormat::Contiguous);
}

Tensor narrowed(const Tensor& t, int64_t dimension, int64_t first, int64_t count) {
  AtenTensorHandle made;
  FASTSSL_TORCH(aoti_torch_aten_narrow(t.get(), dimension, first, count, &made));
  return Tensor(made);
}

double as_double(const Tensor& t) {
  double value;
  FASTSSL_TORCH(aoti_torch_item_float64(t.get(), &value));
  return value;
}

int64_t as_int64(const Tensor& t) {
  int64_t value;
  FASTSSL_TORCH(aoti_torch_item_int64(t.get(), &value));
  return value;
}

}  // namespace fastssl

fastssl::Text torch::stable::detail::ToImpl<fastssl::Text>::call(StableIValue value, uint64_t, bool) {
  const StringHandle text = to<StringHandle>(value);
  size_t length;
  const char* data;
  FASTSSL_TORCH(torch_string_length(text, &length));
  FASTSSL_TORCH(torch_string_c_str(text, &data));
  fastssl::Text copy(data, length);
  FASTSSL_TORCH(torch_delete_string(text));
  return copy;
}
