#include "cuda/adamw_kernel.cuh"

namespace fastssl {

void launch_adamw(const Launch& launch, const AdamCall& call) {
  if (call.averages) adamw_kernel<5><<<launch.chunks, kThreads, 0, launch.stream>>>(launch.table, call);
  else adamw_kernel<4><<<launch.chunks, kThreads, 0, launch.stream>>>(launch.table, call);
}

}  // namespace fastssl
