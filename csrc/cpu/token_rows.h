// Functions on rows of tokens and patches, compiled for every instruction set. Sums are kept in T: float, or double for float64.
// The dtypes of the arrays of a call may differ; offsets and counts are in elements.
#pragma once
#include <cstdint>

#include "cpu/arrays.h"

namespace fastssl {

// Where the entries of a patch lie in images (N, C, H, W): in C planes of `height` rows of `width` neighbouring pixels.
struct PatchShape {
  int64_t channels, height, width;
  int64_t plane, row;  // elements from plane to plane and from row to row
  bool channels_last;  // order of the entries: (p, q, c), else (c, p, q)

  int64_t entries() const { return channels * height * width; }
};

// How a patch of the target is normalised before it is compared: (t - mean) scale.
template <class T>
struct Scaling {
  T mean, scale;
};

constexpr int kTogether = 4;  // rows that are added to a sum at once, at most

template <class T>
struct TokenRows {
  // to <- from
  void (*copy)(Array from, int64_t i, Array to, int64_t j, int64_t n);
  // to <- n bytes of `from`, past the caches; null where this machine has no such stores. `settle` comes before others read them.
  void (*past_caches)(const char* from, char* to, int64_t n);
  void (*settle)();
  // `add` past the caches; false, and nothing done, where a dtype is not T or a register of `to` would not begin at its size
  bool (*add_past_caches)(Array a, int64_t i, Array b, int64_t j, Array to, int64_t k, int64_t n);
  // to <- a + b, b as wide as to
  void (*add)(Array a, int64_t i, Array b, int64_t j, Array to, int64_t k, int64_t n);
  // sum += the rows that begin at the elements i[0], ... i[count - 1], in this order; at most kTogether
  void (*accumulate)(Array rows, const int64_t* i, int count, int64_t n, T* sum);
  // out <- the patch whose first pixel is element `begin`
  void (*patch)(Array images, int64_t begin, const PatchShape& shape, T* out);
  // mean and 1 / sqrt(unbiased variance + eps), in two passes
  Scaling<T> (*scaling)(const T* target, int64_t n, double eps);
  // sum of e^2 or |e|, e = pred - (target - mean) scale
  double (*error)(Array pred, int64_t i, int64_t n, const T* target, Scaling<T> scaling, bool absolute);
  // out <- size e or size sign(e)
  void (*slope)(Array pred, int64_t i, int64_t n, const T* target, Scaling<T> scaling, bool absolute, T size, Array out, int64_t j);
};

template <class T>
const TokenRows<T>& token_rows();  // of the instruction set in use

}  // namespace fastssl
