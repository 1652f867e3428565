// What the sweeps whose tiles serve rows and columns at once do with a tile: its sums in the forward, its weights in the backward.
// The forward may keep entries for the backward, which reads them in place of a product of width D:
//   bounded   the exponentials 2^s, which it takes anyway: the weight of an entry costs no second one
//   online    the logits, whose exponentials depend on maxima that are not known yet
// Both are what the backward would compute again, so that its bits are the same. Memory: 4 bytes an entry, or 8 in float64.
#pragma once
#include "cpu/similarity.h"

namespace fastssl::similarity {

// What the weights of a tile need of each row (or column), in the form of the bounded or of the online functions.
template <class T>
struct RowTerms {
  std::vector<T> u, top;  // u = g / sum; top is +inf where everything is excluded; both are padded
  const int32_t* peak;
  RowTerms(int64_t count, const State<T>& state, const T* g) : u(count + kPad), top(count + kPad), peak(state.peak) {
    for (int64_t i = 0; i < count; i++) {
      const bool empty = state.sum[i] == 0;  // weight 0
      top[i] = empty ? std::numeric_limits<T>::infinity() : state.top[i];
      u[i] = empty ? T(0) : g[i] / state.sum[i];
    }
  }
};

// Gives the largest logit of each row and, unless `columns` is null, of each column of a tile the value that the forward's product
// gave it. Our own products would give it again, but those of oneDNN may give a logit other last bits in a tile of another shape,
// and at logits of 1e8 these change its exponential by factors up to e^(+-32). The weight of a logit that dominates its row is 1,
// and would then be anything. With the forward's value it is 1 again; other weights are as inexact as in eager PyTorch.
template <class T>
void put_peaks(T* S, int ld, int64_t i0, int m, int64_t j0, int n, const RowTerms<T>& rows, const RowTerms<T>* columns) {
  for (int i = 0; i < m; i++) {
    const int64_t j = rows.peak[i0 + i] - j0;
    if (j >= 0 && j < n) S[int64_t(i) * ld + j] = rows.top[i0 + i];
  }
  if (!columns) return;
  for (int j = 0; j < n; j++) {
    const int64_t i = columns->peak[j0 + j] - i0;
    if (i < 0 || i >= m) continue;
    T& s = S[i * ld + j];
    const T top = columns->top[j0 + j];
    s = rows.peak[i0 + i] == j0 + j ? std::max(s, top) : top;  // largest of its row and of its column: a weight of 1 for both
  }
}

// Entries (rows, columns) of the first rows of a matrix.
template <class T>
struct KeptRows {
  T* data;
  int64_t rows, columns;
  Cells<T> of(const Tile& t) const {
    if (t.i0 + t.m > rows) return {};
    return {data + t.i0 * columns + t.j0, columns, t.n};
  }
};

template <class T>
void put_logits(const T* S, int ld, int m, const Cells<T>& kept) {
  for (int i = 0; kept.data && i < m; i++) std::copy_n(S + int64_t(i) * ld, kept.columns, kept.data + i * kept.ld);
}

template <class T>
int get_logits(T* S, int ld, int m, const Cells<T>& kept) {  // returns the padded n, as logits() does
  for (int i = 0; i < m; i++) std::copy_n(kept.data + i * kept.ld, kept.columns, S + int64_t(i) * ld);
  return pad(S, m, kept.columns, ld);
}

// Adds a tile to the state of its rows and, unless that is null, to that of its columns. Counts the logits above the thresholds.
template <class E>
void sum_tile(const Problem<E>& p, const Tile& t, const E* columns, const Cells<Sum<E>>& kept, const Ranking<Sum<E>>& ranking,
              const State<Sum<E>>& of_rows, const State<Sum<E>>* of_columns, Workspace<E>& work) {
  using T = Sum<E>;
  const auto& f = rows<T>();
  const int ld = int(work.ld()), all = padded(t.n);
  T* column_sum = of_columns && p.bounded ? work.column(0) : nullptr;
  if (column_sum) std::fill_n(column_sum, all, T(0));
  const auto running = of_columns && !p.bounded ? work.take_columns(*of_columns, t.j0, t.n, all) : Running<T>{};
  for_each_strip(p, t, columns, work, [&](int i, int m, T* S, int wide) {
    const int64_t i0 = t.i0 + i;
    const Cells<T> here = kept.from(i);
    if (ranking.rank) f.count_above(S, m, wide, ld, p.bounded ? T(kLog2e) : T(1), ranking.threshold + i0, ranking.rank + i0);
    if (p.bounded) {
      f.sum_bounded(S, m, wide, ld, p.x.weight.data() + i0, p.y.weight.data() + t.j0, of_rows.sum + i0, column_sum, here);
    } else {
      put_logits(S, ld, m, here);
      f.sum_online(S, m, wide, ld, int(i0), int(t.j0), of_rows.from(i0), running);
    }
  });
  for (int j = 0; column_sum && j < t.n; j++) of_columns->sum[t.j0 + j] += column_sum[j];
  if (of_columns && !p.bounded) work.put_columns(running, t.n, *of_columns, t.j0);
}

// Leaves the weights of a tile in the workspace. `column` is null where the columns have none.
template <class E>
void weigh_tile(const Problem<E>& p, const Tile& t, const E* columns, const Cells<Sum<E>>& kept, const RowTerms<Sum<E>>& row,
                const RowTerms<Sum<E>>* column, Workspace<E>& work) {
  using T = Sum<E>;
  const auto& f = rows<T>();
  const int ld = int(work.ld());
  for (int i = 0; i < t.m; i += kStrip) {
    const int m = std::min(kStrip, t.m - i);
    const int64_t i0 = t.i0 + i;
    const Cells<T> here = kept.from(i);
    T* S = work.strip(i);
    int wide = in_vectors<T>(t.n);
    if (!here.data) logits(p, t, i0, m, columns, S, ld);
    else if (!p.bounded) get_logits(S, ld, m, here);
    const T *u = &row.u[i0], *v = column ? &column->u[t.j0] : nullptr;
    if (p.bounded) {
      f.weight_bounded(S, m, wide, ld, p.x.weight.data() + i0, p.y.weight.data() + t.j0, u, v, here);
    } else {
      put_peaks(S, ld, i0, m, t.j0, t.n, row, column);
      f.weight_online(S, m, wide, ld, &row.top[i0], column ? &column->top[t.j0] : nullptr, u, v);
    }
    work.keep(i, m, wide);
  }
}

}  // namespace fastssl::similarity
