// What the schedules of the similarity log-sum-exp share: the problem, the ranges of its ids, buffers, and tiles of logits.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "cpu/new_tensor.h"
#include "cpu/products.h"
#include "cpu/schedule.h"
#include "cpu/tile_rows.h"
#include "cpu/unlucky.h"

namespace fastssl::similarity {

constexpr int kPad = 16;  // floats of the widest vector; leading dimensions and column buffers are multiples of it
constexpr double kLog2e = 1.4426950408889634;

inline int padded(int64_t n) { return int((n + kPad - 1) / kPad * kPad); }

// Rows of one side in memory: element d of row i is element i row + d entry of the array, and one of the two distances is 1.
struct StoredRows {
  Array array;
  int64_t rows, row, entry;
  // Rows i0, ... as the columns of a right operand (D, n), or as the rows of one (n, D).
  Right as_columns(int64_t i0) const { return {array, i0 * row, entry, row}; }
  Right as_rows(int64_t i0) const { return {array, i0 * row, row, entry}; }
};

// One side of the problem, x (N, D) or y (M, D), with what belongs to each row.
template <class E>
struct Side {
  using T = Sum<E>;
  StoredRows stored;
  std::vector<int32_t> id;  // empty if nothing is excluded
  std::vector<T> bias;      // empty if there is none
  std::vector<T> weight;    // e^bias, padded; ones without bias

  int64_t rows() const { return stored.rows; }
  // Rows i0, ... as a left operand. Only x is one: its rows are dense, of type E and even in number of terms.
  Left<E> left(int64_t i0) const { return {static_cast<const E*>(stored.array.data) + i0 * stored.row, stored.row, kTerms<E>}; }
};

// Products take elements E and add up in T.
template <class E>
struct Problem {
  using T = Sum<E>;
  Side<E> x, y;
  bool symmetric;  // y is x
  int D;
  double scale;
  bool bounded = false;        // |scale| max|x| max|y| + max|bias| <= kBound is proved, in nats
  bool backward = false;       // the logits of a forward are computed again
  std::array<Tensor, 2> keep;  // the tensors to which the rows belong
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
  template <class E>
  void clear(const Problem<E>& p, int64_t count) const {
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

// Uninitialised memory that begins with a cache line, so that no register of a row lies in two of them.
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

// A tile of the matrix: m rows from i0 and n columns from j0, and whether equal ids may occur in it.
struct Tile {
  int64_t i0;
  int m;
  int64_t j0;
  int n;
  bool ids_meet;
};

constexpr int kStrip = 16;  // rows of logits that are computed before the next step: 16 KB of floats, which the nearest cache holds

// Every thread's buffers, allocated once for a whole sweep: weights of a tile, two padded column vectors and a row vector.
// A sweep that needs logits only, strip by strip, asks for a tile of kStrip rows. One that multiplies by W alone, or by W^T alone,
// says so: where the weights are rounded, the other form is then not made.
template <class E>
class Workspace {
 public:
  using T = Sum<E>;
  Workspace(int tile_rows, int tile_columns, bool weights = true, bool transposed = true)
      : wanted_{weights, transposed},
        ld_(padded(tile_columns) + kPad),  // rows at a distance of 2^k would meet in few lines of the cache
        rows_(kTerms<E> == 1 ? tile_rows : kStrip),
        stride_(int64_t(rows_ + 2) * ld_ + padded(tile_rows)),
        forms_ld_(std::max(padded(tile_columns), padded(tile_rows + kStrip)) + kPad),
        rounded_(kTerms<E> == 1 ? 0 : int64_t(std::max(padded(tile_rows), padded(tile_columns)) + 1) * forms_ld_),
        data_(new_aligned<T>(size_t(thread_count()) * stride_)),
        forms_(new_aligned<E>(size_t(thread_count()) * 2 * rounded_)),
        peaks_(new int32_t[size_t(thread_count()) * ld_]) {}
  int ld() const { return ld_; }
  T* column(int k) { return mine() + int64_t(rows_ + k) * ld_; }
  T* row() { return column(2); }

  // Where the logits of rows i, ... of the tile go, to be turned into weights; keep() puts these weights away. Single numbers stay
  // there; where pairs are kept elsewhere, or nothing is, each strip takes the place of the one before.
  T* strip(int i) { return mine() + (kTerms<E> == 1 && i < rows_ ? int64_t(i) * ld_ : 0); }
  void keep(int i, int m, int wide) {
    if constexpr (kTerms<E> == 2) {
      E* rows = wanted_[0] ? form(0) + i * forms_ld_ : nullptr;
      E* columns = wanted_[1] ? form(1) + (product_.across ? i : i * forms_ld_) : nullptr;
      product_.round_weights(strip(i), int(ld_), m, wide, rows, columns, forms_ld_);
    }
  }
  // W and W^T of the weights that were kept.
  Left<E> weights() {
    if constexpr (kTerms<E> == 2) return {form(0), forms_ld_, 2};
    else return {mine(), ld_, 1};
  }
  Left<E> transposed() {
    if constexpr (kTerms<E> == 1) return {mine(), 1, ld_};
    else if (product_.across) return {form(1), forms_ld_, 2};
    else return {form(1), 2, 2 * forms_ld_};
  }

  // take_columns copies the state of the n columns from j0 on into a buffer that is padded to `wide`; put_columns copies it back.
  Running<T> take_columns(const State<T>& state, int64_t j0, int n, int wide) {
    const Running<T> copy{column(0), column(1), peaks_.get() + thread_index() * ld_};
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
  T* mine() { return data_.get() + thread_index() * stride_; }
  E* form(int k) { return forms_.get() + (2 * thread_index() + k) * rounded_; }

  const Products<E>& product_ = products<E>();
  std::array<bool, 2> wanted_;
  int64_t ld_, rows_, stride_, forms_ld_, rounded_;
  AlignedArray<T> data_;
  AlignedArray<E> forms_;
  std::unique_ptr<int32_t[]> peaks_;
};

// The next multiple of the vector width.
template <class T>
int in_vectors(int n) {
  const int width = rows<T>().width;
  return (n + width - 1) / width * width;
}

// Pads m rows of n columns with -inf up to that multiple, and returns it.
template <class T>
int pad(T* S, int m, int n, int ld) {
  const int wide = in_vectors<T>(n);
  if (wide > n)
    for (int i = 0; i < m; i++) std::fill(S + int64_t(i) * ld + n, S + int64_t(i) * ld + wide, -std::numeric_limits<T>::infinity());
  return wide;
}

// S = scale x_I y_J^T, in base 2 if bounded, for m rows from i0 and all columns of a tile, of which `columns` is y_J^T, packed.
// Excluded entries and the padding are -inf. Returns the padded n.
template <class E>
int logits(const Problem<E>& p, const Tile& t, int64_t i0, int m, const E* columns, Sum<E>* S, int ld) {
  const auto& product = products<E>();
  product.multiply(p.x.left(i0), columns, m, t.n, p.D, p.bounded ? p.scale * kLog2e : p.scale, false, S, ld);
  if (unlucky_products) move_logits<E>(p.x.left(i0), columns, product.panel, m, t.n, p.D, p.backward, S, ld);
  const int wide = pad(S, m, t.n, ld);
  if (t.ids_meet) rows<Sum<E>>().exclude(S, m, wide, ld, p.x.id.data() + i0, p.y.id.data() + t.j0);
  return wide;
}

// Computes the logits of a tile strip by strip and calls visit(i, m, S, wide) for rows i, ... of each.
template <class E, class Visit>
void for_each_strip(const Problem<E>& p, const Tile& t, const E* columns, Workspace<E>& work, const Visit& visit) {
  for (int i = 0; i < t.m; i += kStrip) {
    const int m = std::min(kStrip, t.m - i);
    Sum<E>* S = work.strip(i);
    visit(i, m, S, logits(p, t, t.i0 + i, m, columns, S, int(work.ld())));
  }
}

// The rows of one side as packed right operands, block by block: as columns (D, n), or as rows (n, D). The sweep fills them, each
// block before the first tile that reads it.
enum class Form { kColumns, kRows };
template <class E>
class Panels {
 public:
  Panels() = default;
  Panels(const StoredRows& side, int D, Form form, const Blocks& blocks) : Panels(side, D, form, blocks.longest(), blocks.count) {}
  // Room for `count` blocks of at most `longest` rows.
  Panels(const StoredRows& side, int D, Form form, int longest, int64_t count)
      : side_(side),
        D_(D),
        form_(form),
        stride_(form == Form::kColumns ? products<E>().size(D, longest) : products<E>().size(longest, D)),
        data_(new_tensor({count * stride_}, kScalarType<E>)) {}
  void fill(int64_t b, const Blocks& blocks) { fill(b, blocks.start(b), blocks.length(b)); }
  void fill(int64_t b, int64_t first, int rows) {
    if (!data_.defined()) return;
    E* to = data_.template mutable_data_ptr<E>() + b * stride_;
    if (form_ == Form::kColumns) products<E>().pack(side_.as_columns(first), D_, rows, to);
    else products<E>().pack(side_.as_rows(first), rows, D_, to);
  }
  const E* of(int64_t b) const { return data_.template const_data_ptr<E>() + b * stride_; }

 private:
  StoredRows side_;
  int D_;
  Form form_;
  int64_t stride_;
  Tensor data_;
};

// own_I += factor W y_J unless own is null, and other_J += factor W^T x_I unless other is null, for the weights of a tile.
template <class E>
void add_products(const Problem<E>& p, Workspace<E>& work, const Tile& t, const E* y_rows, const E* x_rows, Sum<E> factor,
                  Sum<E>* own, Sum<E>* other) {
  if (own) products<E>().multiply(work.weights(), y_rows, t.m, p.D, t.n, factor, true, own + t.i0 * p.D, p.D);
  if (other) products<E>().multiply(work.transposed(), x_rows, t.n, p.D, t.m, factor, true, other + t.j0 * p.D, p.D);
}

constexpr int kTile = 256;  // rows and columns of a tile: 256 KB of floats, inside an L2 of 512 KB or more
constexpr int kLeast = 64;  // rows of a block; smaller ones were no faster

// A number of tasks that keeps every thread busy while one of them is late.
inline int64_t enough_tasks() { return 2 * thread_count(); }

// Blocks of at most kTile rows. There are at least `least_count` of them, unless they would then have fewer than kLeast rows.
inline Blocks blocks_of(int64_t rows, int64_t least_count) {
  const int64_t wanted = std::max((rows + kTile - 1) / kTile, std::min(least_count, rows / kLeast));
  return {rows, std::max<int64_t>(1, wanted)};
}

// Tiles in Latin-square order: pairs of row groups and column groups, each of them cut into tiles.
template <class E>
struct Latin {
  int64_t groups;
  Blocks rows, columns;  // of tiles: as many in each group
  IdRange x_ids, y_ids;

  explicit Latin(const Problem<E>& p)
      : groups(std::max<int64_t>(1, std::min(enough_tasks(), std::min(p.x.rows(), p.y.rows()) / kLeast))),
        rows(cut(p.x.rows())),
        columns(cut(p.y.rows())),
        x_ids(p.x.id, rows),
        y_ids(p.y.id, columns) {}
  Workspace<E> workspace(bool own = true, bool other = true) const { return {rows.longest(), columns.longest(), own, other}; }
  Workspace<E> strips() const { return {kStrip, columns.longest()}; }

  // visit(tile, number of its block of rows, number of its block of columns) may add to sums of its rows and columns. Before, each
  // block of rows goes to pack_rows(b, rows), and each one of columns to pack_columns(b, columns).
  template <class PackRows, class PackColumns, class Visit>
  void run(const PackRows& pack_rows, const PackColumns& pack_columns, const Visit& visit) const {
    const int64_t high = rows.count / groups, wide = columns.count / groups;
    const auto pack = [&](int64_t slot) {
      const int64_t J = slot - groups;
      for (int64_t a = slot * high; J < 0 && a < (slot + 1) * high; a++) pack_rows(a, rows);
      for (int64_t b = J * wide; J >= 0 && b < (J + 1) * wide; b++) pack_columns(b, columns);
    };
    in_order(latin_square(groups), 2 * groups, pack, [&](int64_t I, int64_t slot) {
      const int64_t J = slot - groups;
      for (int64_t a = I * high; a < (I + 1) * high; a++)
        for (int64_t b = J * wide; b < (J + 1) * wide; b++)
          visit(Tile{rows.start(a), rows.length(a), columns.start(b), columns.length(b), x_ids.meets(a, y_ids, b)}, a, b);
    });
  }

 private:
  Blocks cut(int64_t size) const {
    const int64_t group = (size + groups - 1) / groups;
    return {size, groups * ((group + kTile - 1) / kTile)};
  }
};

// The right operands of a two-sided sweep: y_J^T for the logits, y_J and x_I for the gradients that are wanted.
template <class E>
struct Operands {
  using T = Sum<E>;
  Panels<E> columns, y_rows, x_rows;
  Operands(const Problem<E>& p, const Latin<E>& latin, bool own, bool other)
      : columns(p.y.stored, p.D, Form::kColumns, latin.columns) {
    if (own) y_rows = Panels<E>(p.y.stored, p.D, Form::kRows, latin.columns);
    if (other) x_rows = Panels<E>(p.x.stored, p.D, Form::kRows, latin.rows);
  }
  template <class Visit>
  void run(const Latin<E>& latin, const Visit& visit) {
    const auto pack_columns = [&](int64_t b, const Blocks& blocks) { columns.fill(b, blocks), y_rows.fill(b, blocks); };
    latin.run([&](int64_t b, const Blocks& blocks) { x_rows.fill(b, blocks); }, pack_columns, visit);
  }
  // own_I += factor W y_J unless own is null, and other_J += factor W^T x_I unless other is null.
  void add(const Problem<E>& p, Workspace<E>& work, const Tile& t, int64_t I, int64_t J, T factor, T* own, T* other) const {
    add_products(p, work, t, own ? y_rows.of(J) : nullptr, other ? x_rows.of(I) : nullptr, factor, own, other);
  }
};

// rank_i is the number of logits above threshold_i. Both pointers are null where nothing is counted.
template <class T>
struct Ranking {
  const T* threshold = nullptr;
  int32_t* rank = nullptr;
};

template <class E>
void forward(const Problem<E>& p, const Ranking<Sum<E>>& ranking, const State<Sum<E>>& state, Sum<E>* lse);
template <class E>
void one_pass(const Problem<E>& p, const Ranking<Sum<E>>& ranking, Sum<E>* lse, Sum<E>* mean);

// Accumulators of the gradients, which begin at zero, or null where not wanted: own (N, D) = factor g_i sum_j p_ij y_j;
// other (M, D) = factor sum_i g_i p_ij x_i; dbias (M,) = sum_i g_i p_ij. In a symmetric problem own takes the sums of both.
template <class T>
struct Gradients {
  T *own, *other, *dbias;
  T factor;
  bool clear = false;  // own holds anything, and the backward of a symmetric problem clears it
};
template <class E>
void backward(const Problem<E>& p, const State<Sum<E>>& state, const Sum<E>* g, const Gradients<Sum<E>>& out);

}  // namespace fastssl::similarity
