#include "cuda/lars_kernel.cuh"

namespace fastssl {

void launch_lars(const Launch& launch, const LarsCall& call) {
  lars_norms_kernel<<<launch.chunks, kThreads, 0, launch.stream>>>(launch.table, call);
  if (call.averages) lars_kernel<4><<<launch.chunks, kThreads, 0, launch.stream>>>(launch.table, call);
  else lars_kernel<3><<<launch.chunks, kThreads, 0, launch.stream>>>(launch.table, call);
}

}  // namespace fastssl
