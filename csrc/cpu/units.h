// The 16-bit multiply-add units of this CPU, beside its instruction sets (isa.h):
//   avx512_bf16   VDPBF16PS: products of pairs of bfloat16, added to float32; Zen 4, Cooper Lake, Sapphire Rapids and newer
//   avx512_fp16   VFMADDPH: float16, added to float16; Sapphire Rapids and newer
//   amx_bf16      TDPBF16PS: tiles of bfloat16, added to float32; Sapphire Rapids and newer
//   amx_fp16      TDPFP16PS: the same of float16; Granite Rapids and newer
#pragma once
#include <string>
#include <vector>

namespace fastssl::units {

enum class Unit { kAvx512Bf16, kAvx512Fp16, kAmxBf16, kAmxFp16 };

const char* name(Unit unit);
bool has(Unit unit);                   // the CPU has it, and the system keeps its registers when it switches threads
bool may_use_tiles();                  // asks Linux for AMX's tile registers, which a process gets on request only
std::vector<std::string> available();  // names of those that this CPU has

}  // namespace fastssl::units
