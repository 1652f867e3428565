// Compiles the rows once per instruction set and picks the set in use.
#include "cpu/mask_rows.h"

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/isa.h"

namespace fastssl {
namespace {

constexpr uint32_t kMaskStream = 0x6D61736B;

#define FASTSSL_ISA_SOURCE "cpu/mask_rows.inl"
#include "cpu/each_isa.h"

}  // namespace

const MaskRows& mask_rows() { return FASTSSL_IN_USE(rows); }

}  // namespace fastssl
