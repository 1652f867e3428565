#include "cuda/mask_ids_kernel.cuh"

namespace fastssl {

void launch_mask_ids(const MaskIdsCall& call, CUstream_st* stream) {
  const dim3 grid{unsigned(call.rows)}, block{kRankThreads};
  if (call.noise && call.kind == kFloat64) launch(mask_ids_kernel<uint64_t>, grid, block, stream, call);
  else launch(mask_ids_kernel<uint32_t>, grid, block, stream, call);
}

}  // namespace fastssl
