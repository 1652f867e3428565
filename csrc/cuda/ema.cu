// Exponential moving average of every tensor of a table in one launch, with one block for each chunk.
//   lerp: e <- e + w (p - e), w = 1 - m;   mul_add: e <- round(m e) + w p;   then shadow <- e.
// An element costs 12 bytes in float32 (read e and p, write e), 2 more for a bfloat16 shadow, and 3 FLOP: memory is the limit.
// Predicted: 1.0 to 1.1 times the copy bandwidth, 71 us for a ResNet-50 and 0.85 ms for a ViT-L on an H200.
#include "cuda/access.cuh"
#include "cuda/ema.h"

namespace fastssl {

template <class T>
struct Averaged {
  T kept, weight;
  bool mul_add, near_second;

  __device__ Averaged(const EmaCall& call) {
    const double m = value_of(call.momentum);
    kept = T(m), weight = T(1.0 - m), mul_add = call.mul_add, near_second = weight >= T(0.5);
  }
  __device__ T operator()(T e, T p) const {
    if (mul_add) return multiplied_then_added(e, p, kept, weight);
    return near_second ? lerp_near_second(e, p, weight - T(1)) : lerp_near_first(e, p, weight);
  }
};

__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) ema_kernel(TableView table, EmaCall call) {
  const ChunkRecord chunk = table.chunks[blockIdx.x];
  const TensorRecord t = table.tensors[chunk.tensor];
  constexpr int writes[] = {kEma, kShadow};
  if (t.dtype[kEma] == kFloat64) {
    const Averaged<double> averaged(call);
    for_each_double<2>(t, chunk.index, writes,
                       [&](const double (&in)[2], double (&out)[2]) { out[0] = out[1] = averaged(in[0], in[1]); });
    return;
  }
  const Averaged<float> averaged(call);
  const bool random = call.stochastic && t.dtype[kEma] != kFloat32;
  const uint64_t seed = call.seed_on_device ? uint64_t(*call.seed_on_device) : call.seed;
  for_each_four<2>(t, chunk.index, writes, [&](int64_t i, const float (&in)[2][4], float (&out)[2][4]) {
#pragma unroll
    for (int k = 0; k < 4; k++) out[0][k] = averaged(in[kEma][k], in[kParams][k]);
    if (random) {
      const Words words = random_words(uint64_t(i) / 8, uint32_t(chunk.tensor), seed);
#pragma unroll
      for (int k = 0; k < 4; k++)
        out[0][k] = cut_at_random(out[0][k], random_half(words, int(i % 8 + k) % 8), t.dtype[kEma] == kBFloat16 ? 16 : 13);
    }
#pragma unroll
    for (int k = 0; k < 4; k++) out[1][k] = as_stored(out[0][k], t.dtype[kEma]);
  });
}

void launch_ema(const Launch& chunks, const EmaCall& call) { launch_over_chunks(ema_kernel, chunks, call); }

}  // namespace fastssl
