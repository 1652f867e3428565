// Blocks of rows, and the orders in which pairs of blocks are visited so that threads never write the same block.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace fastssl {

// `count` blocks that split `size` rows as evenly as whole rows allow.
struct Blocks {
  int64_t size, count;
  int64_t start(int64_t b) const { return b * size / count; }
  int length(int64_t b) const { return int(start(b + 1) - start(b)); }
  int longest() const { return int((size + count - 1) / count); }
};

// Runs rounds x width tasks; task (r, k) uses the two slots pair(r, k), and in each round every slot that occurs occurs once.
// visit(a, b) may add to what belongs to slots a and b without locks or copies: a task waits until both slots have finished
// their tasks of the rounds before, so each slot's sums are formed in the order of the rounds whatever the number of threads.
// There is no barrier: threads claim tasks in order, so the oldest unfinished task can always go on.
template <class Pair, class Visit>
void in_rounds(int64_t rounds, int64_t width, int64_t slots, const Pair& pair, const Visit& visit) {
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> finished(slots);
  for (auto& slot : finished) slot.store(0, std::memory_order_relaxed);
  auto wait = [&](int64_t slot, int64_t round) {
    for (int spins = 0; finished[slot].load(std::memory_order_acquire) < round; spins++)
      if (spins > 1000) std::this_thread::yield();
  };
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), width);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < rounds * width;) {
      const int64_t round = t / width;
      const auto [a, b] = pair(round, t % width);
      wait(a, round), wait(b, round);
      visit(a, b);
      finished[a].store(round + 1, std::memory_order_release);
      finished[b].store(round + 1, std::memory_order_release);
    }
  });
}

// Every unordered pair {I, J} of blocks once, I <= J and I = J included, as the rounds of a tournament (circle method).
template <class Visit>
void tournament(int64_t count, const Visit& visit) {
  const int64_t players = count + count % 2, circle = players - 1;  // with an odd count the block that rests meets itself
  auto meet = [=](int64_t r, int64_t k) {
    int64_t a = k == 0 ? circle : (r + k) % circle, b = (r - k + circle) % circle;
    if (a == count) a = b;
    return std::pair{std::min(a, b), std::max(a, b)};
  };
  in_rounds(circle, players / 2, count, meet, visit);
  if (count % 2 == 0) in_rounds(1, count, count, [](int64_t, int64_t k) { return std::pair{k, k}; }, visit);
}

// Every pair (I, J) of `count` row groups and `count` column groups once, as the rounds of a Latin square.
template <class Visit>
void latin_square(int64_t count, const Visit& visit) {
  auto cell = [=](int64_t r, int64_t k) { return std::pair{k, count + (k + r) % count}; };
  in_rounds(count, count, 2 * count, cell, [&](int64_t I, int64_t J) { visit(I, J - count); });
}

}  // namespace fastssl
