// SIGReg on the CPU: sums of the waves of projections, the loss from them, and the gradient.         z (V, N, D), directions A (D,
// S)
//   x = z A;  sums_k = sum_n (cos, sin)(t_k x_n);  loss = mean_{v, s} N sum_k w_k ((C_k / N - phi_k)^2 + (S_k / N)^2)
//   dx = g 2 / (V S) sum_k w_k t_k ((S_k / N) cos(t_k x) - (C_k / N - phi_k) sin(t_k x)),   dz = dx A^T
// Tiles of 64 samples and 128 directions are made by a matrix product, in the forward and again in the backward. An element costs
// one sine and cosine and a rotation for each knot, or in the backward a step of Horner's rule. A thread holds one tile and, in the
// forward, the sums of 128 directions in float64.
#include <cmath>

#include "cpu/projections.h"
#include "cpu/tokens.h"

namespace fastssl::sigreg {
namespace {

// t, phi and w of the knots but the first.
struct Grid {
  int knots;
  double step;
  std::vector<double> t, phi, weight;

  Grid(int64_t count, double t_max) : knots(int(count)), step(t_max / double(count)) {
    for (int k = 1; k <= knots; k++) {
      t.push_back(k * step);
      phi.push_back(std::exp(-0.5 * t.back() * t.back()));
      weight.push_back(phi.back() * step * (k == knots ? 1.0 : 2.0));
    }
  }
};

void check(const Tensor& z, const Tensor& directions) {
  FASTSSL_CHECK(z.dim() == 3 && directions.dim() == 2 && directions.size(0) == z.size(2),
                "sigreg: expected z (V, N, D) and directions "
                "(D, S), got ",
                z.sizes(), " and ", directions.sizes());
}

Tensor wide(const Tensor& t) { return as_contiguous(as_dtype(t, accumulator(t.scalar_type()))); }

Tensor sigreg_sums(const Tensor& z_given, const Tensor& directions_given, double t_max, int64_t knots_given) {
  check(z_given, directions_given);
  FASTSSL_CHECK(knots_given >= 2, "sigreg: expected 2 knots or more, got ", knots_given);
  const Tensor z = wide(z_given), directions = wide(directions_given);
  const Grid grid(knots_given - 1, t_max);
  const int knots = grid.knots;
  Tensor out = empty({z.size(0), 2, knots, directions.size(1)}, z.scalar_type());
  with_accumulator(z.scalar_type(), [&]<class T>(T) {
    const Sketches<T>& f = sketches<T>();
    const Projections<T> p(z, directions, kSlices, false, false);
    T* sums = out.mutable_data_ptr<T>();
    parallel_tasks(p.V * p.blocks, [&](int64_t begin, int64_t end) {
      std::vector<T> x(kWaveRows * kSlices, T(0));
      std::vector<double> total(2 * knots * kSlices);
      for (int64_t task = begin; task < end; task++) {
        const int64_t v = task / p.blocks, block = task % p.blocks;
        const int n = p.columns(block);
        std::fill(total.begin(), total.end(), 0.0);
        for (int64_t i = 0; i < p.N; i += kWaveRows) {
          const int m = int(std::min<int64_t>(kWaveRows, p.N - i));
          p.tile(v, i, m, block, x.data(), kSlices);
          f.add_waves(x.data(), kSlices, m, padded(n, f.width), grid.step, knots, total.data());
        }
        for (int64_t k = 0; k < 2 * knots; k++)
          for (int j = 0; j < n; j++) sums[(v * 2 * knots + k) * p.S + block * kSlices + j] = T(total[k * kSlices + j]);
      }
    });
  });
  return out;
}

double count_of(const OptionalTensor& total, int64_t samples) { return total ? as_double(*total) : double(samples); }

Tensor sigreg_loss(const Tensor& sums_given, const OptionalTensor& total, int64_t samples, double t_max) {
  FASTSSL_CHECK(sums_given.dim() == 4 && sums_given.size(1) == 2, "sigreg: expected sums (V, 2, K - 1, S), got ",
                sums_given.sizes());
  const Tensor given = as_contiguous(sums_given);
  const int64_t views = given.size(0), slices = given.size(3);
  const Grid grid(given.size(2), t_max);
  const double count = count_of(total, samples);
  std::vector<double> parts(views * grid.knots);
  Tensor out = empty({}, given.scalar_type());
  with_accumulator(given.scalar_type(), [&]<class T>(T) {
    const T* sums = given.const_data_ptr<T>();
    parallel_for(int64_t(parts.size()), 2 * slices, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t v = i / grid.knots, k = i % grid.knots;
        const T *cosines = sums + (v * 2 * grid.knots + k) * slices, *sines = cosines + grid.knots * slices;
        double sum = 0.0;
        for (int64_t j = 0; j < slices; j++) {
          const double c = double(cosines[j]) / count - grid.phi[k], s = double(sines[j]) / count;
          sum += c * c + s * s;
        }
        parts[i] = sum * grid.weight[k];
      }
    });
    double sum = 0.0;
    for (double part : parts) sum += part;
    *out.mutable_data_ptr<T>() = T(sum * count / double(views * slices));
  });
  return out;
}

// factors (2, knots, kSlices) of view v and the n directions from j0 on: those of cosines, then those of sines.
template <class T>
void fill_factors(const Grid& grid, const T* sums, int64_t slices, int64_t j0, int n, double count, double grad, T* factors) {
  for (int k = 0; k < grid.knots; k++) {
    const T *cosines = sums + k * slices + j0, *sines = cosines + grid.knots * slices;
    T *b = factors + k * kSlices, *a = b + grid.knots * kSlices;
    const double factor = grad * grid.weight[k] * grid.t[k];
    for (int j = 0; j < n; j++) b[j] = T(factor * (double(sines[j]) / count));
    for (int j = 0; j < n; j++) a[j] = T(factor * (double(cosines[j]) / count - grid.phi[k]));
  }
}

Tensor sigreg_bwd(const Tensor& grad, const Tensor& sums_given, const OptionalTensor& total, const Tensor& z_given,
                  const Tensor& directions_given, int64_t samples, double t_max) {
  check(z_given, directions_given);
  const Tensor z = wide(z_given), directions = wide(directions_given), sums = as_contiguous(sums_given);
  const Grid grid(sums.size(2), t_max);
  expect_dense("sigreg", sums, {z.size(0), 2, grid.knots, directions.size(1)});
  const double count = count_of(total, samples), factor = 2.0 * as_double(grad) / double(z.size(0) * directions.size(1));
  Tensor dz = empty(z.sizes(), z.scalar_type());
  with_accumulator(z.scalar_type(), [&]<class T>(T) {
    const Sketches<T>& f = sketches<T>();
    const Projections<T> p(z, directions, kSlices, true, true);
    const T* known = sums.const_data_ptr<T>();
    T* out = dz.mutable_data_ptr<T>();
    const int64_t tiles = (p.N + kWaveRows - 1) / kWaveRows;
    parallel_tasks(p.V * tiles, [&](int64_t begin, int64_t end) {
      std::vector<T> x(kWaveRows * kSlices, T(0)), factors(2 * grid.knots * kSlices, T(0));
      for (int64_t task = begin; task < end; task++) {
        const int64_t v = task / tiles, i = task % tiles * kWaveRows;
        const int m = int(std::min<int64_t>(kWaveRows, p.N - i));
        for (int64_t block = 0; block < p.blocks; block++) {
          const int n = p.columns(block);
          fill_factors(grid, known + v * 2 * grid.knots * p.S, p.S, block * kSlices, n, count, factor, factors.data());
          p.tile(v, i, m, block, x.data(), kSlices);
          f.slope(x.data(), kSlices, m, padded(n, f.width), grid.step, grid.knots, factors.data());
          p.back(x.data(), kSlices, m, block, block > 0, out + (v * p.N + i) * p.D);
        }
      }
    });
  });
  return as_dtype(dz, z_given.scalar_type());
}

}  // namespace
}  // namespace fastssl::sigreg

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("sigreg_sums", TORCH_BOX(&fastssl::sigreg::sigreg_sums));
  m.impl("sigreg_loss", TORCH_BOX(&fastssl::sigreg::sigreg_loss));
  m.impl("sigreg_bwd", TORCH_BOX(&fastssl::sigreg::sigreg_bwd));
}
