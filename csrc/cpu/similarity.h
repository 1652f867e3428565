// What the schedules of the similarity log-sum-exp share: the problem, ids made comparable in 32 bits, tiles of logits.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/schedule.h"

namespace fastssl::similarity {

constexpr int kPad = 16;  // widest vector, in floats: leading dimensions and column buffers are multiples of it
constexpr double kLog2e = 1.4426950408889634;

inline int padded(int64_t n) { return int((n + kPad - 1) / kPad * kPad); }

// Rows of one side: x (N, D) or y (M, D), with what belongs to each row.
template <class T>
struct Side {
  const T* data;
  int64_t rows;
  int ld;
  std::vector<int32_t> id;  // empty: nothing is excluded
  std::vector<T> bias;      // empty: none
  std::vector<T> weight;    // e^bias, padded; ones without bias
  bool transposed = false;  // stored (D, rows): `ld` elements from one dimension to the next; only ever true of y

  const T* row(int64_t i) const { return data + (transposed ? i : i * ld); }
  Op as_rows() const { return transposed ? Op::kTransposed : Op::kPlain; }  // op that makes (rows, D) of what is stored
  Op as_columns() const { return transposed ? Op::kPlain : Op::kTransposed; }
};

template <class T>
struct Problem {
  Side<T> x, y;
  bool symmetric;  // y is x
  int D;
  double scale;
  bool bounded;                    // |scale| max|x| max|y| + max|bias| <= 40 is proved, in nats
  std::array<at::Tensor, 2> keep;  // own the rows
};

// Smallest and largest id of each block: blocks whose ranges are disjoint need no comparison of ids.
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

// One thread's buffers, allocated once for a whole sweep: a tile and some padded column vectors.
template <class T>
class Workspace {
 public:
  static constexpr int kVectors = 2;
  Workspace(int tile_rows, int tile_columns)
      : ld_(padded(tile_columns)),
        stride_(int64_t(tile_rows) * ld_ + kVectors * (ld_ + tile_rows)),
        rows_(tile_rows),
        data_(new T[size_t(at::get_num_threads()) * stride_]) {}
  int ld() const { return ld_; }
  T* tile() { return data_.get() + at::get_thread_num() * stride_; }
  T* column(int k) { return tile() + int64_t(rows_) * ld_ + int64_t(k) * ld_; }
  T* row(int k) { return tile() + int64_t(rows_) * ld_ + int64_t(kVectors) * ld_ + int64_t(k) * rows_; }

 private:
  int ld_;
  int64_t stride_, rows_;
  std::unique_ptr<T[]> data_;
};

// Fills n columns of m rows up to the next multiple of the vector width with -inf; returns that multiple.
template <class T>
int pad(T* S, int m, int n, int ld) {
  const int width = rows<T>().width, wide = (n + width - 1) / width * width;
  if (wide > n)
    for (int i = 0; i < m; i++) std::fill(S + int64_t(i) * ld + n, S + int64_t(i) * ld + wide, -std::numeric_limits<T>::infinity());
  return wide;
}

// S = scale x_I y_J^T, in base 2 if bounded, for m rows from i0 and n columns from j0, excluded entries and the padding at -inf.
// y_J, as stored, may lie in a copy. Returns the padded n.
template <class T>
int logits(const Problem<T>& p, int64_t i0, int m, int64_t j0, int n, bool ids_meet, T* S, int ld, const T* y, int y_ld) {
  gemm(Op::kPlain, p.y.as_columns(), m, n, p.D, T(p.bounded ? p.scale * kLog2e : p.scale), p.x.row(i0), p.x.ld, y, y_ld, T(0), S,
       ld);
  const int wide = pad(S, m, n, ld);
  if (ids_meet) rows<T>().exclude(S, m, wide, ld, p.x.id.data() + i0, p.y.id.data() + j0);
  return wide;
}
template <class T>
int logits(const Problem<T>& p, int64_t i0, int m, int64_t j0, int n, bool ids_meet, T* S, int ld) {
  return logits(p, i0, m, j0, n, ids_meet, S, ld, p.y.row(j0), p.y.ld);
}

// own_I += factor W y_J and other_J += factor W^T x_I for a tile of weights W, each unless null.
template <class T>
void add_products(const Problem<T>& p, const T* W, int ld, int64_t i0, int m, int64_t j0, int n, T factor, T* own, T* other) {
  if (own) gemm(Op::kPlain, Op::kPlain, m, p.D, n, factor, W, ld, p.y.row(j0), p.y.ld, T(1), own + i0 * p.D, p.D);
  if (other) gemm(Op::kTransposed, Op::kPlain, n, p.D, m, factor, W, ld, p.x.row(i0), p.x.ld, T(1), other + j0 * p.D, p.D);
}

constexpr int kTile = 256;  // rows and columns of a tile: 256 KB of floats, inside an L2 of 512 KB or more
constexpr int kLeast = 64;  // rows of a block below which a matrix product is mostly overhead

// As many tasks at a time as keep every thread busy while one is late.
inline int64_t enough_tasks() { return 2 * at::get_num_threads(); }

// Blocks of at most kTile rows; at least `least_count` of them as long as they keep kLeast rows.
inline Blocks blocks_of(int64_t rows, int64_t least_count) {
  const int64_t wanted = std::max((rows + kTile - 1) / kTile, std::min(least_count, rows / kLeast));
  return {rows, std::max<int64_t>(1, wanted)};
}

// Rows and columns of a tile of the Latin schedules: wide rows of the gradients are passed over half as often by larger ones.
template <class T>
int latin_tile(const Problem<T>& p) {
  return p.D >= 256 ? 2 * kTile : kTile;
}

// The pairs of `groups` row groups and `groups` column groups in the order of a Latin square, each pair in tiles:
// visit(first row, rows, first column, columns, whether ids may meet). What belongs to the rows or columns may be added to.
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

// As many groups of both sides as feed the threads and no more: within a pair of groups, rows stay in the cache.
template <class T>
int64_t latin_groups(const Problem<T>& p) {
  return std::max<int64_t>(1, std::min(enough_tasks(), std::min(p.x.rows, p.y.rows) / kLeast));
}

template <class T>
T lse_of(T top, T sum) {
  return sum > 0 || std::isnan(sum) ? top + std::log(sum) : -std::numeric_limits<T>::infinity();
}

// What the weights of a tile need of each row (or column), in the form of the bounded or of the online functions.
template <class T>
struct RowState {
  std::vector<T> u, lse;  // padded
  RowState(const Problem<T>& p, int64_t count, const T* given_lse, const T* g) : u(count + kPad), lse(count + kPad) {
    const T kInf = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < count; i++) {
      const bool empty = given_lse[i] == -kInf;  // everything excluded: weight 0
      lse[i] = empty ? kInf : given_lse[i];
      u[i] = empty ? T(0) : p.bounded ? g[i] * std::exp(-lse[i]) : g[i];
    }
  }
};

// rank_i = number of logits above threshold_i, both null where nothing is counted.
template <class T>
struct Ranking {
  const T* threshold = nullptr;
  int32_t* rank = nullptr;
};

template <class T>
void forward(const Problem<T>& p, const Ranking<T>& ranking, T* lse);
template <class T>
void one_pass(const Problem<T>& p, const Ranking<T>& ranking, T* lse, T* mean);

// Zeroed accumulators of the gradients, null if not wanted: own (N, D) = factor g_i sum_j p_ij y_j;
// other (M, D) = factor sum_i g_i p_ij x_i; dbias (M,) = sum_i g_i p_ij. Symmetric: own takes both sums.
template <class T>
struct Gradients {
  T *own, *other, *dbias;
  T factor;
};
template <class T>
void backward(const Problem<T>& p, const T* lse, const T* g, const Gradients<T>& out);

}  // namespace fastssl::similarity
