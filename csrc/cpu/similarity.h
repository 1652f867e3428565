// What the schedules of the similarity log-sum-exp share: the problem, the ranges of its ids, buffers, and tiles of logits.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/tile_rows.h"
#include "cpu/schedule.h"
#include "cpu/unlucky.h"

namespace fastssl::similarity {

constexpr int kPad = 16;  // floats of the widest vector; leading dimensions and column buffers are multiples of it
constexpr double kLog2e = 1.4426950408889634;

inline int padded(int64_t n) { return int((n + kPad - 1) / kPad * kPad); }

// Rows of one side: x (N, D) or y (M, D), with what belongs to each row.
template <class T>
struct Side {
  const T* data;
  int64_t rows;
  int ld;
  std::vector<int32_t> id;  // empty if nothing is excluded
  std::vector<T> bias;      // empty if there is none
  std::vector<T> weight;    // e^bias, padded; ones without bias
  bool transposed = false;  // stored (D, rows), with `ld` elements from one dimension to the next; only y may be

  const T* row(int64_t i) const { return data + (transposed ? i : i * ld); }
  Op as_rows() const { return transposed ? Op::kTransposed : Op::kPlain; }  // with it, gemm reads what is stored as (rows, D)
  Op as_columns() const { return transposed ? Op::kPlain : Op::kTransposed; }
};

template <class T>
struct Problem {
  Side<T> x, y;
  bool symmetric;  // y is x
  int D;
  double scale;
  bool bounded = false;            // |scale| max|x| max|y| + max|bias| <= kBound is proved, in nats
  bool backward = false;           // the logits of a forward are computed again
  std::array<at::Tensor, 2> keep;  // the tensors to which the rows belong
};

template <class T>
T lse_of(T top, T sum) {
  return sum > 0 || std::isnan(sum) ? top + std::log(sum) : -std::numeric_limits<T>::infinity();
}

// The smallest and the largest id of each block. Blocks whose ranges are disjoint need no comparison of ids.
struct IdRange {
  std::vector<std::pair<int32_t, int32_t>> range;
  IdRange(const std::vector<int32_t>& id, const Blocks& blocks, int64_t first = 0) {
    if (id.empty()) return;
    for (int64_t b = 0; b < blocks.count; b++) {
      auto [lo, hi] = std::minmax_element(id.begin() + first + blocks.start(b), id.begin() + first + blocks.start(b + 1));
      range.emplace_back(*lo, *hi);
    }
  }
  bool meets(int64_t b, const IdRange& other, int64_t c) const {
    return !range.empty() && range[b].first <= other.range[c].second && other.range[c].first <= range[b].second;
  }
};

// What the forward gives to the backward for each row, or each column: its (maximum, sum, place of the maximum). As two numbers,
// maximum and sum are as exact at logits of 1e8 as at 1; joined into an lse in float32, they would put the weights off by |lse|
// 2^-24. Bounded problems take no maximum: top is 0 and peak is -1.
template <class T>
struct State : Running<T> {
  void clear(const Problem<T>& p, int64_t count) const {
    std::fill_n(this->top, count, p.bounded ? T(0) : -std::numeric_limits<T>::infinity());
    std::fill_n(this->sum, count, T(0));
    std::fill_n(this->peak, count, -1);
  }
  void to_lse(int64_t count, T* lse) const {
    for (int64_t i = 0; i < count; i++) lse[i] = lse_of(this->top[i], this->sum[i]);
  }
  Running<T> from(int64_t i) const { return {this->top + i, this->sum + i, this->peak + i}; }
};

// A State with memory of its own, which lives for one sweep only.
template <class T>
struct OwnState {
  std::vector<T> top, sum;
  std::vector<int32_t> peak;
  explicit OwnState(int64_t count) : top(count), sum(count), peak(count) {}
  State<T> state() { return {{top.data(), sum.data(), peak.data()}}; }
};

// Uninitialised memory that begins with a cache line, because the addresses of the operands may decide how a BLAS splits a product,
// and so how it rounds.
constexpr std::align_val_t kLine{64};
struct DeleteAligned {
  void operator()(void* p) const { ::operator delete[](p, kLine); }
};
template <class T>
using AlignedArray = std::unique_ptr<T[], DeleteAligned>;
template <class T>
AlignedArray<T> new_aligned(size_t count) {
  return AlignedArray<T>(static_cast<T*>(::operator new[](count * sizeof(T), kLine)));
}

// Every thread's buffers, allocated once for a whole sweep: a tile, kVectors padded column vectors and a row vector.
template <class T>
class Workspace {
 public:
  static constexpr int kVectors = 2;
  Workspace(int tile_rows, int tile_columns)
      : ld_(padded(tile_columns)),
        stride_(int64_t(tile_rows) * ld_ + kVectors * ld_ + padded(tile_rows)),
        rows_(tile_rows),
        data_(new_aligned<T>(size_t(at::get_num_threads()) * stride_)),
        peaks_(new int32_t[size_t(at::get_num_threads()) * ld_]) {}
  int ld() const { return ld_; }
  T* tile() { return data_.get() + at::get_thread_num() * stride_; }
  T* column(int k) { return tile() + int64_t(rows_) * ld_ + int64_t(k) * ld_; }
  T* row() { return column(kVectors); }

  // take_columns copies the state of the n columns from j0 on into a buffer that is padded to `wide`; put_columns copies it back.
  Running<T> take_columns(const State<T>& state, int64_t j0, int n, int wide) {
    const Running<T> copy{column(0), column(1), peaks_.get() + int64_t(at::get_thread_num()) * ld_};
    std::copy_n(state.top + j0, n, copy.top), std::fill(copy.top + n, copy.top + wide, -std::numeric_limits<T>::infinity());
    std::copy_n(state.sum + j0, n, copy.sum), std::fill(copy.sum + n, copy.sum + wide, T(0));
    std::copy_n(state.peak + j0, n, copy.peak), std::fill(copy.peak + n, copy.peak + wide, -1);
    return copy;
  }
  static void put_columns(const Running<T>& copy, int n, const State<T>& state, int64_t j0) {
    std::copy_n(copy.top, n, state.top + j0), std::copy_n(copy.sum, n, state.sum + j0);
    std::copy_n(copy.peak, n, state.peak + j0);
  }

 private:
  int ld_;
  int64_t stride_, rows_;
  AlignedArray<T> data_;
  std::unique_ptr<int32_t[]> peaks_;
};

// Pads m rows of n columns with -inf up to the next multiple of the vector width, and returns that multiple.
template <class T>
int pad(T* S, int m, int n, int ld) {
  const int width = rows<T>().width, wide = (n + width - 1) / width * width;
  if (wide > n)
    for (int i = 0; i < m; i++) std::fill(S + int64_t(i) * ld + n, S + int64_t(i) * ld + wide, -std::numeric_limits<T>::infinity());
  return wide;
}

// S = scale x_I y_J^T, in base 2 if bounded, for m rows from i0 and n columns from j0; excluded entries and the padding are -inf.
// `y` points to y_J, or to a copy of it in the same layout. Returns the padded n.
template <class T>
int logits(const Problem<T>& p, int64_t i0, int m, int64_t j0, int n, bool ids_meet, T* S, int ld, const T* y, int y_ld) {
  const T* x = p.x.row(i0);
  const T scale = T(p.bounded ? p.scale * kLog2e : p.scale);
  gemm(Op::kPlain, p.y.as_columns(), m, n, p.D, scale == T(0) ? T(1) : scale, x, p.x.ld, y, y_ld, T(0), S, ld);
  if (scale == T(0))  // with a factor of 0 a BLAS does not read the rows, of which one may hold a NaN
    for (int i = 0; i < m; i++)
      for (int j = 0; j < n; j++) S[int64_t(i) * ld + j] *= scale;
  if (unlucky_products) {
    const bool t = p.y.transposed;
    move_logits<T>(x, p.x.ld, 1, y, t ? 1 : y_ld, t ? y_ld : 1, m, n, p.D, p.backward, S, ld);
  }
  const int wide = pad(S, m, n, ld);
  if (ids_meet) rows<T>().exclude(S, m, wide, ld, p.x.id.data() + i0, p.y.id.data() + j0);
  return wide;
}
template <class T>
int logits(const Problem<T>& p, int64_t i0, int m, int64_t j0, int n, bool ids_meet, T* S, int ld) {
  return logits(p, i0, m, j0, n, ids_meet, S, ld, p.y.row(j0), p.y.ld);
}

// Copies the entries above the diagonal of a square tile (m, m) to their places below it, S_ji = S_ij. It takes 16 x 16 entries at
// a time, so that both blocks stay in the first-level cache.
template <class T>
void mirror(T* S, int m, int ld) {
  constexpr int kBlock = 16;
  for (int a = 0; a < m; a += kBlock)
    for (int b = a; b < m; b += kBlock)
      for (int j = b; j < std::min(b + kBlock, m); j++)
        for (int i = a; i < std::min(a + kBlock, j); i++) S[int64_t(j) * ld + i] = S[int64_t(i) * ld + j];
}

// own_I += factor W y_J unless own is null, and other_J += factor W^T x_I unless other is null, for a tile of weights W.
template <class T>
void add_products(const Problem<T>& p, const T* W, int ld, int64_t i0, int m, int64_t j0, int n, T factor, T* own, T* other) {
  if (own) gemm(Op::kPlain, Op::kPlain, m, p.D, n, factor, W, ld, p.y.row(j0), p.y.ld, T(1), own + i0 * p.D, p.D);
  if (other) gemm(Op::kTransposed, Op::kPlain, n, p.D, m, factor, W, ld, p.x.row(i0), p.x.ld, T(1), other + j0 * p.D, p.D);
}

constexpr int kTile = 256;  // rows and columns of a tile: 256 KB of floats, inside an L2 of 512 KB or more
constexpr int kLeast = 64;  // with fewer rows in a block, a matrix product is mostly overhead

// A number of tasks that keeps every thread busy while one of them is late.
inline int64_t enough_tasks() { return 2 * at::get_num_threads(); }

// Blocks of at most kTile rows. There are at least `least_count` of them, unless they would then have fewer than kLeast rows.
inline Blocks blocks_of(int64_t rows, int64_t least_count) {
  const int64_t wanted = std::max((rows + kTile - 1) / kTile, std::min(least_count, rows / kLeast));
  return {rows, std::max<int64_t>(1, wanted)};
}

// Rows and columns of a tile in the Latin-square order. At a large D tiles are twice as large, since a sweep then reads and writes
// the wide rows of the gradients half as often.
template <class T>
int latin_tile(const Problem<T>& p) {
  return p.D >= 256 ? 2 * kTile : kTile;
}

// Visits the pairs of `groups` row groups and `groups` column groups in the order of a Latin square, each pair in tiles:
// visit(first row, rows, first column, columns, whether equal ids may occur). visit may add to sums of its rows and columns.
template <class T, class Visit>
void latin_tiles(const Problem<T>& p, int64_t groups, const Visit& visit) {
  const Blocks row_groups{p.x.rows, groups}, column_groups{p.y.rows, groups};
  const int tile = latin_tile(p);
  auto split = [](int64_t rows, int most) { return Blocks{rows, (rows + most - 1) / most}; };
  in_order(latin_square(groups), 2 * groups, [&](int64_t I, int64_t column_slot) {
    const int64_t J = column_slot - groups, first_row = row_groups.start(I), last_row = row_groups.start(I + 1);
    const int64_t first_column = column_groups.start(J), last_column = column_groups.start(J + 1);
    const Blocks row_tiles = split(last_row - first_row, tile), column_tiles = split(last_column - first_column, tile);
    const IdRange x_ids(p.x.id, row_tiles, first_row), y_ids(p.y.id, column_tiles, first_column);
    for (int64_t a = 0; a < row_tiles.count; a++)
      for (int64_t b = 0; b < column_tiles.count; b++)
        visit(first_row + row_tiles.start(a), row_tiles.length(a), first_column + column_tiles.start(b), column_tiles.length(b),
              x_ids.meets(a, y_ids, b));
  });
}

template <class T>
Workspace<T> latin_workspace(const Problem<T>& p) {
  const int64_t tile = latin_tile(p);
  return {int(std::min(tile, p.x.rows)), int(std::min(tile, p.y.rows))};
}

// Just as many groups of each side as keep the threads busy, since rows stay in the cache within a pair of groups.
template <class T>
int64_t latin_groups(const Problem<T>& p) {
  return std::max<int64_t>(1, std::min(enough_tasks(), std::min(p.x.rows, p.y.rows) / kLeast));
}

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
// gave it. A product of another shape, or by another BLAS, may give a logit other last bits, which at logits of 1e8 change its
// exponential by factors up to e^(+-32). The weight of a logit that dominates its row is 1, and would then be anything. With the
// forward's value it is 1 again; other weights are as inexact as in eager PyTorch.
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

// rank_i is the number of logits above threshold_i. Both pointers are null where nothing is counted.
template <class T>
struct Ranking {
  const T* threshold = nullptr;
  int32_t* rank = nullptr;
};

template <class T>
void forward(const Problem<T>& p, const Ranking<T>& ranking, const State<T>& state, T* lse);
template <class T>
void one_pass(const Problem<T>& p, const Ranking<T>& ranking, T* lse, T* mean);

// Accumulators of the gradients, which begin at zero, or null where not wanted: own (N, D) = factor g_i sum_j p_ij y_j;
// other (M, D) = factor sum_i g_i p_ij x_i; dbias (M,) = sum_i g_i p_ij. In a symmetric problem own takes the sums of both.
template <class T>
struct Gradients {
  T *own, *other, *dbias;
  T factor;
};
template <class T>
void backward(const Problem<T>& p, const State<T>& state, const T* g, const Gradients<T>& out);

}  // namespace fastssl::similarity
