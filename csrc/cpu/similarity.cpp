// The masked similarity log-sum-exp on the CPU.                                             x (N, D), y (M, D), U = 2 N M D FLOP
//   s_ij  = scale <x_i, y_j> + bias_j          lse_i = log sum_{j: x_id_i != y_id_j} exp(s_ij)
//   W_ij  = g_i p_ij,  p_ij = min(1, exp(s_ij - top_i)) / sum_i      dx = scale W y,  dy = scale W^T x,  dbias = W^T 1
//   y is x:  W_ij = g_i p_ij + g_j p_ji is symmetric, so each unordered pair of blocks is computed once and serves both.
//
// Tiles of logits fit a core's L2. torch's BLAS computes the matrix products, and the exponentials are taken between them:
//   symmetric   forward U/2, backward 3U/2 over the upper triangle of tiles, in tournament order
//   two-sided   forward U by rows x column splits, backward 3U in Latin-square order
//   one-pass    2U: lse and mean_i = sum_j p_ij y_j together, as flash attention with V = Y
// Memory beside inputs and outputs: one tile for each thread, O(N + M) vectors, and where rows are few the partial sums of the
// column splits. The shape and the number of threads fix the order of every sum, so the same call gives the same bits.
#include "cpu/similarity.h"

#include <cmath>

namespace fastssl::similarity {
namespace {

// The blocks of a triangle are even in number, unless there is only one, so that a batch of pairs is cut in its middle, where the
// ids start again.
Blocks triangle_blocks(int64_t rows) {
  Blocks blocks = blocks_of(rows, enough_tasks());
  blocks.count += blocks.count % 2 && blocks.count > 1;
  return blocks;
}

// Logits of the pair of blocks (I, J) in the triangle. On the diagonal the upper half is copied over the lower half, since the BLAS
// may give s_ij and s_ji different bits, and rows i and j must see the same logit.
template <class T>
int triangle_logits(const Problem<T>& p, const Blocks& blocks, const IdRange& ids, int64_t I, int64_t J, T* S, int ld) {
  const int m = blocks.length(I);
  const int wide = logits(p, blocks.start(I), m, blocks.start(J), blocks.length(J), ids.meets(I, ids, J), S, ld);
  if (I == J) mirror(S, m, ld);
  return wide;
}

template <class T>
void forward_symmetric(const Problem<T>& p, const State<T>& state, T* lse) {
  const auto& f = rows<T>();
  const Blocks blocks = triangle_blocks(p.x.rows);
  const IdRange ids(p.x.id, blocks);
  state.clear(p, p.x.rows);
  Workspace<T> work(blocks.longest(), blocks.longest());
  in_order(tournament(blocks.count), blocks.count, [&](int64_t I, int64_t J) {
    const int64_t i0 = blocks.start(I), j0 = blocks.start(J);
    const int m = blocks.length(I), n = blocks.length(J), ld = work.ld();
    T* S = work.tile();
    const int wide = triangle_logits(p, blocks, ids, I, J, S, ld);
    const bool both = I != J;
    if (p.bounded) {
      T* column_sum = both ? work.column(0) : nullptr;
      f.sum_bounded(S, m, wide, ld, p.x.weight.data() + i0, p.x.weight.data() + j0, state.sum + i0, column_sum);
      for (int j = 0; both && j < n; j++) state.sum[j0 + j] += column_sum[j];
      return;
    }
    const auto columns = both ? work.take_columns(state, j0, n, wide) : Running<T>{};
    f.sum_online(S, m, wide, ld, int(i0), int(j0), state.from(i0), columns);
    if (both) work.put_columns(columns, n, state, j0);
  });
  state.to_lse(p.x.rows, lse);
}

// Blocks of rows by splits of the columns. Each cell owns the partial (max, sum[, mean]) of its rows; the partials are merged in
// the order of the splits.
struct Grid {
  Blocks rows, columns;  // blocks of rows; tiles of columns
  int64_t splits;
  Grid(int64_t n, int64_t m) : rows(blocks_of(n, 1)), columns(blocks_of(m, 1)) {
    splits = std::min(columns.count, (enough_tasks() + rows.count - 1) / rows.count);
  }
  template <class Visit>  // visit(row block, split, first column tile, last + 1)
  void run(const Visit& visit) const {
    parallel_tasks(rows.count * splits, [&](int64_t begin, int64_t end) {
      const SerialProducts serial;
      for (int64_t t = begin; t < end; t++) {
        const int64_t I = t / splits, split = t % splits;
        visit(I, split, split * columns.count / splits, (split + 1) * columns.count / splits);
      }
    });
  }
};

// In a queue stored (D, M), the numbers of one embedding lie far apart in memory, often a page or more, and a BLAS packs such a
// matrix slowly. Each tile of the queue is therefore copied into a dense (D, n) before its two products. Rows are read in place.
template <class T>
class ColumnCopies {
 public:
  ColumnCopies(const Problem<T>& p, int tile_columns)
      : ld_(padded(tile_columns)),
        stride_(p.y.transposed ? int64_t(p.D) * ld_ : 0),
        data_(stride_ ? new_aligned<T>(size_t(at::get_num_threads()) * stride_) : nullptr) {}
  std::pair<const T*, int> tile(const Problem<T>& p, int64_t j0, int n) const {
    if (!stride_) return {p.y.row(j0), p.y.ld};
    T* copy = data_.get() + at::get_thread_num() * stride_;
    for (int d = 0; d < p.D; d++) std::copy_n(p.y.row(j0) + int64_t(d) * p.y.ld, n, copy + int64_t(d) * ld_);
    return {copy, ld_};
  }

 private:
  int ld_;
  int64_t stride_;
  AlignedArray<T> data_;
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

// lse, and with kMean the mean of y under the softmax as well; ranks where they are asked for.
template <class T, bool kMean>
void sweep_rows(const Problem<T>& p, const Ranking<T>& ranking, const State<T>& state, T* lse, T* mean) {
  const auto& f = rows<T>();
  const Grid grid(p.x.rows, p.y.rows);
  const IdRange x_ids(p.x.id, grid.rows), y_ids(p.y.id, grid.columns);
  const int64_t N = p.x.rows, D = p.D;
  OwnState<T> partials(grid.splits * N);
  const State<T> part = partials.state();
  part.clear(p, grid.splits * N);
  std::vector<int32_t> above(ranking.rank ? grid.splits * N : 0, 0);
  std::unique_ptr<T[]> parts(kMean && grid.splits > 1 ? new T[grid.splits * N * D] : nullptr);
  Workspace<T> work(grid.rows.longest(), grid.columns.longest());
  const ColumnCopies<T> copies(p, grid.columns.longest());
  grid.run([&](int64_t I, int64_t split, int64_t first, int64_t last) {
    const int64_t i0 = grid.rows.start(I);
    const int m = grid.rows.length(I), ld = work.ld();
    const Running<T> row = part.from(split * N + i0);
    T *S = work.tile(), *factor = work.row();
    T* out = !kMean ? nullptr : (parts ? parts.get() + split * N * D : mean) + i0 * D;
    for (int64_t J = first; J < last; J++) {
      const int64_t j0 = grid.columns.start(J);
      const int n = grid.columns.length(J);
      const auto [y, y_ld] = copies.tile(p, j0, n);
      const int wide = logits(p, i0, m, j0, n, x_ids.meets(I, y_ids, J), S, ld, y, y_ld);
      const T* cw = p.y.weight.data() + j0;
      if (!p.bounded && !p.y.bias.empty()) f.add_bias(S, m, wide, ld, p.y.bias.data() + j0);
      if (ranking.rank) f.count_above(S, m, wide, ld, p.bounded ? T(kLog2e) : T(1), ranking.threshold + i0, &above[split * N + i0]);
      if (!kMean) {
        if (p.bounded) f.sum_bounded(S, m, wide, ld, p.x.weight.data() + i0, cw, row.sum, nullptr);
        else f.sum_online(S, m, wide, ld, int(i0), int(j0), row, {});
        continue;
      }
      if (p.bounded) f.soft_bounded(S, m, wide, ld, cw, row.sum);
      else f.soft_online(S, m, wide, ld, row.top, row.sum, factor);
      for (int i = 0; !p.bounded && J > first && i < m; i++)
        if (factor[i] != T(1))
          for (int64_t d = 0; d < D; d++) out[i * D + d] *= factor[i];
      gemm(Op::kPlain, p.y.as_rows(), m, D, n, T(1), S, ld, y, y_ld, T(J > first), out, int(D));
    }
  });
  for (int64_t i = 0; ranking.rank && i < N; i++) {
    ranking.rank[i] = 0;
    for (int64_t s = 0; s < grid.splits; s++) ranking.rank[i] += above[s * N + i];
  }
  merge(grid.splits, N, D, part, parts.get(), state, lse, mean);
}

template <class T>
void backward_symmetric(const Problem<T>& p, const RowTerms<T>& terms, T factor, T* dz) {
  const auto& f = rows<T>();
  const Blocks blocks = triangle_blocks(p.x.rows);
  const IdRange ids(p.x.id, blocks);
  const int D = p.D;
  Workspace<T> work(blocks.longest(), blocks.longest());
  in_order(tournament(blocks.count), blocks.count, [&](int64_t I, int64_t J) {
    const int64_t i0 = blocks.start(I), j0 = blocks.start(J);
    const int m = blocks.length(I), n = blocks.length(J), ld = work.ld();
    T* S = work.tile();
    const int wide = triangle_logits(p, blocks, ids, I, J, S, ld);
    const T *u = &terms.u[i0], *v = &terms.u[j0], *w = p.x.weight.data();
    if (p.bounded) {
      f.weight_bounded(S, m, wide, ld, w + i0, w + j0, u, v);
    } else {
      put_peaks(S, ld, i0, m, j0, n, terms, &terms);
      f.weight_online(S, m, wide, ld, &terms.top[i0], &terms.top[j0], u, v);
    }
    gemm(Op::kPlain, Op::kPlain, m, D, n, factor, S, ld, p.x.row(j0), p.x.ld, T(1), dz + i0 * D, D);
    if (I != J) gemm(Op::kTransposed, Op::kPlain, n, D, m, factor, S, ld, p.x.row(i0), p.x.ld, T(1), dz + j0 * D, D);
  });
}

template <class T>
void backward_two_sided(const Problem<T>& p, const RowTerms<T>& terms, const Gradients<T>& out) {
  const auto& f = rows<T>();
  auto work = latin_workspace(p);
  latin_tiles(p, latin_groups(p), [&](int64_t i0, int m, int64_t j0, int n, bool ids_meet) {
    T *S = work.tile(), *sums = work.column(0);
    const int ld = work.ld(), wide = logits(p, i0, m, j0, n, ids_meet, S, ld);
    const T* u = &terms.u[i0];
    if (p.bounded) {
      f.weight_bounded(S, m, wide, ld, p.x.weight.data() + i0, p.y.weight.data() + j0, u, nullptr);
    } else {
      if (!p.y.bias.empty()) f.add_bias(S, m, wide, ld, p.y.bias.data() + j0);
      put_peaks<T>(S, ld, i0, m, j0, n, terms, nullptr);
      f.weight_online(S, m, wide, ld, &terms.top[i0], nullptr, u, nullptr);
    }
    add_products(p, S, ld, i0, m, j0, n, out.factor, out.own, out.other);
    if (!out.dbias) return;
    f.column_sum(S, m, wide, ld, sums);
    for (int j = 0; j < n; j++) out.dbias[j0 + j] += sums[j];
  });
}

// Logits that have a bias and are not bounded depend on the role of a row (s_ij + b_j or s_ij + b_i), and so does the gradient of a
// bias. In these cases the two roles are computed apart and the problem is not taken as a triangle.
template <class T>
bool triangular(const Problem<T>& p) {
  return p.symmetric && (p.bounded || p.y.bias.empty());
}

}  // namespace

template <class T>
void forward(const Problem<T>& p, const Ranking<T>& ranking, const State<T>& state, T* lse) {
  if (triangular(p) && !ranking.rank) forward_symmetric(p, state, lse);
  else sweep_rows<T, false>(p, ranking, state, lse, nullptr);
}

template <class T>
void one_pass(const Problem<T>& p, const Ranking<T>& ranking, T* lse, T* mean) {
  OwnState<T> unused(p.x.rows);  // the one-pass backward needs no state
  sweep_rows<T, true>(p, ranking, unused.state(), lse, mean);
}

template <class T>
void backward(const Problem<T>& p, const State<T>& state, const T* g, const Gradients<T>& out) {
  if (!out.own && !out.other && !out.dbias) return;
  const RowTerms<T> terms(p.x.rows, state, g);
  if (!p.symmetric) return backward_two_sided(p, terms, out);
  if (triangular(p) && !out.dbias) return backward_symmetric(p, terms, out.factor, out.own);
  std::vector<T> other(out.own ? p.x.rows * p.D : 0, T(0));  // sums of the rows' second role
  backward_two_sided(p, terms, {out.own, out.own ? other.data() : nullptr, out.dbias, out.factor});
  for (size_t k = 0; k < other.size(); k++) out.own[k] += other[k];
}

template void forward(const Problem<float>&, const Ranking<float>&, const State<float>&, float*);
template void forward(const Problem<double>&, const Ranking<double>&, const State<double>&, double*);
template void one_pass(const Problem<float>&, const Ranking<float>&, float*, float*);
template void one_pass(const Problem<double>&, const Ranking<double>&, double*, double*);
template void backward(const Problem<float>&, const State<float>&, const float*, const Gradients<float>&);
template void backward(const Problem<double>&, const State<double>&, const double*, const Gradients<double>&);

}  // namespace fastssl::similarity
