// Compiles the rows once per instruction set and picks the set in use.
#include "cpu/class_rows.h"

#include <cstdint>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/class_rows.inl"
#include "cpu/each_isa.h"

template <>
const ClassRows<float>& class_rows<float>() {
  return FASTSSL_IN_USE(float_rows);
}
template <>
const ClassRows<double>& class_rows<double>() {
  return FASTSSL_IN_USE(double_rows);
}

}  // namespace fastssl
