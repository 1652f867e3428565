// Products of bfloat16 by oneDNN's brgemm, which torch exports. It uses a CPU's matrix units (AMX), 8 times as fast as float32.
//   C (m, n) = scale A B  or  C += scale A B       A (m, k): rows of neighbouring terms, B: our panels of pairs, C: float32
// It has no scale, which is rounded to float32 here: the panel of C is scaled after the product, where that is not 1, or added from
// a buffer. On other machines than x86-64 this file is empty.
#if defined(__x86_64__)

#include <algorithm>
#include <vector>

#include "cpu/products.h"
#include "cpu/units.h"

// torch's own interface to oneDNN is not part of its stable ABI: a torch that lacks these functions leaves us our own products.
namespace at::native::cpublas {
__attribute__((weak)) void brgemm(int64_t m, int64_t n, int64_t k, int64_t ld_a, int64_t ld_b, int64_t ld_c, bool add_c,
                                  const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool is_vnni);
__attribute__((weak)) void brgemm_release(bool is_vnni);
}  // namespace at::native::cpublas

namespace fastssl {
namespace {

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
  if (!at::native::cpublas::brgemm || !at::native::cpublas::brgemm_release) return false;
  brgemm_products = &table;
  use_brgemm(units::has(units::Unit::kAmxBf16) && units::may_use_tiles());
  return true;
}();

}  // namespace
}  // namespace fastssl
#endif
