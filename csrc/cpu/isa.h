// The vector instruction sets that the CPU kernels are compiled for, and the one in use. One binary holds all of them:
// each element function is compiled once per set in a target region (rows.cpp), and the first call picks the widest one
// that this machine has.
#pragma once
#include <string>
#include <vector>

namespace fastssl::isa {

enum class Isa { kBaseline, kAvx2, kAvx512 };  // baseline: SSE2 on x86-64, NEON on AArch64

Isa current();
const char* name(Isa isa);
std::vector<std::string> available();  // narrowest first
void use(const std::string& name);     // throws std::invalid_argument for a set that this machine or build lacks

}  // namespace fastssl::isa
