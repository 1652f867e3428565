// The pairwise sigmoid loss and all its gradients on the CPU, from one sweep.               x (N, D), y (M, D), U = 2 N M D FLOP
//   l_ij = scale <x_i, y_j> + bias,   t_ij = +1 where x_id_i = y_id_j, else -1,   v_ij = x_weight_i + y_weight_j or 1
//   loss = sum_ij v_ij softplus(-t_ij l_ij)     w_ij = -t_ij v_ij sigmoid(-t_ij l_ij)
//   dx = scale w y,   dy = scale w^T x,   dscale = <x, w y>,   dbias = sum_ij w_ij
//
// Tiles of logits are visited in Latin-square order and turned into w in place: 3U with both gradients, U without any. Each entry
// costs one exponential, one polynomial logarithm and one division. Memory: one tile for each thread and O(N + M) vectors.
// The schema is in fastssl/ops/sigmoid_pair.py.
#include <array>
#include <numeric>

#include "cpu/new_tensor.h"
#include "cpu/similarity_problem.h"

namespace fastssl::similarity {
namespace {

// The weights of one side's positives, padded; 1/2 each where none are given, so that both sides add up to 1.
template <class T>
std::vector<T> positive_weights(const OptTensor& given, int64_t count) {
  std::vector<T> weight(count + kPad, T(0.5));
  if (!given.has_value()) return weight;
  const Tensor wide = as_contiguous(as_dtype(*given, kScalarType<T>));
  std::copy_n(wide.const_data_ptr<T>(), count, weight.begin());
  return weight;
}

// The sums of each row's losses and weights w, and the sums for the gradients of x (own) and y (other), unless null.
template <class T>
struct Outcome {
  std::vector<T> loss, weight;
  T factor, *own, *other;
};

template <class E>
void sweep(const Problem<E>& p, double bias, const std::vector<Sum<E>>& x_weight, const std::vector<Sum<E>>& y_weight,
           Outcome<Sum<E>>& out) {
  using T = Sum<E>;
  const auto& f = rows<T>();
  const Latin<E> latin(p);
  Operands<E> operands(p, latin, out.own, out.other);
  auto work = out.own || out.other ? latin.workspace(out.own, out.other) : latin.strips();
  operands.run(latin, [&](const Tile& t, int64_t I, int64_t J) {
    Tile all = t;
    all.ids_meet = false;  // equal ids are positive pairs here, which stay
    for_each_strip(p, all, operands.columns.of(J), work, [&](int i, int m, T* S, int wide) {
      const int64_t i0 = t.i0 + i;
      const PairIds<T> ids{p.x.id.data() + i0, p.y.id.data() + t.j0, x_weight.data() + i0, y_weight.data() + t.j0};
      f.sigmoid(S, m, t.n, wide, int(work.ld()), T(bias), t.ids_meet ? &ids : nullptr, &out.loss[i0], &out.weight[i0]);
      if (out.own || out.other) work.keep(i, m, wide);
    });
    operands.add(p, work, t, I, J, out.factor, out.own, out.other);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sigmoid_pair(const Tensor& x, const Tensor& y, double scale,
                                                                const OptTensor& factor, double bias, const OptTensor& bias_term,
                                                                const Tensor& x_id, const Tensor& y_id, const OptTensor& x_weight,
                                                                const OptTensor& y_weight, const std::vector<bool>& need) {
  const ScalarType wide = compute_dtype(x);
  const bool need_x = need[0], need_y = need[1], need_scale = need[2], need_bias = need[3];
  const double b = bias_term.has_value() ? bias + as_double(*bias_term) : bias;
  GradientSums gradients(x, y, effective(scale, factor), need_x, need_y, need_scale);
  Tensor loss = empty({}, wide), dbias = need_bias ? empty({}, wide) : empty({0}, wide);
  dispatch(x, [&](auto zero) {
    using E = decltype(zero);
    using T = Sum<E>;
    const auto p = problem<E>(x, y, gradients.scale, x_id, y_id, std::nullopt);
    const std::vector<T> zero_rows(p.x.rows(), T(0));
    Outcome<T> out{zero_rows, zero_rows, T(gradients.factor()), data_or_null<T>(gradients.own), data_or_null<T>(gradients.other)};
    sweep(p, b, positive_weights<T>(x_weight, p.x.rows()), positive_weights<T>(y_weight, p.y.rows()), out);
    *loss.mutable_data_ptr<T>() = T(std::accumulate(out.loss.begin(), out.loss.end(), 0.0));
    if (need_bias) *dbias.mutable_data_ptr<T>() = T(std::accumulate(out.weight.begin(), out.weight.end(), 0.0));
    gradients.finish(p, false);
  });
  return {loss, gradients.dx(), gradients.other, gradients.dscale, dbias};
}

}  // namespace
}  // namespace fastssl::similarity

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("sigmoid_pair", TORCH_BOX(&fastssl::similarity::sigmoid_pair)); }
