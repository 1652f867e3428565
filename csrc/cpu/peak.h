// The most FLOP/s that this CPU reaches in products of a dtype, for each unit that multiplies and adds:
//   registers  independent multiply-adds that touch no memory: no program on this machine can do more
//   tile       a product of matrices that stay in L2, from packed panels: what a matrix product does that never waits for memory
// A product with an N x N output waits for memory, so a loss that stores no such matrix can be faster than torch.mm: these rates
// are the honest limit. They are measured when they are asked for, never at import.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace fastssl {

// The loops of one unit, which return the FLOPs of one thread; `tile` needs room of so many bytes, and is null where there is none.
struct PeakLoops {
  std::string dtype, unit;
  int64_t (*registers)(int64_t rounds);
  int64_t (*tile)(void* room, int64_t rounds);
  int64_t bytes;
};

std::vector<PeakLoops> float_loops();        // of the instruction sets that this machine has
std::vector<PeakLoops> sixteen_bit_loops();  // of its 16-bit units, units.h

// FLOP/s of all threads of torch together; `tile` is 0 where only the registers are measured.
struct Peak {
  double registers, tile;
};

std::vector<std::pair<std::string, std::string>> peak_units();         // (dtype, unit) of all that this machine can run
Peak measure_peak(const std::string& dtype, const std::string& unit);  // std::invalid_argument for what is not in peak_units()

}  // namespace fastssl
