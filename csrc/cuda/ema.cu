#include "cuda/ema_kernel.cuh"

namespace fastssl {

void launch_ema(const Launch& launch, const EmaCall& call) {
  ema_kernel<<<launch.chunks, kThreads, 0, launch.stream>>>(launch.table, call);
}

}  // namespace fastssl
