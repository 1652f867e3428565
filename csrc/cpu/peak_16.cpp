// The loops that measure the peaks of the 16-bit units, see peak.h. Each unit has a target region of its own: its functions may run
// where the others' instructions are unknown.
#include "cpu/peak.h"

#include <string>

#include "cpu/units.h"

// Compilers that know all of these instructions; an older one builds a library without these peaks.
#if defined(__x86_64__) && ((defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && __GNUC__ >= 12))
#include <immintrin.h>

namespace fastssl {
namespace {

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,avx512bf16")
#endif
namespace bfloats {
#include "cpu/peak_loops.inl"
struct Pairs {
  using V = __m512;
  using Word = uint32_t;  // two bfloat16
  static constexpr int kRows = 12, kWords = 16, kFlops = 4 * kWords;
  static V filled(float x) { return _mm512_set1_ps(x); }
  static __m512i each(Word x) { return _mm512_set1_epi32(int(x)); }
  static __m512i load(const Word* p) { return _mm512_loadu_si512(p); }
  static void store(Word* p, V v) { _mm512_storeu_ps(p, v); }
  static V again(V sum, V a, V b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static V add(V sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
};
}  // namespace bfloats

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,avx512fp16"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,avx512fp16")
#endif
namespace halves {
#include "cpu/peak_loops.inl"
struct Halves {
  using V = __m512h;
  using Word = uint16_t;
  static constexpr int kRows = 12, kWords = 32, kFlops = 2 * kWords;
  static V filled(float x) { return _mm512_set1_ph(_Float16(x)); }
  static V each(Word x) { return _mm512_castsi512_ph(_mm512_set1_epi16(short(x))); }
  static V load(const Word* p) { return _mm512_loadu_ph(p); }
  static void store(Word* p, V v) { _mm512_storeu_ph(p, v); }
  static V again(V sum, V a, V b) { return _mm512_fmadd_ph(sum, a, b); }
  static V add(V sum, V a, V b) { return _mm512_fmadd_ph(a, b, sum); }
};
}  // namespace halves

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")
#endif
namespace amx {

struct alignas(64) Shapes {  // what LDTILECFG reads: eight tiles of 16 rows of 64 bytes
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Shapes) == 64);

// Four tiles of sums from two tiles of A and two of B, each product (16, 32) by (32, 16): an instruction every 16 clocks, whose
// result takes 52.
int64_t in_registers(int64_t rounds) {
  static const Shapes shapes;  // static, since some compilers believe that LDTILECFG reads 8 bytes
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t r = 0; r < rounds; r++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return rounds * 4 * (2 * 16 * 16 * 32);
}
}  // namespace amx
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

}  // namespace

std::vector<PeakLoops> sixteen_bit_loops() {
  using units::Unit;
  std::vector<PeakLoops> found;
  if (units::has(Unit::kAvx512Bf16)) found.push_back(bfloats::loops<bfloats::Pairs>("bfloat16", units::name(Unit::kAvx512Bf16)));
  if (units::has(Unit::kAvx512Fp16)) found.push_back(halves::loops<halves::Halves>("float16", units::name(Unit::kAvx512Fp16)));
  if (units::has(Unit::kAmxBf16) && units::may_use_tiles())
    found.push_back({"bfloat16", units::name(Unit::kAmxBf16), amx::in_registers, nullptr, 0});
  return found;
}

}  // namespace fastssl
#else
namespace fastssl {
std::vector<PeakLoops> sixteen_bit_loops() { return {}; }
}  // namespace fastssl
#endif
