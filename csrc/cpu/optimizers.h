// What the optimizers' updates share: the average of the new parameters.
#pragma once
#include "cpu/lists.h"

namespace fastssl {

// The rule of the average that a step writes in the same pass: torch's lerp, rounded to the nearest.
inline EmaRule average_of(double momentum) { return {false, momentum, 1.0 - momentum, false, 0}; }

}  // namespace fastssl
