// Rows of a new tensor. Where a call moves more than the caches hold, they go past them: the lines that are overwritten are not
// read first, and what the caches hold stays there.
#pragma once
#include <vector>

#include "cpu/tokens.h"

namespace fastssl {

// A call that reads and writes so many bytes or more, taken together, writes past the caches. What a smaller call writes stays in
// them for whoever reads it next.
constexpr int64_t kPastCaches = 12 << 20;

// A row is asked for so many results before the one that it goes to, where some results are made without a row.
constexpr int64_t kAhead = 4;

// Asks for a row that is read soon.
inline void prefetch(Array from, int64_t i, int64_t n) {
  const char* row = static_cast<const char*>(from.data) + i * bytes_of(from.dtype);
  for (int64_t byte = 0; byte < n * bytes_of(from.dtype); byte += 64) __builtin_prefetch(row + byte, 0, 2);
}

// The rows of one thread, which must be gone before another thread reads them.
template <class T>
class NewRows {
 public:
  // The rows of `out`, which are made from `bytes_read` bytes of other tensors.
  NewRows(const Tensor& out, int64_t bytes_read)
      : rows_(token_rows<T>()),
        to_(array_of(out)),
        past_(rows_.past_caches && int64_t(bytes_of(out)) + bytes_read >= kPastCaches) {}
  ~NewRows() {
    if (past_) rows_.settle();
  }
  NewRows(const NewRows&) = delete;

  // Elements j .. j + n <- those of `from` from i on
  void copy(Array from, int64_t i, int64_t j, int64_t n) {
    if (!past_) return rows_.copy(from, i, to_, j, n);
    if (from.dtype == to_.dtype) return send(static_cast<const char*>(from.data) + i * bytes_of(from.dtype), j, n);
    rows_.copy(from, i, made(n), 0, n);
    send(made_.data(), j, n);
  }
  // Elements j .. j + n <- a + b
  void add(Array a, int64_t i, Array b, int64_t k, int64_t j, int64_t n) {
    if (!past_) return rows_.add(a, i, b, k, to_, j, n);
    if (rows_.add_past_caches(a, i, b, k, to_, j, n)) return;
    rows_.add(a, i, b, k, made(n), 0, n);
    send(made_.data(), j, n);
  }
  void clear(int64_t j, int64_t n) {
    if (!past_) return fastssl::clear(to_, j, n);
    if (zeros_.size() < size_t(n * bytes_of(to_.dtype))) zeros_.resize(n * bytes_of(to_.dtype));
    send(zeros_.data(), j, n);
  }

 private:
  Array made(int64_t n) {
    if (made_.size() < size_t(n * bytes_of(to_.dtype))) made_.resize(n * bytes_of(to_.dtype));
    return {made_.data(), to_.dtype};
  }
  void send(const char* from, int64_t j, int64_t n) {
    const int64_t size = bytes_of(to_.dtype);
    rows_.past_caches(from, static_cast<char*>(to_.data) + j * size, n * size);
  }

  const TokenRows<T>& rows_;
  Array to_;
  bool past_;
  std::vector<char> made_, zeros_;
};

}  // namespace fastssl
