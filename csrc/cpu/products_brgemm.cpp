// Products of bfloat16 by oneDNN's brgemm, which torch exports. It uses a CPU's matrix units (AMX), 8 times as fast as float32.
//   C (m, n) = scale A B  or  C += scale A B       A (m, k): rows of neighbouring terms, B: our panels of pairs, C: float32
// It has no scale, which is rounded to float32 here: the panel of C is scaled after the product, where that is not 1, or added from
// a buffer. On other machines than x86-64 this file is empty.
#if defined(__x86_64__)
#include <ATen/native/CPUBlas.h>

#include <vector>

#include "cpu/products.h"
#include "cpu/units.h"

namespace fastssl {
namespace {

using c10::BFloat16;

void multiply(const Left<BFloat16>& a, const BFloat16* packed, int m, int n, int k, double scale, bool add, float* C, int64_t ld) {
  const int64_t terms = k + k % 2, panel = products_across().panel;
  const float factor = float(scale);
  const bool direct = !add || factor == 1.0f;
  std::vector<float> buffer(direct ? 0 : m * panel);
  for (int64_t j = 0; j < n; j += panel, packed += terms * panel) {
    const int64_t wide = std::min<int64_t>(panel, n - j);
    float* to = direct ? C + j : buffer.data();
    at::native::cpublas::brgemm(m, wide, terms, a.row, panel, direct ? ld : panel, direct && add, a.data, packed, to, true);
    if (factor == 1.0f) continue;
    for (int64_t i = 0; i < m; i++)
      for (int64_t c = 0; c < wide; c++) {
        if (add) C[i * ld + j + c] += factor * to[i * panel + c];
        else to[i * ld + c] *= factor;
      }
  }
  at::native::cpublas::brgemm_release(true);
}

// Where AMX is there at the start, it is used.
const bool registered = [] {
  static const Products<BFloat16> table = {32, multiply, products_across().pack, products_across().round_weights, true};
  brgemm_products = &table;
  use_brgemm(units::has(units::Unit::kAmxBf16) && units::may_use_tiles());
  return true;
}();

}  // namespace
}  // namespace fastssl
#endif
