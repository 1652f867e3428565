// Functions on rows of tables of words, compiled for every instruction set. Sums are kept in T: float, or double for float64.
#pragma once
#include <cstdint>

#include "cpu/arrays.h"

namespace fastssl {

// What the elements of a step of Adam share.
struct RowAdamRule {
  double rate, beta1, beta2, eps;
};

template <class T>
struct WordRows {
  // <row, x>; the row begins at element i
  T (*dot)(Array table, int64_t i, int64_t n, const T* x);
  // sum += factor row
  void (*add)(Array table, int64_t i, int64_t n, T factor, T* sum);
  // to <- x
  void (*write)(const T* x, Array to, int64_t i, int64_t n);
  // m += (1 - beta1) (g - m), v += (1 - beta2) (g^2 - v), p -= rate m / (sqrt(v) + eps); p, m and v begin at i, g at j
  void (*adam)(Array p, Array m, Array v, int64_t i, Array g, int64_t j, int64_t n, const RowAdamRule& rule);
};

template <class T>
const WordRows<T>& word_rows();  // of the instruction set in use

}  // namespace fastssl
