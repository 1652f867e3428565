// Compiles the rows of logits over prototypes once per instruction set and picks the set in use.
#include "cpu/prototype_rows.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/prototype_rows.inl"
#include "cpu/each_isa.h"

template <>
const PrototypeRows<float>& prototype_rows<float>() {
  return FASTSSL_IN_USE(float_rows);
}
template <>
const PrototypeRows<double>& prototype_rows<double>() {
  return FASTSSL_IN_USE(double_rows);
}

}  // namespace fastssl
