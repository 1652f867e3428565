// Row and column log-sum-exp of one similarity matrix on the CPU, both from one sweep.       x (N, D), y (M, D), U = 2 N M D FLOP
//   s_ij = scale <x_i, y_j>, -inf where x_id_i = y_id_j     row_i = log sum_j exp(s_ij)     column_j = log sum_i exp(s_ij)
//   W_ij = g_i p_ij + h_j q_ij,  p_ij = min(1, exp(s_ij - top_i)) / sum_i, q_ij the same of the columns
//   dx = scale W y,  dy = scale W^T x,  dscale = <x, dx> / scale
//
// The tiles are visited in Latin-square order. The forward takes U; the backward takes 3U, or 2U for the rows whose entries the
// forward kept (similarity_tiles.h). Each entry costs one exponential where the logits are bounded, and none again where it was
// kept; two otherwise. Memory: one tile for each thread, O(N + M) vectors, and what is kept. The schema is in
// fastssl/ops/similarity_cross.py.
#include "cpu/similarity_cross.h"

#include "cpu/new_tensor.h"
#include "cpu/similarity_problem.h"
#include "cpu/similarity_tiles.h"

namespace fastssl::similarity {
namespace {

template <class E>
void cross_forward(const Problem<E>& p, const Ranking<Sum<E>>& ranking, const KeptRows<Sum<E>>& kept, const State<Sum<E>>& of_rows,
                   const State<Sum<E>>& of_columns, Sum<E>* row, Sum<E>* column) {
  of_rows.clear(p, p.x.rows());
  of_columns.clear(p, p.y.rows());
  if (ranking.rank) std::fill_n(ranking.rank, p.x.rows(), 0);
  const Latin<E> latin(p);
  Operands<E> operands(p, latin, false, false);
  auto work = latin.strips();
  operands.run(latin, [&](const Tile& t, int64_t, int64_t J) {
    sum_tile(p, t, operands.columns.of(J), kept.of(t), ranking, of_rows, &of_columns, work);
  });
  of_rows.to_lse(p.x.rows(), row);
  of_columns.to_lse(p.y.rows(), column);
}

// column is null where the gradients of all columns are 0: what is not finite in one of them then stays out of the weights.
template <class E>
void cross_backward(const Problem<E>& p, const RowTerms<Sum<E>>& row, const RowTerms<Sum<E>>* column, const KeptRows<Sum<E>>& kept,
                    Sum<E> factor, Sum<E>* own, Sum<E>* other) {
  const Latin<E> latin(p);
  Operands<E> operands(p, latin, own, other);
  auto work = latin.workspace(own, other);
  operands.run(latin, [&](const Tile& t, int64_t I, int64_t J) {
    weigh_tile(p, t, operands.columns.of(J), kept.of(t), row, column, work);
    operands.add(p, work, t, I, J, factor, own, other);
  });
}

}  // namespace

CrossResults similarity_cross_fwd(const Tensor& x, const Tensor& y, double scale, const OptTensor& factor, const OptTensor& x_id,
                                  const OptTensor& y_id, const OptTensor& threshold, int64_t keep_rows) {
  const ScalarType wide = compute_dtype(x);
  Tensor row = empty({x.size(0)}, wide), column = empty({y.size(0)}, wide);
  Tensor rank = empty({threshold.has_value() ? x.size(0) : 0}, ScalarType::Int);
  Tensor kept = new_tensor({keep_rows, y.size(0)}, wide);
  const int64_t all = x.size(0) + y.size(0);  // the state of the rows, then that of the columns
  Tensor state = empty({2, all}, wide), peak = empty({all}, ScalarType::Int);
  dispatch(x, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    auto p = problem<E>(x, y, effective(scale, factor), x_id, y_id, std::nullopt);
    p.bounded = proved_bounded(p);
    const Tensor bars = threshold.has_value() ? as_contiguous(as_dtype(*threshold, compute_dtype(x))) : Tensor();
    const Ranking<T> none, ranking{bars.defined() ? bars.const_data_ptr<T>() : nullptr, data_or_null<int32_t>(rank)};
    const KeptRows<T> held{kept.mutable_data_ptr<T>(), keep_rows, p.y.rows()};
    const auto of_rows = state_of<T>(state, peak);
    cross_forward(p, bars.defined() ? ranking : none, held, of_rows, {of_rows.from(p.x.rows())}, row.mutable_data_ptr<T>(),
                  column.mutable_data_ptr<T>());
  });
  return {row, column, rank, kept, state, peak};
}

std::tuple<Tensor, Tensor, Tensor> similarity_cross_bwd(const Tensor& drow, const Tensor& dcolumn, const Tensor& state,
                                                        const Tensor& peak, const Tensor& kept, const Tensor& x, const Tensor& y,
                                                        double scale, const OptTensor& factor, const OptTensor& x_id,
                                                        const OptTensor& y_id, const std::vector<bool>& need) {
  GradientSums out(x, y, effective(scale, factor), need[0], need[1], need[2]);
  const Tensor g = as_contiguous(as_dtype(drow, compute_dtype(x))), h = as_contiguous(as_dtype(dcolumn, compute_dtype(x)));
  const Tensor sums = as_contiguous(state), peaks = as_contiguous(peak), logits = as_contiguous(kept);
  dispatch(x, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    auto p = problem<E>(x, y, out.scale, x_id, y_id, std::nullopt);
    const auto of_all = state_of<T>(sums, peaks);
    set_backward(p, of_all);
    const RowTerms<T> of_rows(p.x.rows(), of_all, g.const_data_ptr<T>());
    const RowTerms<T> of_columns(p.y.rows(), {of_all.from(p.x.rows())}, h.const_data_ptr<T>());
    const KeptRows<T> held{const_cast<T*>(logits.const_data_ptr<T>()), logits.size(0), p.y.rows()};
    const T* of_column = h.const_data_ptr<T>();
    const bool rows_only = std::all_of(of_column, of_column + p.y.rows(), [](T each) { return each == T(0); });
    cross_backward(p, of_rows, rows_only ? nullptr : &of_columns, held, T(out.factor()), data_or_null<T>(out.own),
                   data_or_null<T>(out.other));
    out.finish(p, false);
  });
  return {out.dx(), out.other, out.dscale};
}

}  // namespace fastssl::similarity

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("similarity_cross_fwd", TORCH_BOX(&fastssl::similarity::similarity_cross_fwd));
  m.impl("similarity_cross_bwd", TORCH_BOX(&fastssl::similarity::similarity_cross_bwd));
}
