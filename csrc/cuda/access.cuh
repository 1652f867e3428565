// How a block of threads walks through its chunk. A thread takes four elements at each step, widens them to float32, and reads and
// writes 16 or 8 bytes at once where the addresses allow it; elsewhere it takes one element at each step. The loads of kUnroll
// steps are under way before the first of them is used.
#pragma once
#include "cuda/launch.cuh"

namespace fastssl {

#define FASTSSL_FN __device__ inline
#include "common/elements.h"
#include "common/philox.h"
#undef FASTSSL_FN

constexpr int kThreads = 256;
constexpr int kBlocksAtOnce = 4;  // on a multiprocessor; with kUnroll 2, 32 KB are under way, and 23 KB fill an H200
constexpr int kUnroll = 2;

struct Four {
  uint32_t word[4];
};
struct alignas(16) Sixteen {
  uint32_t word[4];
};
struct alignas(8) Eight {
  uint32_t word[2];
};

__device__ inline Four load_four(const void* data, Dtype dtype, int64_t i) {
  if (dtype == kFloat32) {
    const Sixteen x = *reinterpret_cast<const Sixteen*>(static_cast<const float*>(data) + i);
    return {{x.word[0], x.word[1], x.word[2], x.word[3]}};
  }
  const Eight x = *reinterpret_cast<const Eight*>(static_cast<const uint16_t*>(data) + i);
  return {{x.word[0], x.word[1], 0, 0}};
}

__device__ inline float widen(uint16_t h, Dtype dtype) { return dtype == kBFloat16 ? from_bfloat16(h) : from_float16(h); }
__device__ inline uint16_t narrow(float x, Dtype dtype) { return dtype == kBFloat16 ? to_bfloat16(x) : to_float16(x); }

// x rounded to a dtype.
__device__ inline float as_stored(float x, Dtype dtype) { return dtype == kFloat32 ? x : widen(narrow(x, dtype), dtype); }

__device__ inline void widen_four(const Four& raw, Dtype dtype, float (&x)[4]) {
#pragma unroll
  for (int k = 0; k < 4; k++)
    x[k] = dtype == kFloat32 ? float_of(raw.word[k]) : widen(uint16_t(raw.word[k / 2] >> (16 * (k % 2))), dtype);
}

__device__ inline void store_four(void* data, Dtype dtype, int64_t i, const float (&x)[4]) {
  if (dtype == kFloat32) {
    *reinterpret_cast<Sixteen*>(static_cast<float*>(data) + i) = {{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])}};
  } else if (dtype != kNothing) {
    uint32_t word[2];
#pragma unroll
    for (int k = 0; k < 2; k++) word[k] = uint32_t(narrow(x[2 * k], dtype)) | uint32_t(narrow(x[2 * k + 1], dtype)) << 16;
    *reinterpret_cast<Eight*>(static_cast<uint16_t*>(data) + i) = {{word[0], word[1]}};
  }
}

__device__ inline float load_one(const void* data, Dtype dtype, int64_t i) {
  return dtype == kFloat32 ? static_cast<const float*>(data)[i] : widen(static_cast<const uint16_t*>(data)[i], dtype);
}
__device__ inline void store_one(void* data, Dtype dtype, int64_t i, float x) {
  if (dtype == kFloat32) static_cast<float*>(data)[i] = x;
  else if (dtype != kNothing) static_cast<uint16_t*>(data)[i] = narrow(x, dtype);
}

// Whether four elements of every list can be read and written in one aligned access.
__device__ inline bool is_aligned(const TensorRecord& t) {
  bool aligned = true;
#pragma unroll
  for (int l = 0; l < kMostLists; l++)
    if (t.dtype[l] != kNothing) aligned &= reinterpret_cast<uint64_t>(t.data[l]) % (t.dtype[l] == kFloat32 ? 16 : 8) == 0;
  return aligned;
}

// Reads lists 0 .. R - 1 and writes lists writes[0 .. W - 1] of a chunk, all of them float32 or 16 bits wide:
//   f(i, in[R][4], out[W][4])  for elements i .. i + 3. Where single elements are taken, only the first of the four counts, and
// the others are 0.
template <int R, int W, class F>
__device__ inline void for_each_four(const TensorRecord& t, int32_t index, const int (&writes)[W], const F& f) {
  const int64_t begin = index * kChunkElements;
  const int count = int(t.count - begin < kChunkElements ? t.count - begin : kChunkElements);
  int done = 0;
  if (is_aligned(t)) {
    const int fours = count / 4;
    for (int base = threadIdx.x; base < fours; base += kThreads * kUnroll) {
      Four raw[kUnroll][R];
#pragma unroll
      for (int u = 0; u < kUnroll; u++)
        if (base + u * kThreads < fours)
#pragma unroll
          for (int r = 0; r < R; r++) raw[u][r] = load_four(t.data[r], t.dtype[r], begin + 4 * (base + u * kThreads));
#pragma unroll
      for (int u = 0; u < kUnroll; u++)
        if (base + u * kThreads < fours) {
          float in[R][4], out[W][4];
          const int64_t i = begin + 4 * (base + u * kThreads);
#pragma unroll
          for (int r = 0; r < R; r++) widen_four(raw[u][r], t.dtype[r], in[r]);
          f(i, in, out);
#pragma unroll
          for (int w = 0; w < W; w++) store_four(t.data[writes[w]], t.dtype[writes[w]], i, out[w]);
        }
    }
    done = fours * 4;
  }
  for (int64_t i = begin + done + threadIdx.x; i < begin + count; i += kThreads) {
    float in[R][4] = {}, out[W][4];
#pragma unroll
    for (int r = 0; r < R; r++) in[r][0] = load_one(t.data[r], t.dtype[r], i);
    f(i, in, out);
#pragma unroll
    for (int w = 0; w < W; w++) store_one(t.data[writes[w]], t.dtype[writes[w]], i, out[w][0]);
  }
}

// The same for float64, one element at a time: f(in[R], out[W]).
template <int R, int W, class F>
__device__ inline void for_each_double(const TensorRecord& t, int32_t index, const int (&writes)[W], const F& f) {
  const int64_t begin = index * kChunkElements;
  const int64_t end = t.count < begin + kChunkElements ? t.count : begin + kChunkElements;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    double in[R], out[W];
#pragma unroll
    for (int r = 0; r < R; r++) in[r] = static_cast<const double*>(t.data[r])[i];
    f(in, out);
#pragma unroll
    for (int w = 0; w < W; w++)
      if (t.dtype[writes[w]] != kNothing) static_cast<double*>(t.data[writes[w]])[i] = out[w];
  }
}

// f(in[R], out[W]) for every element of a chunk; T is double where the lists are float64, else float.
template <class T, int R, int W, class F>
__device__ inline void for_each_element(const TensorRecord& t, int32_t index, const int (&writes)[W], const F& f) {
  if constexpr (sizeof(T) == 8) {
    for_each_double<R>(t, index, writes, f);
  } else {
    for_each_four<R>(t, index, writes, [&](int64_t, const float (&in)[R][4], float (&out)[W][4]) {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        float one_in[R], one_out[W];
#pragma unroll
        for (int r = 0; r < R; r++) one_in[r] = in[r][k];
        f(one_in, one_out);
#pragma unroll
        for (int w = 0; w < W; w++) out[w][k] = one_out[w];
      }
    });
  }
}

__device__ inline double value_of(const Scalar& scalar) {
  if (!scalar.device) return scalar.number;
  return scalar.is_double ? *static_cast<const double*>(scalar.device) : double(*static_cast<const float*>(scalar.device));
}

// One block of kThreads threads for each chunk of the table.
template <class Call>
void launch_over_chunks(void (*kernel)(TableView, Call), const Launch& chunks, const Call& call) {
  launch(kernel, dim3{chunks.chunks}, dim3{kThreads}, chunks.stream, chunks.table, call);
}

}  // namespace fastssl
