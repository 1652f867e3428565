// Whether `in_order` of csrc/cpu/schedule.h ends when one of its tasks throws: without that its other threads would wait for ever.
// OMP_NUM_THREADS is the number of threads. Prints "reached" for each way to fail whose exception reached the caller, then "sums" if the
// tasks are in order afterwards.
#include <cstdio>
#include <new>
#include <vector>

#include "cpu/schedule.h"

using fastssl::in_order;
using fastssl::tournament;

constexpr int64_t kSlots = 16;

// Throws std::bad_alloc in the preparation of a slot, or in the visit of a pair, whose neighbours in the list then wait for its
// slots.
template <class Prepare, class Visit>
void fail(const Prepare& prepare, const Visit& visit) {
  try {
    in_order(tournament(kSlots), kSlots, prepare, visit);
  } catch (const std::bad_alloc&) {
    std::puts("reached");
  }
}

int main() {
  const auto nothing = [](int64_t) {};
  for (int64_t bad = 0; bad < kSlots; bad += 5) {
    fail(
        [&](int64_t slot) {
          if (slot == bad) throw std::bad_alloc();
        },
        [](int64_t, int64_t) {});
    fail(nothing, [&](int64_t a, int64_t b) {
      if (a == 0 && b == bad) throw std::bad_alloc();
    });
  }
  std::vector<int64_t> visits(kSlots);
  in_order(tournament(kSlots), kSlots, nothing, [&](int64_t a, int64_t b) { visits[a]++, visits[b] += a != b; });
  for (int64_t count : visits)
    if (count != kSlots) return 1;
  std::puts("sums");
}
