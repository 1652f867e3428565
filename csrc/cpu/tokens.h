// What the ops on tokens (N, L, D) share: which rows of a gradient come from which, the checks of ids and shapes, and the type that
// sums are kept in.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/new_tensor.h"
#include "cpu/parallel.h"
#include "cpu/token_rows.h"

namespace fastssl {

// Calls f with a value of the type that sums over elements of `dtype` are kept in.
template <class F>
auto with_accumulator(ScalarType dtype, const F& f) {
  return dtype == ScalarType::Double ? f(double()) : f(float());
}

inline ScalarType accumulator(ScalarType dtype) { return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

// Python refuses ids out of range where it may look at them; a compiled graph comes here without that check.
inline void check_range(const char* op, const Tensor& ids, int64_t below) {
  const int64_t* id = ids.const_data_ptr<int64_t>();
  uint64_t largest = 0;  // a negative id is larger than any other
  for (int64_t i = 0, n = ids.numel(); i < n; i++) largest = std::max(largest, uint64_t(id[i]));
  FASTSSL_CHECK_VALUE(largest < uint64_t(below), op, ": ids must be in [0, ", below, "), got ", int64_t(largest));
}

// Python refuses bad calls with a message. These checks keep a call that does not come from there from reading beside a tensor.
inline void expect_shape(const char* op, const Tensor& t, IntArrayRef shape) {
  FASTSSL_CHECK(t.sizes().equals(shape), op, ": expected a tensor of shape ", shape, ", got ", t.sizes());
}
inline void expect_dense(const char* op, const Tensor& t, IntArrayRef shape) {
  expect_shape(op, t, shape);
  FASTSSL_CHECK(t.is_contiguous(), op, ": expected a contiguous tensor of shape ", shape);
}
inline void expect_ids(const char* op, const Tensor& ids, int64_t rows) {
  FASTSSL_CHECK(ids.dim() == 2 && ids.size(0) == rows, op, ": expected ids of ", rows, " rows, got ", ids.sizes());
}
// (N, C, H, W) in patches of height x width.
inline void expect_images(const char* op, IntArrayRef shape, int64_t height, int64_t width) {
  FASTSSL_CHECK(shape.size() == 4 && height > 0 && width > 0 && shape[2] % height == 0 && shape[3] % width == 0, op,
                ": expected images in patches of ", height, " x ", width, ", got ", shape);
}

// Writes n zeros from element i on.
inline void clear(Array to, int64_t i, int64_t n) {
  std::fill_n(static_cast<char*>(to.data) + i * bytes_of(to.dtype), n * bytes_of(to.dtype), 0);
}

// For each sample n and row l the k with ids[n, k] = l, in their order. Ids from `length` on belong to no row.
class Matches {
 public:
  Matches(const Tensor& ids, int64_t length) : Matches(ids.const_data_ptr<int64_t>(), ids.size(0), ids.size(1), length) {}
  Matches(const int64_t* id, int64_t rows, int64_t count, int64_t length)
      : count_(count), length_(length), first_(rows * length, -1), next_(rows * count, -1) {
    for (int64_t n = 0; n < rows; n++)
      for (int64_t k = count_ - 1; k >= 0; k--) {
        const int64_t l = id[n * count_ + k];
        if (uint64_t(l) >= uint64_t(length)) continue;
        next_[n * count_ + k] = first_[n * length + l];
        first_[n * length + l] = int32_t(k);
      }
  }
  int64_t first(int64_t n, int64_t l) const { return first_[n * length_ + l]; }  // -1: there is none
  int64_t next(int64_t n, int64_t k) const { return next_[n * count_ + k]; }

 private:
  int64_t count_, length_;
  std::vector<int32_t> first_, next_;
};

// Where rows go that are written as they are.
template <class T>
struct Plain {
  Array to;
  void copy(Array from, int64_t i, int64_t j, int64_t n) const { token_rows<T>().copy(from, i, to, j, n); }
  void clear(int64_t j, int64_t n) const { fastssl::clear(to, j, n); }
};

// to[j ..] <- the sum over the matches k of (n, l) of from[start + k step ..]: zeros, a copy, or a sum in T that is rounded once.
// `to` is a Plain, or a NewRows of new_rows.h.
template <class T, class Rows>
void write_matches(const Matches& matches, int64_t n, int64_t l, Array from, int64_t start, int64_t step, Rows&& to, int64_t j,
                   int64_t width, std::vector<T>& buffer) {
  const int64_t k = matches.first(n, l);
  if (k < 0) return to.clear(j, width);
  if (matches.next(n, k) < 0) return to.copy(from, start + k * step, j, width);
  buffer.assign(width, T(0));
  for (int64_t each = k; each >= 0; each = matches.next(n, each)) {
    const int64_t row = start + each * step;
    token_rows<T>().accumulate(from, &row, 1, width, buffer.data());
  }
  to.copy({buffer.data(), sizeof(T) == 8 ? kFloat64 : kFloat32}, 0, j, width);
}

}  // namespace fastssl
