// The masked similarity log-sum-exp on the CPU.                                             x (N, D), y (M, D), U = 2 N M D FLOP
//   s_ij  = scale <x_i, y_j> + bias_j          lse_i = log sum_{j: x_id_i != y_id_j} exp(s_ij)
//   W_ij  = g_i p_ij,  p_ij = min(1, exp(s_ij - top_i)) / sum_i      dx = scale W y,  dy = scale W^T x,  dbias = W^T 1
//   y is x:  W_ij = g_i p_ij + g_j p_ji is symmetric, so each unordered pair of blocks is computed once and serves both.
//
// Weights of a tile fit a core's L2, strips of logits its L1. The matrix products are our own (products.h), and the exponentials
// are taken between them:
//   symmetric   forward U/2, backward 3U/2 over the upper triangle of tiles (similarity_triangle.h), in tournament order
//   two-sided   forward U by row groups x column splits, backward 3U in Latin-square order
//   one-pass    2U: lse and mean_i = sum_j p_ij y_j together, as flash attention with V = Y
// Memory beside inputs and outputs: one tile for each thread, O(N + M) vectors, where rows are few the partial sums of the column
// splits, and but for a one-sided sweep the rows as packed operands: x and y once or twice. The shape and the number of threads fix
// the order of every sum, so the same call gives the same bits.
#include "cpu/similarity.h"

#include <cmath>

#include "cpu/similarity_tiles.h"
#include "cpu/similarity_triangle.h"

namespace fastssl::similarity {
namespace {

// Groups of row blocks by splits of the columns. Each cell owns the partial (max, sum[, mean]) of its rows; the partials are merged
// in the order of the splits. A cell packs each tile of columns once for all blocks of its group.
struct Grid {
  static constexpr int64_t kGroup = 4;
  Blocks rows, columns;  // blocks of rows; tiles of columns
  int64_t groups, splits;
  Grid(int64_t n, int64_t m) : rows(blocks_of(n, 1)), columns(blocks_of(m, 1)) {
    groups = (rows.count + kGroup - 1) / kGroup;
    splits = std::min(columns.count, (enough_tasks() + groups - 1) / groups);
  }
  template <class Visit>  // visit(first row block, last + 1, split, first column tile, last + 1)
  void run(const Visit& visit) const {
    parallel_tasks(groups * splits, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t group = t / splits, split = t % splits;
        visit(group * rows.count / groups, (group + 1) * rows.count / groups, split, split * columns.count / splits,
              (split + 1) * columns.count / splits);
      }
    });
  }
};

// Merges the partial (max, sum, peak[, mean]) of the splits, each (splits, N[, D]), into the state, lse (N,) and, unless null, mean
// (N, D). Where `parts` is null, there is only one partial of the mean, and `mean` already holds it.
template <class T>
void merge(int64_t splits, int64_t N, int64_t D, const State<T>& part, const T* parts, const State<T>& state, T* lse, T* mean) {
  const T kInf = std::numeric_limits<T>::infinity();
  parallel_for(N, D, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      int64_t first = i;  // the first of the partials with the largest logit
      for (int64_t k = i; k < splits * N; k += N)
        if (part.top[k] > part.top[first]) first = k;
      const T best = part.top[first], base = best == -kInf ? T(0) : best;
      T total = 0;
      for (int64_t k = i; k < splits * N; k += N) total += part.sum[k] * std::exp(part.top[k] - base);
      state.top[i] = best, state.sum[i] = total, state.peak[i] = part.peak[first];
      lse[i] = lse_of(best, total);
      if (!mean) continue;
      T* out = mean + i * D;
      for (int64_t s = 0; s < splits; s++) {
        const T share = total > 0 || std::isnan(total) ? std::exp(part.top[s * N + i] - base) / total : T(0);
        const T* part = parts ? parts + (s * N + i) * D : out;
        for (int64_t d = 0; d < D; d++) out[d] = (s ? out[d] : T(0)) + share * part[d];
      }
    }
  });
}

// One cell's tile of a sweep over rows: lse, and with kMean the mean of y under the softmax; ranks where they are asked for.
template <class E, bool kMean>
struct RowSweep {
  using T = Sum<E>;
  const Problem<E>& p;
  const Ranking<T>& ranking;
  const Rows<T>& f = rows<T>();

  // Adds tile t to the partial `row` of its rows and, with kMean, to `mean` (m, D), which the first tile begins.
  void add(const Tile& t, const E* columns, const E* y_rows, bool first, Workspace<E>& work, const Running<T>& row, int32_t* above,
           T* mean) const {
    const int ld = int(work.ld());
    const T* cw = p.y.weight.data() + t.j0;
    T* factor = work.row();
    for_each_strip(p, t, columns, work, [&](int i, int m, T* S, int wide) {
      const int64_t i0 = t.i0 + i;
      if (!p.bounded && !p.y.bias.empty()) f.add_bias(S, m, wide, ld, p.y.bias.data() + t.j0);
      if (ranking.rank) f.count_above(S, m, wide, ld, p.bounded ? T(kLog2e) : T(1), ranking.threshold + i0, above + i);
      if (!kMean) {
        if (p.bounded) f.sum_bounded(S, m, wide, ld, p.x.weight.data() + i0, cw, row.sum + i, nullptr, {});
        else f.sum_online(S, m, wide, ld, int(i0), int(t.j0), {row.top + i, row.sum + i, row.peak + i}, {});
        return;
      }
      if (p.bounded) f.soft_bounded(S, m, wide, ld, cw, row.sum + i);
      else f.soft_online(S, m, wide, ld, row.top + i, row.sum + i, factor + i);
      work.keep(i, m, wide);
    });
    if (!kMean) return;
    for (int i = 0; !p.bounded && !first && i < t.m; i++)
      if (factor[i] != T(1))
        for (int64_t d = 0; d < p.D; d++) mean[i * p.D + d] *= factor[i];
    products<E>().multiply(work.weights(), y_rows, t.m, p.D, t.n, T(1), !first, mean, p.D);
  }
};

template <class E, bool kMean>
void sweep_rows(const Problem<E>& p, const Ranking<Sum<E>>& ranking, const State<Sum<E>>& state, Sum<E>* lse, Sum<E>* mean) {
  using T = Sum<E>;
  const RowSweep<E, kMean> sweep{p, ranking};
  const Grid grid(p.x.rows(), p.y.rows());
  const IdRange x_ids(p.x.id, grid.rows), y_ids(p.y.id, grid.columns);
  const int64_t N = p.x.rows(), D = p.D, splits = grid.splits;
  OwnState<T> partials(splits * N);
  const State<T> part = partials.state();
  part.clear(p, splits * N);
  std::vector<int32_t> above(ranking.rank ? splits * N : 0, 0);
  std::unique_ptr<T[]> parts(kMean && splits > 1 ? new T[splits * N * D] : nullptr);
  Workspace<E> work(kMean ? grid.rows.longest() : kStrip, grid.columns.longest(), true, false);
  Panels<E> columns(p.y.stored, p.D, Form::kColumns, grid.columns.longest(), thread_count());
  Panels<E> y_rows(p.y.stored, p.D, Form::kRows, grid.columns.longest(), kMean ? thread_count() : 0);
  grid.run([&](int64_t first_row, int64_t last_row, int64_t split, int64_t first, int64_t last) {
    const int thread = thread_index();
    for (int64_t J = first; J < last; J++) {
      const int64_t j0 = grid.columns.start(J);
      const int n = grid.columns.length(J);
      columns.fill(thread, j0, n);
      if (kMean) y_rows.fill(thread, j0, n);
      for (int64_t I = first_row; I < last_row; I++) {
        const int64_t i0 = grid.rows.start(I), at = split * N + i0;
        T* out = !kMean ? nullptr : (parts ? parts.get() + split * N * D : mean) + i0 * D;
        sweep.add({i0, grid.rows.length(I), j0, n, x_ids.meets(I, y_ids, J)}, columns.of(thread),
                  kMean ? y_rows.of(thread) : nullptr, J == first, work, part.from(at), above.data() + (ranking.rank ? at : 0),
                  out);
      }
    }
  });
  for (int64_t i = 0; ranking.rank && i < N; i++) {
    ranking.rank[i] = 0;
    for (int64_t s = 0; s < splits; s++) ranking.rank[i] += above[s * N + i];
  }
  merge(splits, N, D, part, parts.get(), state, lse, mean);
}

template <class E>
void backward_two_sided(const Problem<E>& p, const RowTerms<Sum<E>>& terms, const Gradients<Sum<E>>& out) {
  using T = Sum<E>;
  const auto& f = rows<T>();
  const Latin<E> latin(p);
  Operands<E> operands(p, latin, out.own, out.other);
  auto work = latin.workspace(out.own, out.other);
  operands.run(latin, [&](const Tile& t, int64_t I, int64_t J) {
    const int ld = int(work.ld());
    T* sums = work.column(0);
    if (out.dbias) std::fill_n(sums, padded(t.n), T(0));
    for_each_strip(p, t, operands.columns.of(J), work, [&](int i, int m, T* S, int wide) {
      const int64_t i0 = t.i0 + i;
      if (p.bounded) {
        f.weight_bounded(S, m, wide, ld, p.x.weight.data() + i0, p.y.weight.data() + t.j0, &terms.u[i0], nullptr, {});
      } else {
        if (!p.y.bias.empty()) f.add_bias(S, m, wide, ld, p.y.bias.data() + t.j0);
        put_peaks<T>(S, ld, i0, m, t.j0, t.n, terms, nullptr);
        f.weight_online(S, m, wide, ld, &terms.top[i0], nullptr, &terms.u[i0], nullptr);
      }
      if (out.dbias) f.column_sum(S, m, wide, ld, sums);
      work.keep(i, m, wide);
    });
    operands.add(p, work, t, I, J, out.factor, out.own, out.other);
    for (int j = 0; out.dbias && j < t.n; j++) out.dbias[t.j0 + j] += sums[j];
  });
}

}  // namespace

template <class E>
void forward(const Problem<E>& p, const Ranking<Sum<E>>& ranking, const State<Sum<E>>& state, Sum<E>* lse) {
  if (triangular(p) && !ranking.rank) forward_triangle(p, state, lse);
  else sweep_rows<E, false>(p, ranking, state, lse, nullptr);
}

template <class E>
void one_pass(const Problem<E>& p, const Ranking<Sum<E>>& ranking, Sum<E>* lse, Sum<E>* mean) {
  OwnState<Sum<E>> unused(p.x.rows());  // the one-pass backward needs no state
  sweep_rows<E, true>(p, ranking, unused.state(), lse, mean);
}

template <class E>
void backward(const Problem<E>& p, const State<Sum<E>>& state, const Sum<E>* g, const Gradients<Sum<E>>& out) {
  using T = Sum<E>;
  if (!out.own && !out.other && !out.dbias) return;
  if (triangular(p) && !out.dbias) return backward_triangle(p, state, g, out.factor, out.clear, out.own);
  const RowTerms<T> terms(p.x.rows(), state, g);
  if (!p.symmetric) return backward_two_sided(p, terms, out);
  if (out.clear && out.own) std::fill_n(out.own, p.x.rows() * p.D, T(0));
  std::vector<T> other(out.own ? p.x.rows() * p.D : 0, T(0));  // sums of the rows' second role
  backward_two_sided(p, terms, {out.own, out.own ? other.data() : nullptr, out.dbias, out.factor});
  for (size_t k = 0; k < other.size(); k++) out.own[k] += other[k];
}

#define FASTSSL_FOR(E)                                                                             \
  template void forward(const Problem<E>&, const Ranking<Sum<E>>&, const State<Sum<E>>&, Sum<E>*); \
  template void one_pass(const Problem<E>&, const Ranking<Sum<E>>&, Sum<E>*, Sum<E>*);             \
  template void backward(const Problem<E>&, const State<Sum<E>>&, const Sum<E>*, const Gradients<Sum<E>>&);
FASTSSL_FOR(float)
FASTSSL_FOR(double)
FASTSSL_FOR(BFloat16)

}  // namespace fastssl::similarity
