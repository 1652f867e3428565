// What the optimizers' ops share: numbers that may be given as tensors, and the average of the new parameters.
#pragma once
#include <optional>

#include "cpu/lists.h"

namespace fastssl {

inline double value_of(double number, const OptionalTensor& tensor) { return tensor ? as_double(*tensor) : number; }

// The rule of the average that a step writes in the same pass: torch's lerp, rounded to the nearest.
inline EmaRule average_of(double momentum, const OptionalTensor& scalar) {
  const double kept = value_of(momentum, scalar);
  return {false, kept, 1.0 - kept, false, 0};
}

}  // namespace fastssl
