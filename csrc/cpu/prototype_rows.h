// Functions on rows of logits over prototypes, compiled for every instruction set. Sums are kept in T: float, or double for
// float64.
//   z_k = ((x_k + b_k) - top) scale,   scale = 1 / temperature,   top = max (x + b),   b = 0 where `bias` is null
// What the rounding of x + b leaves over is added after the subtraction of the maximum (Knuth's two-sum): at logits of 100 and a
// temperature of 0.04 it is worth 1e-4 in z. Offsets and counts are in elements.
#pragma once
#include <cstdint>

#include "cpu/arrays.h"

namespace fastssl {

// The columns that a call of `target` or `student` takes at most.
constexpr int kColumns = 512;

// The largest x + b of a row and the sum of exp(z); of no columns, -inf and 0.
template <class T>
struct RowSum {
  T top, sum;
};

template <class T>
struct PrototypeRows {
  // Joins columns i .. i + n to the row's largest entry and sum.
  void (*join)(Array x, int64_t i, int64_t n, const T* bias, T scale, RowSum<T>* row);
  // sum of the elements
  T (*total)(Array x, int64_t i, int64_t n);
  // out <- exp(z) / sum
  void (*target)(Array x, int64_t i, int n, const T* bias, T scale, RowSum<T> row, T* out);
  // out <- the elements
  void (*values)(Array x, int64_t i, int n, T* out);
  // out += other
  void (*add)(T* out, const T* other, int n);
  // Returns sum q (top - s); unless `out` is nothing, out <- share exp(z) - slope q.
  T (*student)(Array s, int64_t i, int n, const T* q, T scale, T top, T share, T slope, Array out, int64_t j);
  // As `join` of a whole row, which keeps the exponentials of its blocks of kColumns, and what they are relative to.
  void (*join_and_keep)(Array x, int64_t i, int64_t n, const T* bias, T scale, RowSum<T>* row, T* kept, T* tops);
  // sums += exp(z) / sum, from what was kept
  void (*add_kept)(const T* kept, const T* tops, int64_t n, T scale, RowSum<T> row, T* sums);
  // Joins a row to the largest entry of each column and to its sum of exp((x - top) scale).
  void (*join_columns)(Array x, int64_t i, int64_t n, T scale, T* top, T* sum);
  // x <- factor x
  void (*multiply)(Array x, int64_t i, int64_t n, T factor);
};

template <class T>
const PrototypeRows<T>& prototype_rows();  // of the instruction set in use

}  // namespace fastssl
