// Sums over the rows of a class in float64, compiled for every instruction set. T is float or double.
#pragma once
#include <cstdint>

namespace fastssl {

template <class T>
struct ClassRows {
  // sum += x
  void (*add)(const T* x, int64_t n, double* sum);
  // others = sum - x
  void (*without)(const double* sum, const T* x, int64_t n, T* others);
  // to += factor (sum - x)
  void (*add_without)(double factor, const double* sum, const T* x, int64_t n, T* to);
};

template <class T>
const ClassRows<T>& class_rows();  // of the instruction set in use

}  // namespace fastssl
