// What the kernels use of torch: its stable ABI as torch 2.11 has it, so that one library serves that torch and every later one,
// beside any Python. All tensors here are on the CPU.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/check.h"

namespace fastssl {

using torch::headeronly::BFloat16;
using torch::headeronly::ScalarType;

// The torch dtype of a C++ type.
template <class T>
constexpr ScalarType kScalarType = torch::headeronly::CppTypeToScalarType<T>::value;

// One reference to a tensor of torch. Its shape, strides and dtype are asked for once: torch's own stable tensor calls a C function
// for each of them, which loops over rows would notice. The address of the data is asked for whenever it is wanted, because torch
// copies a lazy clone when it gives an address for writing.
class Tensor {
 public:
  Tensor() = default;  // undefined
  explicit Tensor(AtenTensorHandle owned);

  bool defined() const { return handle_ != nullptr; }
  AtenTensorHandle get() const { return handle_.get(); }
  AtenTensorHandle new_handle() const;  // another reference, which the caller owns; also of an undefined tensor

  IntArrayRef sizes() const { return {sizes_, size_t(dim_)}; }
  IntArrayRef strides() const { return {strides_, size_t(dim_)}; }
  int64_t size(int64_t d) const { return sizes_[d]; }
  int64_t stride(int64_t d) const { return strides_[d]; }
  int64_t dim() const { return dim_; }
  int64_t numel() const { return numel_; }
  ScalarType scalar_type() const { return dtype_; }
  int64_t element_size() const { return element_size_; }
  bool is_contiguous() const { return contiguous_; }

  void* data_ptr() const;
  const void* const_data_ptr() const;
  template <class T>
  T* mutable_data_ptr() const {
    expect(kScalarType<T>);
    return static_cast<T*>(data_ptr());
  }
  template <class T>
  const T* const_data_ptr() const {
    expect(kScalarType<T>);
    return static_cast<const T*>(const_data_ptr());
  }

 private:
  void expect(ScalarType dtype) const { FASTSSL_CHECK(dtype_ == dtype, "expected scalar type ", dtype, " but found ", dtype_); }

  std::shared_ptr<AtenTensorOpaque> handle_;
  const int64_t *sizes_ = nullptr, *strides_ = nullptr;
  int64_t dim_ = 0, numel_ = 0, element_size_ = 0;
  ScalarType dtype_ = ScalarType::Undefined;
  bool contiguous_ = false;
};

using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

// A text that a kernel is given. The conversion of torch 2.11 to std::string loses its memory at each call.
struct Text : std::string {
  using std::string::string;
};

std::vector<int64_t> contiguous_strides(IntArrayRef shape);

// A new contiguous tensor whose elements hold anything.
Tensor empty(IntArrayRef shape, ScalarType dtype);

// Of such elements or with such strides; the tensor itself where it is so already.
Tensor as_dtype(const Tensor& t, ScalarType dtype);
Tensor as_contiguous(const Tensor& t);

// Entries first, ..., first + count - 1 of a dimension, as a view.
Tensor narrowed(const Tensor& t, int64_t dimension, int64_t first, int64_t count);

// The only element of a tensor of any dtype.
double as_double(const Tensor& t);
int64_t as_int64(const Tensor& t);

inline int64_t bytes_of(const Tensor& t) { return t.numel() * t.element_size(); }

}  // namespace fastssl

// Arguments and results of the ops, which torch hands over as owned references.
namespace torch::stable::detail {

template <>
struct ToImpl<fastssl::Tensor> {
  static fastssl::Tensor call(StableIValue value, uint64_t, bool) { return fastssl::Tensor(to<AtenTensorHandle>(value)); }
};

template <>
struct FromImpl<fastssl::Tensor> {
  static StableIValue call(const fastssl::Tensor& tensor, uint64_t, bool) { return detail::from(tensor.new_handle()); }
};

template <>
struct ToImpl<fastssl::Text> {
  static fastssl::Text call(StableIValue value, uint64_t, bool);
};

}  // namespace torch::stable::detail
