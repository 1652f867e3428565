// Functions on rows and their neighbours, compiled for every instruction set. Sums are kept in T: float, or double for float64.
#pragma once
#include <cstdint>

#include "cpu/arrays.h"

namespace fastssl {

template <class T>
struct NeighbourRows {
  // x <- row / max(|row|, eps); returns |row|. The row begins at element i of z and has n elements.
  T (*unit)(Array z, int64_t i, int64_t n, T eps, T* x);
  // Elements i to i + n - 1 of z: themselves where they are T, otherwise their copies in `buffer`.
  const T* (*values)(Array z, int64_t i, int64_t n, T* buffer);
  // Elements i to i + n - 1 of z <- x, rounded to the dtype of z
  void (*store)(const T* x, int64_t n, Array z, int64_t i);
  // |a - b + eps|
  T (*distance)(const T* a, const T* b, int64_t n, T eps);
  // sum += factor (a - b)
  void (*add_difference)(const T* a, const T* b, int64_t n, T factor, T* sum);
  // to <- (g - x <x, g>) scale where `project`, else g scale, with g = sum + shift
  void (*write)(const T* x, const T* sum, int64_t n, T shift, bool project, T scale, Array to, int64_t i);
  // largest_i = max_j S_ij of S (m, n), row-major with leading dimension ld; -inf where n = 0
  void (*row_maxima)(const T* S, int m, int n, int ld, T* largest);
  // largest_j = max_i S_ij
  void (*column_maxima)(const T* S, int m, int n, int ld, T* largest);
};

template <class T>
const NeighbourRows<T>& neighbour_rows();  // of the instruction set in use

}  // namespace fastssl
