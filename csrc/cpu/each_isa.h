// Compiles the file FASTSSL_ISA_SOURCE once for each instruction set, in namespaces baseline, avx2 and avx512 of the place where
// this file is included. In that source FASTSSL_WIDTH is the number of floats in a register, and FASTSSL_FMA says whether a b + c
// is one instruction. Standard headers must be included before, because their inline functions must not be compiled for one set
// only. There is no include guard, because several files include this one.

namespace baseline {
#define FASTSSL_WIDTH 4
#if defined(__aarch64__) || defined(__FMA__)
#define FASTSSL_FMA 1
#else
#define FASTSSL_FMA 0
#endif
#include FASTSSL_ISA_SOURCE
#undef FASTSSL_WIDTH
#undef FASTSSL_FMA
}  // namespace baseline

#if defined(__x86_64__)
#define FASTSSL_FMA 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#define FASTSSL_WIDTH 8
#include FASTSSL_ISA_SOURCE
#undef FASTSSL_WIDTH
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#endif
namespace avx512 {
#define FASTSSL_WIDTH 16
#include FASTSSL_ISA_SOURCE
#undef FASTSSL_WIDTH
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FASTSSL_FMA
#endif

#undef FASTSSL_ISA_SOURCE
