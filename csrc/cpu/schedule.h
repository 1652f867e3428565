// Blocks of rows, and the orders in which pairs of blocks are visited so that threads never write the same block.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace fastssl {

// `count` blocks that split `size` rows as evenly as whole rows allow.
struct Blocks {
  int64_t size, count;
  int64_t start(int64_t b) const { return b * size / count; }
  int length(int64_t b) const { return int(start(b + 1) - start(b)); }
  int longest() const { return int((size + count - 1) / count); }
};

// Every unordered pair of blocks once, {I, I} included, in rounds of a tournament (circle method): within a round no block
// occurs twice, so visit(I, J) may add to the rows of I and of J without locks or copies, and each block's sums are formed
// in the order of the rounds, whatever the number of threads.
template <class Visit>
void tournament(int64_t count, const Visit& visit) {
  const int64_t players = count + count % 2, rounds = players - 1;  // with an odd count one block rests: it meets itself
  auto parallel = [](int64_t tasks, const auto& task) {
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) task(t);
    });
  };
  for (int64_t r = 0; r < rounds; r++)
    parallel(players / 2, [&](int64_t k) {
      int64_t a = k == 0 ? players - 1 : (r + k) % rounds, b = (r - k + rounds) % rounds;
      if (a == count) a = b;
      visit(std::min(a, b), std::max(a, b));
    });
  if (count % 2 == 0) parallel(count, [&](int64_t b) { visit(b, b); });
}

// Every pair (I, J) of `count` row groups and `count` column groups once, in rounds of a Latin square: within a round neither
// a row group nor a column group occurs twice.
template <class Visit>
void latin_square(int64_t count, const Visit& visit) {
  for (int64_t r = 0; r < count; r++)
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) visit(i, (i + r) % count);
    });
}

}  // namespace fastssl
