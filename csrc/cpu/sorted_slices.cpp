// The shape loss of VISReg on the CPU, and its gradient in the same sweep.                  z (V, N, D), directions A (D, S)
//   x = z A;  loss = mean (x_(r) - q_r)^2 over sorted projections;  dx = 2 (x - q of its rank) / (V N S),   dz = dx A^T
// A tile holds all samples of a view and some directions. Columns are sorted by a network, as many at once as a register has lanes,
// so the time does not depend on the data. Directions are divided into a fixed number of groups, whose gradients are added in
// order.
#include <cmath>

#include "cpu/projections.h"
#include "cpu/tokens.h"

namespace fastssl::sorted_slices {
namespace {

constexpr int64_t kTile = 1 << 16;  // elements, at most, unless that is less than one register of columns
constexpr int64_t kTasks = 16;      // views times groups of directions, at least, if there are as many tiles

// to = the sum of `count` parts of n elements, in their order
template <class T>
void add_parts(const T* parts, int64_t count, int64_t n, T* to) {
  parallel_for(n, count, [&](int64_t begin, int64_t end) {
    std::copy(parts + begin, parts + end, to + begin);
    for (int64_t part = 1; part < count; part++)
      for (int64_t i = begin; i < end; i++) to[i] += parts[part * n + i];
  });
}

std::tuple<Tensor, Tensor> sorted_slices(const Tensor& z_given, const Tensor& directions_given, const Tensor& quantiles_given,
                                         bool gradient) {
  FASTSSL_CHECK(z_given.dim() == 3 && directions_given.dim() == 2 && directions_given.size(0) == z_given.size(2),
                "visreg: expected z (V, N, D) and directions (D, S), got ", z_given.sizes(), " and ", directions_given.sizes());
  FASTSSL_CHECK(z_given.numel() > 0 && directions_given.size(1) > 0, "visreg: expected rows and directions, got z ",
                z_given.sizes(), " and directions ", directions_given.sizes());
  expect_shape("visreg", quantiles_given, {z_given.size(1)});
  const Tensor z = as_contiguous(z_given), directions = as_contiguous(directions_given), quantiles = as_contiguous(quantiles_given);
  Tensor loss = empty({}, z.scalar_type()), dz = gradient ? new_tensor(z.sizes(), z.scalar_type()) : empty({0}, z.scalar_type());
  with_accumulator(z.scalar_type(), [&]<class T>(T) {
    const Sketches<T>& f = sketches<T>();
    const T* q = quantiles.const_data_ptr<T>();
    const int wide = int(std::clamp<int64_t>(kTile / z.size(1) / f.width * f.width, f.width, kSlices));
    const Projections<T> p(z, directions, wide, gradient, false);
    const int64_t tiles = p.blocks, groups = std::clamp<int64_t>(kTasks / p.V, 1, tiles);
    const int64_t share = (tiles + groups - 1) / groups;
    const T factor = T(2.0 / (double(p.V * p.N) * double(p.S)));
    Tensor parts = gradient && groups > 1 ? empty({groups, p.V, p.N, p.D}, z.scalar_type()) : dz;
    T* out = gradient ? parts.template mutable_data_ptr<T>() : nullptr;
    std::vector<double> losses(p.V * groups, 0.0);
    parallel_tasks(p.V * groups, [&](int64_t begin, int64_t end) {
      std::vector<T> x(p.N * wide, T(0)), keys(p.N * f.width);
      std::vector<int32_t> places(p.N * f.width);
      for (int64_t task = begin; task < end; task++) {
        const int64_t v = task % p.V, group = task / p.V, last = std::min(tiles, (group + 1) * share);
        T* mine = gradient ? out + (group * p.V + v) * p.N * p.D : nullptr;
        if (gradient && group * share >= last) std::fill_n(mine, p.N * p.D, T(0));
        for (int64_t tile = group * share; tile < last; tile++) {
          p.tile(v, 0, int(p.N), tile, x.data(), wide);
          losses[task] += f.match(x.data(), wide, int(p.N), p.columns(tile), q, factor, gradient, keys.data(), places.data());
          if (gradient) p.back(x.data(), wide, int(p.N), tile, tile > group * share, mine);
        }
      }
    });
    double sum = 0.0;
    for (double part : losses) sum += part;
    *loss.mutable_data_ptr<T>() = T(sum / (double(p.V * p.N) * double(p.S)));
    if (gradient && groups > 1) add_parts(out, groups, dz.numel(), dz.template mutable_data_ptr<T>());
  });
  return {loss, dz};
}

}  // namespace
}  // namespace fastssl::sorted_slices

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("sorted_slices", TORCH_BOX(&fastssl::sorted_slices::sorted_slices)); }
