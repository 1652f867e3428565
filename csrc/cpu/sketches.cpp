// Compiles the functions of random directions once for each instruction set and picks the set in use.
#include "cpu/sketches.h"

#include <cmath>
#include <cstring>

#include "cpu/isa.h"

#define FASTSSL_FN static inline

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/sketches.inl"
#include "cpu/each_isa.h"

template <>
const Sketches<float>& sketches<float>() {
  return FASTSSL_IN_USE(float_sketches);
}

template <>
const Sketches<double>& sketches<double>() {
  return baseline::SketchFunctions<baseline::DoubleLane>::table;
}

}  // namespace fastssl
