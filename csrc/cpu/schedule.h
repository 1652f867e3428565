// Blocks of rows, and the orders in which pairs of blocks are visited so that threads never write the same block.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/parallel.h"

namespace fastssl {

// `count` blocks that split `size` rows as evenly as whole rows allow.
struct Blocks {
  int64_t size, count;
  int64_t start(int64_t b) const { return b * size / count; }
  int length(int64_t b) const { return int(start(b + 1) - start(b)); }
  int longest() const { return int((size + count - 1) / count); }
};

using Pairs = std::vector<std::pair<int64_t, int64_t>>;

// Calls prepare(s) for every slot and then visit(a, b) for every pair, from all threads, as if in this order: a task waits until
// every earlier task that shares one of its slots has finished. So visit may read what was prepared for a and b and add to their
// sums without locks or copies, and the sums of each slot are formed in the order of the list, whatever the number of threads.
// There is no barrier. Threads claim tasks in order, so the oldest unfinished task can always go on, and threads seldom wait if
// neighbours in the list share no slot. An exception, for want of memory say, ends all threads, and then reaches the caller.
template <class Prepare, class Visit>
void in_order(const Pairs& pairs, int64_t slots, const Prepare& prepare, const Visit& visit) {
  std::vector<std::atomic<int64_t>> finished(slots);
  Pairs before(pairs.size());           // for each pair, how many earlier tasks have its slot a, and its slot b
  std::vector<int64_t> seen(slots, 1);  // the first task of each slot prepares it
  for (size_t t = 0; t < pairs.size(); t++) {
    const auto [a, b] = pairs[t];
    before[t] = {seen[a], seen[b]};
    seen[a]++;
    if (a != b) seen[b]++;
  }
  std::atomic<bool> failed{false};
  auto wait = [&](int64_t slot, int64_t count) {  // whether there is anything left to wait for
    for (int spins = 0; finished[slot].load(std::memory_order_acquire) < count; spins++) {
      if (failed.load(std::memory_order_relaxed)) return false;
      if (spins > 1000) std::this_thread::yield();
    }
    return true;
  };
  std::atomic<int64_t> next{0};
  const int64_t tasks = slots + int64_t(pairs.size()), threads = std::min<int64_t>(thread_count(), int64_t(pairs.size()));
  const auto work = [&] {
    for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      if (t < slots) {
        prepare(t);
        finished[t].store(1, std::memory_order_release);
        continue;
      }
      const auto [a, b] = pairs[t - slots];
      const auto [a_count, b_count] = before[t - slots];
      if (!wait(a, a_count) || !wait(b, b_count)) return;
      visit(a, b);
      finished[a].store(a_count + 1, std::memory_order_release);
      if (a != b) finished[b].store(b_count + 1, std::memory_order_release);
    }
  };
  parallel_tasks(threads, [&](int64_t, int64_t) {
    try {
      work();
    } catch (...) {
      failed.store(true, std::memory_order_relaxed);
      throw;
    }
  });
}

// Every unordered pair (I, J) of blocks once, with I <= J, in the rounds of a tournament (circle method). No block occurs twice in
// a round.
inline Pairs tournament(int64_t count) {
  const int64_t players = count + count % 2, rounds = players - 1;
  Pairs pairs;
  for (int64_t r = 0; r < rounds; r++)
    for (int64_t k = 0; k < players / 2; k++) {
      int64_t a = k == 0 ? rounds : (r + k) % rounds, b = (r - k + rounds) % rounds;
      if (a == count) a = b;  // with an odd count one block has no partner and meets itself
      pairs.emplace_back(std::min(a, b), std::max(a, b));
    }
  for (int64_t b = 0; count % 2 == 0 && b < count; b++) pairs.emplace_back(b, b);
  return pairs;
}

// Every pair (I, count + J) of `count` row groups and `count` column groups once, in the rounds of a Latin square.
inline Pairs latin_square(int64_t count) {
  Pairs pairs;
  for (int64_t r = 0; r < count; r++)
    for (int64_t i = 0; i < count; i++) pairs.emplace_back(i, count + (i + r) % count);
  return pairs;
}

}  // namespace fastssl
