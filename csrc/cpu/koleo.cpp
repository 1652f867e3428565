// KoLeo on the CPU but for the search of neighbours: rows at unit length, the terms of a row and its neighbours, and the gradient.
//   x_i = z_i / max(|z_i|, eps);   term_{i,t} = -log(d_{i,t} + eps),   d_{i,t} = |x_i - x_{ids[i, t]} + eps|
//   c_{i,t} = -dterm_{i,t} / ((d_{i,t} + eps) d_{i,t})
//   G_r = sum_t c_{r,t} (x_r - x_{ids[r, t]}) - sum over (i, t) with ids[i, t] = r of c_{i,t} (x_i - x_r) + eps b_r,
//   b_r = sum_t c_{r,t} - sum over the same (i, t) of c_{i,t}, in double: of rows that are equal, these are what cancels
//   dz_r = (G_r - x_r <x_r, G_r>) / |z_r|, without the second term where |z_r| was clamped
// Each row of the gradient is summed by one thread, in the order of t and then of (i, t): the same bits for any number of threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/neighbour_rows.h"
#include "cpu/tokens.h"

namespace fastssl::koleo {
namespace {

constexpr const char* kOp = "koleo";

std::tuple<Tensor, Tensor> koleo_rows(const Tensor& z_given, double eps) {
  FASTSSL_CHECK(z_given.dim() == 2, kOp, ": expected z (N, D), got ", z_given.sizes());
  const Tensor z = z_given.stride(1) == 1 ? z_given : as_contiguous(z_given);
  const int64_t N = z.size(0), D = z.size(1);
  const ScalarType wide = accumulator(z.scalar_type());
  Tensor x = new_tensor({N, D}, wide), norm = empty({N}, wide);
  const Array from = array_of(z);
  with_accumulator(z.scalar_type(), [&]<class T>(T) {
    const auto unit = neighbour_rows<T>().unit;
    T *to = x.mutable_data_ptr<T>(), *length = norm.mutable_data_ptr<T>();
    parallel_for(N, D, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) length[i] = unit(from, i * z.stride(0), D, T(eps), to + i * D);
    });
  });
  return {x, norm};
}

// x (M, D) dense, in the dtype of sums; ids (N, k) of rows of x, N at most M.
void check(const Tensor& x, const Tensor& ids) {
  FASTSSL_CHECK(x.dim() == 2 && ids.dim() == 2 && ids.size(0) <= x.size(0) && ids.size(1) > 0, kOp,
                ": expected x (M, D) and ids of ", "at most M rows, got ", x.sizes(), " and ", ids.sizes());
  check_range(kOp, ids, x.size(0));
}

std::tuple<Tensor, Tensor> koleo_fwd(const Tensor& x_given, const Tensor& ids_given, double eps) {
  const Tensor x = as_contiguous(x_given), ids = as_contiguous(ids_given);
  check(x, ids);
  const int64_t k = ids.size(1), D = x.size(1);
  Tensor terms = empty(ids.sizes(), x.scalar_type()), distance = empty(ids.sizes(), x.scalar_type());
  with_accumulator(x.scalar_type(), [&]<class T>(T) {
    const auto distance_of = neighbour_rows<T>().distance;
    const T* row = x.const_data_ptr<T>();
    const int64_t* id = ids.const_data_ptr<int64_t>();
    T *term = terms.mutable_data_ptr<T>(), *d = distance.mutable_data_ptr<T>();
    parallel_for(ids.numel(), D, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; e++) {
        d[e] = distance_of(row + e / k * D, row + id[e] * D, D, T(eps));
        term[e] = -std::log(d[e] + T(eps));
      }
    });
  });
  return {terms, distance};
}

Tensor koleo_bwd(const Tensor& dterms_given, const Tensor& x_given, const Tensor& ids_given, const Tensor& distance_given,
                 const OptionalTensor& norm_given, double eps, int64_t, ScalarType dtype) {
  const Tensor x = as_contiguous(x_given), ids = as_contiguous(ids_given), distance = as_contiguous(distance_given);
  const Tensor dterms = as_contiguous(as_dtype(dterms_given, x.scalar_type()));
  check(x, ids);
  expect_shape(kOp, dterms, ids.sizes());
  expect_shape(kOp, distance, ids.sizes());
  const int64_t M = x.size(0), D = x.size(1), k = ids.size(1), count = ids.numel();
  Tensor norm;
  if (norm_given) {
    expect_shape(kOp, *norm_given, {M});
    norm = as_contiguous(*norm_given);
  }
  Tensor out = new_tensor({M, D}, dtype);
  const Array to = array_of(out);
  const Matches matches(ids.const_data_ptr<int64_t>(), 1, count, M);
  with_accumulator(x.scalar_type(), [&]<class T>(T) {
    const NeighbourRows<T>& f = neighbour_rows<T>();
    const T *row = x.const_data_ptr<T>(), *g = dterms.const_data_ptr<T>(), *d = distance.const_data_ptr<T>();
    const T* length = norm.defined() ? norm.const_data_ptr<T>() : nullptr;
    const int64_t* id = ids.const_data_ptr<int64_t>();
    std::vector<double> factor(count);
    parallel_for(count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; e++) factor[e] = d[e] == T(0) ? 0.0 : -double(g[e]) / (double(d[e]) + eps) / d[e];
    });
    static constexpr double most = std::numeric_limits<T>::max();  // beyond it 0 times a factor would be NaN
    const auto finite = [](double c) { return T(std::clamp(c, -most, most)); };
    parallel_for(M, 3 * D, [&](int64_t begin, int64_t end) {
      std::vector<T> sum(D);
      for (int64_t r = begin; r < end; r++) {
        const T* own = row + r * D;
        double balance = 0;
        std::fill(sum.begin(), sum.end(), T(0));
        for (int64_t e = r * k; e < std::min(r * k + k, count); e++) {
          f.add_difference(own, row + id[e] * D, D, finite(factor[e]), sum.data());
          balance += factor[e];
        }
        for (int64_t e = matches.first(0, r); e >= 0; e = matches.next(0, e)) {
          f.add_difference(row + e / k * D, own, D, finite(-factor[e]), sum.data());
          balance -= factor[e];
        }
        const bool clamped = length && length[r] < T(eps);
        const T scale = length ? T(1) / (clamped ? T(eps) : length[r]) : T(1);
        f.write(own, sum.data(), D, T(eps * balance), length && !clamped, scale, to, r * D);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace fastssl::koleo

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("koleo_rows", TORCH_BOX(&fastssl::koleo::koleo_rows));
  m.impl("koleo_fwd", TORCH_BOX(&fastssl::koleo::koleo_fwd));
  m.impl("koleo_bwd", TORCH_BOX(&fastssl::koleo::koleo_bwd));
}
