// The CUDA source of the masking ops from the schema to the memory, the ops (.cpp) and their kernels with the launches (.cu), as
// ops of the CPU in the namespace fastssl_on_cpu.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define CUDA CPU
#define fastssl fastssl_on_cpu
#define FASTSSL_FMA 1
#include "shim.h"

// A test may limit launches to a few blocks, so that each warp takes several rows.
#define blocks_of blocks_on_a_gpu
#include "cuda/rows.h"
#undef blocks_of

namespace fastssl {
inline int64_t most_blocks = 1 << 30;
inline unsigned blocks_of(int64_t rows, int warps = kRowWarps, int64_t most = 1 << 30) {
  return blocks_on_a_gpu(rows, warps, most < most_blocks ? most : most_blocks);
}
}  // namespace fastssl

#include "cuda/embed_visible.cpp"
#include "cuda/embed_visible.cu"
#include "cuda/gather_tokens.cpp"
#include "cuda/gather_tokens.cu"
#include "cuda/mask_ids.cpp"
#include "cuda/mask_ids.cu"
#include "cuda/patch_loss.cpp"
#include "cuda/patch_loss.cu"
#include "cuda/restore_tokens.cpp"
#include "cuda/restore_tokens.cu"

extern "C" uint32_t divided(uint32_t n, uint32_t by) { return fastssl::quotient(n, fastssl::divisor_of(by)); }

extern "C" void schedule(bool backwards, int64_t most_blocks) {
  shim::backwards = backwards;
  fastssl::most_blocks = most_blocks;
}
