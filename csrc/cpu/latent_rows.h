// The loss of one row of predicted latents, compiled for every instruction set. Sums are kept in T: float, or double for float64.
#pragma once
#include <cstdint>

#include "cpu/arrays.h"

namespace fastssl {

// d(e): |e|; e^2; e^2 / (2 v) where |e| < v, else |e| - v / 2; |e|^v / v.
enum class Distance : uint8_t { kAbsolute, kSquare, kSmooth, kPower };

// The same of all rows of a call.
struct LatentHow {
  Distance distance;
  double value;  // v
  bool normalize;
  double eps;
  int64_t width;  // D
};

template <class T>
struct LatentRows {
  // The sum over a row of d(pred - h), where h is the row of the target, brought to mean 0 and variance 1 if `normalize`. Where
  // `out` is an array, size d' goes there. `room` has space for a row.
  double (*compare)(const LatentHow& how, Array pred, int64_t i, Array target, int64_t j, T size, Array out, int64_t k, T* room);
};

template <class T>
const LatentRows<T>& latent_rows();  // of the instruction set in use

}  // namespace fastssl
