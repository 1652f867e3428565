#include "cuda/queue_kernel.cuh"

namespace fastssl {

void launch_queue_push(const PushCall& call, int element_bytes, CUstream_st* stream) {
  const dim3 grid{unsigned(tiles_of_keys(call)), unsigned(tiles_of_entries(call))}, block{kTile, kTileRows};
  switch (element_bytes) {
    case 2:
      queue_push_kernel<uint16_t><<<grid, block, 0, stream>>>(call);
      break;
    case 4:
      queue_push_kernel<uint32_t><<<grid, block, 0, stream>>>(call);
      break;
    default:
      queue_push_kernel<uint64_t><<<grid, block, 0, stream>>>(call);
  }
}

}  // namespace fastssl
