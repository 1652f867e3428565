// Compiles the rows once per instruction set and picks the set in use.
#include "cpu/sampled_rows.h"

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/sampled_rows.inl"
#include "cpu/each_isa.h"

template <>
const SampledRows<float>& sampled_rows<float>() {
  return FASTSSL_IN_USE(float_rows);
}
template <>
const SampledRows<double>& sampled_rows<double>() {
  return FASTSSL_IN_USE(double_rows);
}

}  // namespace fastssl
