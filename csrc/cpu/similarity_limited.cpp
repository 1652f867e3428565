// The masked similarity log-sum-exp below a limit of each row, on the CPU.                  x (N, D), y (M, D), U = 2 N M D FLOP
//   s_ij  = scale <x_i, y_j> + bias_j,  -inf where x_id_i = y_id_j and where s_ij > limit_i
//   lse_i = log sum_j exp(s_ij)
//   W_ij  = g_i p_ij,  p_ij = min(1, exp(s_ij - top_i)) / sum_i      dx = scale W y,  dy = scale W^T x,  dbias = W^T 1
//
// Forward U, backward 3U, both in the tiles and the Latin-square order of the other two-sided sweeps. A logit is the same number
// both times (products.h), so the backward drops what the forward dropped. Weights are at most 1 whatever limits it is given,
// because every row has a maximum here (a bounded sweep would have none), and the largest logit that the forward kept counts in any
// case. The schema is in fastssl/ops/similarity_limited.py.
#include <array>

#include "cpu/new_tensor.h"
#include "cpu/similarity_problem.h"
#include "cpu/similarity_tiles.h"

namespace fastssl::similarity {
namespace {

// Calls visit(i, m, S, wide) for the strips of a tile as for_each_strip does, with -inf above the limits (N,).
template <class E, class Visit>
void for_each_limited_strip(const Problem<E>& p, const Sum<E>* limit, const Tile& t, const E* columns, Workspace<E>& work,
                            const Visit& visit) {
  const auto& f = rows<Sum<E>>();
  for_each_strip(p, t, columns, work, [&](int i, int m, Sum<E>* S, int wide) {
    if (!p.y.bias.empty()) f.add_bias(S, m, wide, int(work.ld()), p.y.bias.data() + t.j0);
    f.drop_above(S, m, wide, int(work.ld()), limit + t.i0 + i);
    visit(i, m, S, wide);
  });
}

template <class E>
void limited_forward(const Problem<E>& p, const Sum<E>* limit, const Ranking<Sum<E>>& ranking, const State<Sum<E>>& state,
                     Sum<E>* lse) {
  using T = Sum<E>;
  const auto& f = rows<T>();
  state.clear(p, p.x.rows());
  if (ranking.rank) std::fill_n(ranking.rank, p.x.rows(), 0);
  const Latin<E> latin(p);
  Operands<E> operands(p, latin, false, false);
  auto work = latin.strips();
  operands.run(latin, [&](const Tile& t, int64_t, int64_t J) {
    for_each_limited_strip(p, limit, t, operands.columns.of(J), work, [&](int i, int m, T* S, int wide) {
      const int ld = int(work.ld());
      const int64_t i0 = t.i0 + i;
      if (ranking.rank) f.count_above(S, m, wide, ld, T(1), ranking.threshold + i0, ranking.rank + i0);
      f.sum_online(S, m, wide, ld, int(i0), int(t.j0), state.from(i0), {});
    });
  });
  state.to_lse(p.x.rows(), lse);
}

template <class E>
void limited_backward(const Problem<E>& p, const Sum<E>* limit, const RowTerms<Sum<E>>& terms, const Gradients<Sum<E>>& out) {
  using T = Sum<E>;
  const auto& f = rows<T>();
  const Latin<E> latin(p);
  Operands<E> operands(p, latin, out.own, out.other);
  auto work = latin.workspace(out.own, out.other);
  operands.run(latin, [&](const Tile& t, int64_t I, int64_t J) {
    T* sums = work.column(0);
    if (out.dbias) std::fill_n(sums, padded(t.n), T(0));
    for_each_limited_strip(p, limit, t, operands.columns.of(J), work, [&](int i, int m, T* S, int wide) {
      const int ld = int(work.ld());
      const int64_t i0 = t.i0 + i;
      put_peaks<T>(S, ld, i0, m, t.j0, t.n, terms, nullptr);  // after the limits: what the forward kept as the largest logit stays
      f.weight_online(S, m, wide, ld, &terms.top[i0], nullptr, &terms.u[i0], nullptr);
      if (out.dbias) f.column_sum(S, m, wide, ld, sums);
      work.keep(i, m, wide);
    });
    operands.add(p, work, t, I, J, out.factor, out.own, out.other);
    for (int j = 0; out.dbias && j < t.n; j++) out.dbias[t.j0 + j] += sums[j];
  });
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Four similarity_limited_fwd(const Tensor& x, const Tensor& y, double scale, const OptTensor& factor, const OptTensor& x_id,
                            const OptTensor& y_id, const OptTensor& y_bias, const OptTensor& threshold, const Tensor& limit) {
  const ScalarType wide = compute_dtype(x);
  Tensor lse = empty({x.size(0)}, wide), state = empty({2, x.size(0)}, wide);
  Tensor rank = empty({threshold.has_value() ? x.size(0) : 0}, ScalarType::Int);
  Tensor peak = empty({x.size(0)}, ScalarType::Int);
  const Tensor bars = threshold.has_value() ? as_contiguous(as_dtype(*threshold, compute_dtype(x))) : Tensor();
  const Tensor limits = as_contiguous(as_dtype(limit, compute_dtype(x)));
  dispatch(x, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    const auto p = problem<E>(x, y, effective(scale, factor), x_id, y_id, y_bias);
    const Ranking<T> none, ranking{bars.defined() ? bars.const_data_ptr<T>() : nullptr, data_or_null<int32_t>(rank)};
    limited_forward(p, limits.const_data_ptr<T>(), bars.defined() ? ranking : none, state_of<T>(state, peak),
                    lse.mutable_data_ptr<T>());
  });
  return {lse, rank, state, peak};
}

Four similarity_limited_bwd(const Tensor& dlse, const Tensor& state, const Tensor& peak, const Tensor& x, const Tensor& y,
                            double scale, const OptTensor& factor, const OptTensor& x_id, const OptTensor& y_id,
                            const OptTensor& y_bias, const Tensor& limit, const std::vector<bool>& need) {
  const ScalarType wide = compute_dtype(x);
  const bool need_x = need[0], need_y = need[1], need_bias = need[2], need_scale = need[3];
  GradientSums gradients(x, y, effective(scale, factor), need_x, need_y, need_scale);
  Tensor dbias = need_bias && y_bias.has_value() ? zeros(y_bias->sizes(), wide) : empty({0}, wide);
  const Tensor g = as_contiguous(as_dtype(dlse, wide)), sums = as_contiguous(state), peaks = as_contiguous(peak);
  const Tensor limits = as_contiguous(as_dtype(limit, compute_dtype(x)));
  dispatch(x, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    auto p = problem<E>(x, y, gradients.scale, x_id, y_id, y_bias);
    p.backward = true;
    const RowTerms<T> terms(p.x.rows(), state_of<T>(sums, peaks), g.const_data_ptr<T>());
    const Gradients<T> out{data_or_null<T>(gradients.own), data_or_null<T>(gradients.other), data_or_null<T>(dbias),
                           T(gradients.factor())};
    if (out.own || out.other || out.dbias) limited_backward(p, limits.const_data_ptr<T>(), terms, out);
    gradients.finish(p, false);
  });
  if (y_bias.has_value()) dbias = as_dtype(dbias, y_bias->scalar_type());
  return {gradients.dx(), gradients.other, dbias, gradients.dscale};
}

}  // namespace
}  // namespace fastssl::similarity

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("similarity_limited_fwd", TORCH_BOX(&fastssl::similarity::similarity_limited_fwd));
  m.impl("similarity_limited_bwd", TORCH_BOX(&fastssl::similarity::similarity_limited_bwd));
}
