// Python refuses bad calls with a message. These checks keep a call that does not come from there from reading beside a tensor or
// on another device. Here is also what the ops make of the tensors that they have checked.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>

#include "cuda/rows.h"
#include "cuda/tables.h"

namespace fastssl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Refuses a tensor of another shape, on another device than `like`, or whose entries of a row are no neighbours in memory.
inline void expect_rows(const char* op, const Tensor& t, std::initializer_list<int64_t> shape, const Tensor& like) {
  const auto sizes = t.sizes();
  STD_TORCH_CHECK(size_t(t.dim()) == shape.size() && std::equal(shape.begin(), shape.end(), sizes.begin()), op, ": bad shape");
  STD_TORCH_CHECK(t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index(), op, ": bad device");
  STD_TORCH_CHECK(t.dim() == 0 || t.size(t.dim() - 1) < 2 || t.stride(t.dim() - 1) == 1, op, ": bad strides");
}

inline void expect(const char* op, const Tensor& t, std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& like) {
  expect_rows(op, t, shape, like);
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous(), op, ": bad dtype or strides");
}

// Refuses ids that are not (rows, any) int64.
inline void expect_ids(const char* op, const Tensor& ids, int64_t rows, const Tensor& like) {
  STD_TORCH_CHECK(ids.dim() == 2, op, ": bad ids");
  expect(op, ids, {rows, ids.size(1)}, ScalarType::Long, like);
}

// Rows (samples, rows, width) as the kernels take them.
inline RowsView rows_of(const Tensor& t) { return {t.data_ptr(), dtype_of(t), t.stride(0), t.stride(1)}; }

// The dtype that sums over elements of `t` are kept in.
inline ScalarType accumulator(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Refuses images that are not (N, C, H, W) in patches of height x width.
inline void expect_images(const char* op, const Tensor& images, int64_t height, int64_t width) {
  STD_TORCH_CHECK(images.dim() == 4 && height > 0 && width > 0 && images.size(2) % height == 0 && images.size(3) % width == 0 &&
                      (images.size(3) < 2 || images.stride(3) == 1),
                  op, ": bad images");
}

}  // namespace fastssl
