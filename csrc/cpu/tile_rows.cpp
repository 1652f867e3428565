// Compiles the element functions once for each instruction set and picks the set in use.
#include "cpu/tile_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/tile_rows.inl"
#include "cpu/each_isa.h"

template <>
const Rows<float>& rows<float>() {
  return FASTSSL_IN_USE(float_rows);
}

template <>
const Rows<double>& rows<double>() {
  return baseline::RowFunctions<baseline::DoubleLane>::table;
}

}  // namespace fastssl
