#include "cuda/restore_tokens_kernel.cuh"

namespace fastssl {

void launch_restore(const RestoreCall& call, CUstream_st* stream) {
  const unsigned blocks = blocks_of(call.samples * (call.prefix + call.length));
  with_group(call.kind, [&](auto g) { launch(restore_kernel<decltype(g)::value>, {blocks}, {kRowThreads}, stream, call); });
}

void launch_chunks(const SumCall& call, CUstream_st* stream) {
  with_group(call.rows.kind, [&](auto g) {
    constexpr int G = decltype(g)::value;
    const dim3 grid{unsigned(call.chunks), unsigned((call.width + kWarp * G - 1) / (kWarp * G))};
    launch(sum_kernel<G>, grid, {kRowThreads}, stream, call);
  });
}

void launch_sum(const SumCall& call, void* partial, CUstream_st* stream) {
  SumCall first = call, second = call;
  if (partial) first.out = partial;
  launch_chunks(first, stream);
  if (!partial) return;
  second.rows = {partial, call.rows.kind == kFloat64 ? kFloat64 : kFloat32, 0, call.width};
  second.ids = nullptr, second.samples = 1, second.length = call.chunks, second.chunks = 1;
  launch_chunks(second, stream);
}

}  // namespace fastssl
