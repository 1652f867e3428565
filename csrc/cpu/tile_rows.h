// Element functions of the rows of a tile of logits: what the similarity kernels do with a tile between two matrix products.
//   S (m, n) is row-major with leading dimension ld >= n; n is a multiple of the vector width; entries beyond the matrix are -inf.
//   Row vectors have m entries, column vectors n.
// Bounded functions serve logits that are proved to be small (kBound). These logits are in base 2. They need no maximum, because
// 2^S stays in float range, and one exponential serves rows and columns. A bias enters as a weight rw or cw = e^bias, which is 1
// without bias. Online functions serve any logits, in natural units, so that s - top is exact where one logit dominates, however
// large it is. A weight e^(s - top) is cut off at 1, even if the backward's product gave s other bits than the product that made
// top. In both, u is g / sum of a row, and v that of a column. Rows<T> is the set of functions of one instruction set.
#pragma once
#include <cstdint>

#include "cpu/arrays.h"

namespace fastssl {

// The ids of a tile, which are equal for positive pairs, and the weights of these pairs, row_weight_i + column_weight_j.
template <class T>
struct PairIds {
  const int32_t *row_id, *column_id;
  const T *row_weight, *column_weight;
};

// What a sweep keeps of each row, or of each column: the largest logit, the sum of e^(s - top), and the place of the largest logit.
template <class T>
struct Running {
  T *top, *sum;
  int32_t* peak;
};

// Where the entries of a tile are kept for another pass: entry (i, j) at data + i ld + j. The `columns` columns may end within a
// vector, and what lies behind them is not touched. Where data is null, nothing is kept.
template <class T>
struct Cells {
  T* data = nullptr;
  int64_t ld = 0;
  int columns = 0;
  Cells from(int64_t i) const { return {data ? data + i * ld : nullptr, ld, columns}; }
};

template <class T>
struct Rows {
  int width;  // n and ld are padded to a multiple of it

  // S = -inf where row_id == column_id
  void (*exclude)(T* S, int m, int n, int ld, const int32_t* row_id, const int32_t* column_id);
  // S += bias of the column
  void (*add_bias)(T* S, int m, int n, int ld, const T* bias);
  // row_sum_i += sum_j 2^S cw_j;  column_sum_j += sum_i 2^S rw_i (unless null);  kept = 2^S (unless null)
  void (*sum_bounded)(const T* S, int m, int n, int ld, const T* rw, const T* cw, T* row_sum, T* column_sum, Cells<T> kept);
  // the same sums with running maxima, of rows and, unless null, of columns; S begins at row i0 and column j0 of the matrix
  void (*sum_online)(const T* S, int m, int n, int ld, int i0, int j0, Running<T> rows, Running<T> columns);
  // S = e (u_i cw_j + rw_i v_j), the second term only with v; e is kept or, where nothing is, 2^S
  void (*weight_bounded)(T* S, int m, int n, int ld, const T* rw, const T* cw, const T* u, const T* v, Cells<T> kept);
  // S = u_i min(1, e^(S - row_top_i)) + v_j min(1, e^(S - column_top_j)), the second term only with v
  void (*weight_online)(T* S, int m, int n, int ld, const T* row_top, const T* column_top, const T* u, const T* v);
  // S = 2^S cw_j, row_sum_i += sum_j
  void (*soft_bounded)(T* S, int m, int n, int ld, const T* cw, T* row_sum);
  // S = e^(S - new max_i), row_sum_i = row_sum_i factor_i + sum_j, factor_i = e^(old max_i - new max_i)
  void (*soft_online)(T* S, int m, int n, int ld, T* row_max, T* row_sum, T* factor);
  // count_i += number of entries S_ij > unit threshold_i
  void (*count_above)(const T* S, int m, int n, int ld, T unit, const T* threshold, int32_t* count);
  // S = -inf where S_ij > limit_i; a NaN stays
  void (*drop_above)(T* S, int m, int n, int ld, const T* limit);
  // sum_j += sum_i S_ij
  void (*column_sum)(const T* S, int m, int n, int ld, T* sum);
  // l = S + bias, t = +1 for positives (none if null), else -1, v their weight or 1:
  // loss_i += sum_{j < n} v softplus(-t l), S = -t v sigmoid(-t l), weight_i += sum_{j < n} S; any logits, natural units
  void (*sigmoid)(T* S, int m, int n, int wide, int ld, T bias, const PairIds<T>* positives, T* loss, T* weight);
  // sum_j += x_j^2 for the n elements of x from `first` on
  void (*add_squares)(const Array& x, int64_t first, int n, T* sum);
  // <a, b>, in a fixed order
  T (*dot)(const T* a, const T* b, int64_t n);
  // <x, b> of the n elements of x from `first` on; <x, x> where b is null
  T (*dot_with)(const Array& x, int64_t first, const T* b, int64_t n);
};

template <class T>
const Rows<T>& rows();  // of the instruction set in use

}  // namespace fastssl
