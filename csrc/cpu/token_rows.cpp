// Compiles the rows once per instruction set and picks the set in use.
#include "cpu/token_rows.h"

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/token_rows.inl"
#include "cpu/each_isa.h"

template <>
const TokenRows<float>& token_rows<float>() {
  return FASTSSL_IN_USE(float_rows);
}
template <>
const TokenRows<double>& token_rows<double>() {
  return FASTSSL_IN_USE(double_rows);
}

}  // namespace fastssl
