// Compiles the rows once per instruction set and picks the set in use.
#include "cpu/neighbour_rows.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/neighbour_rows.inl"
#include "cpu/each_isa.h"

template <>
const NeighbourRows<float>& neighbour_rows<float>() {
  return FASTSSL_IN_USE(float_rows);
}
template <>
const NeighbourRows<double>& neighbour_rows<double>() {
  return FASTSSL_IN_USE(double_rows);
}

}  // namespace fastssl
