// Compiles the products once for each instruction set, and those of bfloat16 for AVX512_BF16, and picks the set in use.
#include "cpu/products.h"

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/transpose.h"

namespace fastssl {

#define FASTSSL_ISA_SOURCE "cpu/products.inl"
#include "cpu/each_isa.h"

template <>
const Products<float>& products<float>() {
  return FASTSSL_IN_USE(float_products);
}
template <>
const Products<double>& products<double>() {
  return FASTSSL_IN_USE(double_products);
}

#if defined(__x86_64__)
#define FASTSSL_BFLOAT16
#define FASTSSL_WIDTH 16
#define FASTSSL_FMA 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#endif
namespace avx512_bf16 {
#include "cpu/products.inl"
}  // namespace avx512_bf16
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FASTSSL_BFLOAT16
#undef FASTSSL_WIDTH
#undef FASTSSL_FMA

bool has_bfloat16_products() { return isa::current() == isa::Isa::kAvx512Bf16; }
template <>
const Products<BFloat16>& products<BFloat16>() {
  return uses_brgemm() ? *brgemm_products : avx512_bf16::bfloat16_products;
}
const Products<BFloat16>& products_across() { return avx512_bf16::bfloat16_products_across; }
#else
bool has_bfloat16_products() { return false; }
template <>
const Products<BFloat16>& products<BFloat16>() {
  throw std::logic_error("this machine has no instruction for products of bfloat16");
}
const Products<BFloat16>& products_across() { return products<BFloat16>(); }
#endif

const Products<BFloat16>* brgemm_products = nullptr;
namespace {
std::atomic<bool> brgemm_wanted{false};
}
bool uses_brgemm() { return brgemm_products && brgemm_wanted; }
void use_brgemm(bool on) { brgemm_wanted = on; }

}  // namespace fastssl
