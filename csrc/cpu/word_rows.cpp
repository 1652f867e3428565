// Compiles the rows once per instruction set and picks the set in use.
#include "cpu/word_rows.h"

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/word_rows.inl"
#include "cpu/each_isa.h"

template <>
const WordRows<float>& word_rows<float>() {
  return FASTSSL_IN_USE(float_rows);
}
template <>
const WordRows<double>& word_rows<double>() {
  return FASTSSL_IN_USE(double_rows);
}

}  // namespace fastssl
