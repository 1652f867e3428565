// Compiles the updates once per instruction set and picks the set in use.
#include "cpu/updates.h"

#include <cmath>
#include <cstdint>

#include "cpu/isa.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/updates.inl"
#include "cpu/each_isa.h"

const Updates& updates() { return FASTSSL_IN_USE(updates_in_use); }

}  // namespace fastssl
