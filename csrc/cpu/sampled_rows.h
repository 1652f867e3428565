// Functions on a row and the rows of a table that ids name, compiled for every instruction set. Sums are kept in T: float, or
// double for float64.
#pragma once
#include <cstdint>

namespace fastssl {

template <class T>
struct SampledRows {
  // products_e = <x, table_{ids_e}>, e = 0 .. count - 1; the rows have n elements
  void (*products)(const T* x, const T* table, const int64_t* ids, int64_t count, int64_t n, T* products);
  // share_e = exp(logit_e - shift), shift no less than any logit
  void (*shares)(const T* logits, int64_t count, T shift, T* share);
  // sum = the sum over e of factor_e table_{ids_e}, in the order of e
  void (*combine)(const T* table, const int64_t* ids, const T* factor, int64_t count, int64_t n, T* sum);
};

template <class T>
const SampledRows<T>& sampled_rows();  // of the instruction set in use

}  // namespace fastssl
