// The k rows that are most similar to each row, among the `size` consecutive rows of its group.          rows (N, D), N D size FLOP
// A tile of similarities is multiplied by torch's BLAS and looked through while it is in the cache: by rows, and by columns where
// it lies below the diagonal, since s_ij = s_ji serves both rows. Only tiles of one triangle are made. A more similar row comes
// first, and of equally similar ones that with the smaller place. The result is thus the same in whatever order the threads take
// the tiles.
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>

#include "cpu/gemm.h"
#include "cpu/neighbour_rows.h"
#include "cpu/tokens.h"

namespace fastssl::nearest {
namespace {

constexpr int kRows = 64;           // of a tile, and of what one lock protects
constexpr int64_t kColumns = 1024;  // of a tile at most: 256 KB of floats

// Rows i0 .. i0 + m meet rows j0 .. j0 + n, j0 + n <= i0 + m, of their group.
struct Tile {
  int64_t i0, j0;
  int m, n;
};

// All tiles, the widest of a group first. `rows` divides kRows, so that the rows of a tile share one lock.
std::vector<Tile> tiles_of(int64_t N, int64_t size, int64_t rows, int64_t columns) {
  std::vector<Tile> tiles;
  for (int64_t start = 0; start < N; start += size)
    for (int64_t strip = (size - 1) / rows; strip >= 0; strip--) {
      const int64_t first = strip * rows, end = std::min(first + rows, size);
      for (int64_t j = 0; j < end; j += columns)
        tiles.push_back({start + first, start + j, int(end - first), int(std::min(columns, end - j))});
    }
  return tiles;
}

// Narrower tiles where there would be fewer of them than two for each thread.
std::vector<Tile> enough_tiles(int64_t N, int64_t size, int64_t threads) {
  int64_t rows = kRows, columns = kColumns;
  std::vector<Tile> tiles = tiles_of(N, size, rows, columns);
  while (threads > 1 && int64_t(tiles.size()) < 2 * threads && rows > 16) {
    columns > 4 * kRows ? columns /= 2 : rows /= 2;
    tiles = tiles_of(N, size, rows, columns);
  }
  return tiles;
}

template <class T>
class Nearest {
 public:
  Nearest(const Tensor& rows, int64_t count, int64_t size, int64_t* ids)
      : x_(rows.const_data_ptr<T>()),
        N_(rows.size(0)),
        D_(rows.size(1)),
        count_(count),
        size_(size),
        id_(ids),
        value_(N_ * count, -std::numeric_limits<T>::infinity()),
        odd_(N_, 0),
        blocks_((size + kRows - 1) / kRows),
        locks_(N_ / size * blocks_) {
    std::fill_n(ids, N_ * count, N_);
  }

  void find() {
    const int64_t threads = N_ * size_ * D_ < 16 * kGrain ? 1 : thread_count();
    const std::vector<Tile> tiles = enough_tiles(N_, size_, threads);
    std::atomic<size_t> next{0};
    parallel_tasks(std::min<int64_t>(threads, int64_t(tiles.size())), [&](int64_t, int64_t) {
      const SerialProducts serial;
      std::vector<T> S(kRows * std::min(kColumns, size_)), largest(std::max<int64_t>(kRows, std::min(kColumns, size_)));
      for (size_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tiles.size();) look(tiles[t], S.data(), largest.data());
    });
    for (int64_t start = 0; start < N_; start += size_) replace_odd(start);
  }

 private:
  void look(const Tile& t, T* S, T* largest) {
    const auto& f = neighbour_rows<T>();
    const int ld = t.n;
    row_products(x_ + t.i0 * D_, t.m, x_ + t.j0 * D_, t.n, int(D_), S);
    for (int i = 0; i < t.m; i++) {  // the diagonal, where the tile has it
      const int64_t j = t.i0 + i - t.j0;
      if (j >= t.n) break;
      T& itself = S[i * int64_t(ld) + j];
      if (!std::isfinite(itself)) odd_[t.i0 + i] = 1;
      itself = -std::numeric_limits<T>::infinity();
    }
    f.row_maxima(S, t.m, t.n, ld, largest);
    {
      const std::lock_guard<std::mutex> guard(lock_of(t.i0));
      for (int i = 0; i < t.m; i++) offer(t.i0 + i, largest[i], t.j0, S + i * int64_t(ld), t.n, 1);
    }
    const int before = int(std::min<int64_t>(t.n, t.i0 - t.j0));  // columns that are not rows of this strip
    f.column_maxima(S, t.m, before, ld, largest);
    for (int j = 0; j < before;) {
      const int64_t first = t.j0 + j, left = kRows - (first % size_) % kRows;
      const int end = int(std::min<int64_t>(before, j + left));
      const std::lock_guard<std::mutex> guard(lock_of(first));
      for (; j < end; j++) offer(t.j0 + j, largest[j], t.i0, S + j, t.m, ld);
    }
  }

  // Row r meets the `n` rows from `first` on; `largest` is the largest of their similarities s[0], s[step], ...
  void offer(int64_t r, T largest, int64_t first, const T* s, int n, int64_t step) {
    const T& worst = value_[r * count_ + count_ - 1];
    if (!(largest >= worst)) return;
    for (int j = 0; j < n; j++) {
      const T v = s[j * step];
      if (!(v >= worst)) continue;
      if (count_ > 1) {
        insert(r, v, first + j);
      } else if (v == largest) {
        insert(r, v, first + j);
        return;
      }
    }
  }

  void insert(int64_t r, T v, int64_t place) {
    T* value = value_.data() + r * count_;
    int64_t *id = id_ + r * count_, t = count_;
    for (; t > 0 && (v > value[t - 1] || (v == value[t - 1] && place < id[t - 1])); t--)
      if (t < count_) value[t] = value[t - 1], id[t] = id[t - 1];
    if (t < count_) value[t] = v, id[t] = place;
  }

  // A row that is not finite counts as the most similar one of its group, so that the losses of all of the group show it.
  void replace_odd(int64_t start) {
    const auto begin = odd_.begin() + start, found = std::find(begin, begin + size_, 1);
    if (found == begin + size_) return;
    for (int64_t r = 0; r < size_; r++)
      for (int64_t t = 0, j = found - begin; t < count_; j = (j + 1) % size_)
        if (j != r) id_[(start + r) * count_ + t++] = start + j;
  }

  std::mutex& lock_of(int64_t row) { return locks_[row / size_ * blocks_ + row % size_ / kRows]; }

  const T* x_;
  int64_t N_, D_, count_, size_;
  int64_t* id_;  // (N, count), sorted by value_
  std::vector<T> value_;
  std::vector<char> odd_;
  int64_t blocks_;
  std::vector<std::mutex> locks_;
};

Tensor nearest_in_groups(const Tensor& rows_given, int64_t count, int64_t size) {
  const Tensor rows = as_contiguous(rows_given);
  FASTSSL_CHECK(rows.dim() == 2 && count > 0 && size > count && rows.size(0) % size == 0,
                "nearest_in_groups: expected rows in groups of more than ", count, ", got ", rows.sizes(), " in groups of ", size);
  Tensor ids = empty({rows.size(0), count}, ScalarType::Long);
  with_accumulator(rows.scalar_type(), [&]<class T>(T) { Nearest<T>(rows, count, size, ids.mutable_data_ptr<int64_t>()).find(); });
  return ids;
}

}  // namespace
}  // namespace fastssl::nearest

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) { m.impl("nearest_in_groups", TORCH_BOX(&fastssl::nearest::nearest_in_groups)); }
