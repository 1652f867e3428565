// Compiles the rows once per instruction set and picks the set in use.
#include "cpu/latent_rows.h"

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/latent_rows.inl"
#include "cpu/each_isa.h"

template <>
const LatentRows<float>& latent_rows<float>() {
  return FASTSSL_IN_USE(float_rows);
}
template <>
const LatentRows<double>& latent_rows<double>() {
  return FASTSSL_IN_USE(double_rows);
}

}  // namespace fastssl
