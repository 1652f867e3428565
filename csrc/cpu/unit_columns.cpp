// Unit columns from a seed: standard normal numbers by Philox4x32-10, divided by the length of their column.      out (D, S)
//   Four rows of a column come from the four words of the counter (row / 4, column, "dirs", 0).
#include <cmath>
#include <vector>

#include "cpu/projections.h"
#include "cpu/tokens.h"

namespace fastssl::unit_columns {
namespace {

constexpr uint32_t kStream = 0x64697273;

Tensor unit_columns(const Tensor& seed, int64_t D, int64_t S, ScalarType dtype) {
  FASTSSL_CHECK(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long && D > 0 && S > 0,
                "unit_columns: expected an int64 seed and a shape");
  Tensor out = empty({D, S}, accumulator(dtype));
  const uint64_t key = uint64_t(as_int64(seed));
  with_accumulator(dtype, [&]<class T>(T) {
    const Sketches<T>& f = sketches<T>();
    T* to = out.mutable_data_ptr<T>();
    parallel_for((S + kSlices - 1) / kSlices, 8 * D * kSlices, [&](int64_t begin, int64_t end) {
      std::vector<T> g((D + 3) / 4 * 4 * kSlices), squares(kSlices);
      for (int64_t block = begin; block < end; block++) {
        const int64_t j0 = block * kSlices;
        const int n = int(std::min<int64_t>(kSlices, S - j0));
        std::fill(squares.begin(), squares.end(), T(0));
        for (int64_t d = 0; d < D; d += 4)
          f.normal(uint32_t(d / 4), uint32_t(j0), kStream, key, int(std::min<int64_t>(4, D - d)), padded(n, f.width), kSlices,
                   g.data() + d * kSlices, squares.data());
        for (int j = 0; j < n; j++) squares[j] = T(1) / std::max(std::sqrt(squares[j]), T(1e-30));
        for (int64_t d = 0; d < D; d++)
          for (int j = 0; j < n; j++) to[d * S + j0 + j] = g[d * kSlices + j] * squares[j];
      }
    });
  });
  return as_dtype(out, dtype);
}

}  // namespace
}  // namespace fastssl::unit_columns

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("unit_columns", TORCH_BOX(&fastssl::unit_columns::unit_columns)); }
