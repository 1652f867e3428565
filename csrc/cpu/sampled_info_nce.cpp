// InfoNCE over sampled negatives on the CPU: each query against the rows of a table that an index names, column 0 the positive.
//   x_i = c_i / max(|c_i|, eps);   y_k = q_k / max(|q_k|, eps);   s_ie = <x_i, y_{index[i, e]}>, -inf for e > 0 where q_{index[i,
//   e]} equals the positive's row in all entries;   L_i = log sum_e exp(scale s_ie) - scale s_i0 G_i = (scale / |c_i|) P(sum_e p_ie
//   y_{index[i, e]} - y_{index[i, 0]}),   P(g) = g - x_i <x_i, g> dq_k = P(sum over (i, e) with index[i, e] = k of dL_i scale (p_ie
//   - [e = 0]) x_i) / |q_k|
// The rows of a query are read for s and again, from the cache, for G. One thread sums a row of dq in the order of (i, e): the same
// bits for any number of threads.
#include <cmath>
#include <limits>

#include "cpu/neighbour_rows.h"
#include "cpu/sampled_rows.h"
#include "cpu/tokens.h"

namespace fastssl::sampled_info_nce {
namespace {

constexpr const char* kOp = "sampled_info_nce";

struct Rows {
  Tensor unit, length;  // (N, D) and (N,), in the dtype of sums
};

template <class T>
Rows unit_rows(const Tensor& z, double eps) {
  const int64_t N = z.size(0), D = z.size(1);
  const ScalarType wide = accumulator(z.scalar_type());
  Rows rows{new_tensor({N, D}, wide), empty({N}, wide)};
  const Array from = array_of(z);
  const auto unit = neighbour_rows<T>().unit;
  T *to = rows.unit.mutable_data_ptr<T>(), *length = rows.length.mutable_data_ptr<T>();
  parallel_for(N, D, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) length[i] = unit(from, i * D, D, T(eps), to + i * D);
  });
  return rows;
}

void check(const Tensor& query, const Tensor& keys, const Tensor& index, const Tensor& scale) {
  FASTSSL_CHECK(query.dim() == 2 && keys.dim() == 2 && index.dim() == 2 && query.size(1) == keys.size(1) && index.size(1) > 0 &&
                    index.size(0) == query.size(0) && query.scalar_type() == keys.scalar_type() && scale.numel() == 1,
                kOp, ": expected query (M, D), keys (K, D), index (M, E) and one scale, got ", query.sizes(), ", ", keys.sizes(),
                ", ", index.sizes(), " and ", scale.sizes());
  check_range(kOp, index, keys.size(0));
}

template <class T>
bool equal(const T* a, const T* b, int64_t n) {
  for (int64_t j = 0; j < n; j++)
    if (a[j] != b[j]) return false;
  return true;
}

// Logits of a row: scale s, and -inf where s is, whatever the sign of the scale. Returns the largest.
template <class T>
T logits_of(const T* s, int64_t count, T scale, T* logits) {
  constexpr T least = -std::numeric_limits<T>::infinity();
  T peak = least;
  for (int64_t e = 0; e < count; e++) {
    logits[e] = s[e] == least ? least : scale * s[e];
    peak = logits[e] > peak ? logits[e] : peak;
  }
  return peak;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fwd(const Tensor& query_given, const Tensor& keys_given,
                                                       const Tensor& index_given, const Tensor& scale_given, double eps,
                                                       bool gradient) {
  const Tensor query = as_contiguous(query_given), keys = as_contiguous(keys_given), index = as_contiguous(index_given);
  check(query, keys, index, scale_given);
  const int64_t M = query.size(0), D = query.size(1), E = index.size(1);
  const ScalarType wide = accumulator(query.scalar_type());
  Tensor loss = empty({M}, wide), slope = empty({M}, wide), lse = empty({M}, wide);
  Tensor cosines = new_tensor({M, E}, wide), dquery = new_tensor({M, gradient ? D : 0}, wide);
  const Array to = array_of(dquery);
  with_accumulator(query.scalar_type(), [&]<class T>(T) {
    const Rows x = unit_rows<T>(query, eps), y = unit_rows<T>(keys, eps);
    const SampledRows<T>& f = sampled_rows<T>();
    const auto write = neighbour_rows<T>().write;
    const T *unit = x.unit.const_data_ptr<T>(), *length = x.length.const_data_ptr<T>(), *table = y.unit.const_data_ptr<T>();
    const T scale = T(as_double(scale_given));
    const Tensor exact = as_dtype(keys, wide);  // rows of other lengths may be equal at unit length
    const T* given = exact.const_data_ptr<T>();
    T *losses = loss.mutable_data_ptr<T>(), *slopes = slope.mutable_data_ptr<T>(), *sums = lse.mutable_data_ptr<T>();
    T* all = cosines.mutable_data_ptr<T>();
    const int64_t* index_of = index.const_data_ptr<int64_t>();
    parallel_for(M, (gradient ? 4 : 2) * E * D, [&](int64_t begin, int64_t end) {
      std::vector<T> logits(E), share(E), sum(D);
      for (int64_t i = begin; i < end; i++) {
        const int64_t* ids = index_of + i * E;
        const T* own = unit + i * D;
        T* s = all + i * E;
        f.products(own, table, ids, E, D, s);
        for (int64_t e = 1; e < E; e++)
          if (ids[e] == ids[0] || equal(given + ids[e] * D, given + ids[0] * D, D)) s[e] = -std::numeric_limits<T>::infinity();
        const T peak = logits_of(s, E, scale, logits.data());
        f.shares(logits.data(), E, peak, share.data());
        T total = 0, weighted = 0;
        for (int64_t e = 0; e < E; e++) total += share[e], weighted += share[e] == T(0) ? T(0) : share[e] * s[e];
        sums[i] = peak + std::log(total);
        losses[i] = sums[i] - logits[0];
        slopes[i] = weighted / total - s[0];
        if (!gradient) continue;
        for (int64_t e = 0; e < E; e++) share[e] /= total;
        share[0] -= T(1);
        f.combine(table, ids, share.data(), E, D, sum.data());
        const bool clamped = length[i] < T(eps);
        write(own, sum.data(), D, T(0), !clamped, scale / (clamped ? T(eps) : length[i]), to, i * D);
      }
    });
  });
  return {loss, slope, lse, cosines, dquery};
}

Tensor bwd(const Tensor& dloss_given, const Tensor& query_given, const Tensor& keys_given, const Tensor& index_given,
           const Tensor& scale_given, const Tensor& lse_given, const Tensor& cosines_given, double eps) {
  const Tensor query = as_contiguous(query_given), keys = as_contiguous(keys_given), index = as_contiguous(index_given);
  const Tensor lse = as_contiguous(lse_given), cosines = as_contiguous(cosines_given);
  check(query, keys, index, scale_given);
  const int64_t M = query.size(0), D = query.size(1), E = index.size(1), K = keys.size(0);
  expect_shape(kOp, dloss_given, {M});
  expect_shape(kOp, lse, {M});
  expect_shape(kOp, cosines, {M, E});
  Tensor out = new_tensor(keys.sizes(), keys.scalar_type());
  const Array to = array_of(out);
  const Matches matches(index.const_data_ptr<int64_t>(), 1, M * E, K);
  with_accumulator(query.scalar_type(), [&]<class T>(T) {
    const Tensor dloss = as_contiguous(as_dtype(dloss_given, lse.scalar_type()));
    const Rows x = unit_rows<T>(query, eps), y = unit_rows<T>(keys, eps);
    const SampledRows<T>& f = sampled_rows<T>();
    const auto write = neighbour_rows<T>().write;
    const T *queries = x.unit.const_data_ptr<T>(), *table = y.unit.const_data_ptr<T>(), *length = y.length.const_data_ptr<T>();
    const T *upstream = dloss.const_data_ptr<T>(), *sums = lse.const_data_ptr<T>(), *s = cosines.const_data_ptr<T>();
    const T scale = T(as_double(scale_given));
    const Tensor weights = new_tensor({M, E}, lse.scalar_type());
    T* weight = weights.mutable_data_ptr<T>();
    parallel_for(M, 8 * E, [&](int64_t begin, int64_t end) {
      std::vector<T> logits(E);
      for (int64_t i = begin; i < end; i++) {
        T* own = weight + i * E;
        logits_of(s + i * E, E, scale, logits.data());
        f.shares(logits.data(), E, sums[i], own);
        own[0] -= T(1);
        for (int64_t e = 0; e < E; e++) own[e] *= upstream[i] * scale;
      }
    });
    parallel_for(K, 2 * D * (1 + M * E / K), [&](int64_t begin, int64_t end) {
      std::vector<T> sum(D), factor;
      std::vector<int64_t> ids;
      for (int64_t k = begin; k < end; k++) {
        ids.clear(), factor.clear();
        for (int64_t each = matches.first(0, k); each >= 0; each = matches.next(0, each))
          ids.push_back(each / E), factor.push_back(weight[each]);
        f.combine(queries, ids.data(), factor.data(), int64_t(ids.size()), D, sum.data());
        const bool clamped = length[k] < T(eps);
        write(table + k * D, sum.data(), D, T(0), !clamped, T(1) / (clamped ? T(eps) : length[k]), to, k * D);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace fastssl::sampled_info_nce

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("sampled_info_nce_fwd", TORCH_BOX(&fastssl::sampled_info_nce::fwd));
  m.impl("sampled_info_nce_bwd", TORCH_BOX(&fastssl::sampled_info_nce::bwd));
}
