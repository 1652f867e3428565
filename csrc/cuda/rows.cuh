// How a warp walks through a row: at each step a lane takes 16 bytes where every address allows it, and single elements elsewhere
// and at the end. G is the number of elements of the op's dtype in 16 bytes: 2 for float64, 4 for float32, 8 for 16-bit floats.
#pragma once
#include <type_traits>

#include "cuda/access.cuh"
#include "cuda/rows.h"

namespace fastssl {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kRowThreads = kRowWarps * kWarp;
constexpr int kRowBlocks = 6;  // on a multiprocessor: 48 warps
// How many reads of 16 bytes a lane has under way where rows are copied: 1 KB for a warp. 23 KB in all fill an H200, but a warp
// that begins a row waits for an id first.
constexpr int kReadsAhead = 2;

template <int W>
using Width = std::integral_constant<int, W>;
template <int G>
using Real = std::conditional_t<G == 2, double, float>;  // the type of the arithmetic
template <int G>
using Bits = std::conditional_t<G == 2, uint64_t, std::conditional_t<G == 4, uint32_t, uint16_t>>;

// The dtype of the rows of an op: the compiler knows it from G, except that G = 8 stands for both 16-bit dtypes.
template <int G>
__device__ constexpr Dtype known_dtype(Dtype dtype) {
  return G == 2 ? kFloat64 : G == 4 ? kFloat32 : dtype == kBFloat16 ? kBFloat16 : kFloat16;
}

// Calls f(Width<G>{}) with the G that belongs to the dtype.
template <class F>
void with_group(Dtype dtype, const F& f) {
  if (dtype == kFloat64) f(Width<2>{});
  else if (dtype == kFloat32) f(Width<4>{});
  else f(Width<8>{});
}

__device__ inline int lane() { return int(threadIdx.x) % kWarp; }
__device__ inline int warp() { return int(threadIdx.x) / kWarp; }

// Calls f(row) for the rows of this warp; all its lanes run together.
template <class F>
__device__ inline void for_each_row(int64_t rows, const F& f) {
  const int warps = int(blockDim.x) / kWarp;
  for (int64_t row = int64_t(blockIdx.x) * warps + warp(); row < rows; row += int64_t(gridDim.x) * warps) f(row);
}

// 16-bit floats are converted by the GPU's instructions, which round as the functions of elements.h and give another NaN for a NaN.
__device__ inline float real_of(uint16_t h, Dtype dtype) {
#if defined(__CUDA_ARCH__)
  if (dtype == kBFloat16) return from_bfloat16(h);
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
#else
  return widen(h, dtype);
#endif
}
__device__ inline uint16_t half_of(float x, Dtype dtype) {
#if defined(__CUDA_ARCH__)
  uint16_t h;
  if (dtype == kBFloat16) asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
  else asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
#else
  return narrow(x, dtype);
#endif
}

// W elements that are read or written in accesses of at most 16 bytes.
template <class E, int W>
struct alignas(sizeof(E) * W < 16 ? sizeof(E) * W : 16) Packed {
  E value[W];
};

template <int W, class T>
__device__ inline void load(const void* data, Dtype dtype, int64_t i, T (&x)[W]) {
  if (dtype == kFloat64) {
    const auto raw = *reinterpret_cast<const Packed<double, W>*>(static_cast<const double*>(data) + i);
#pragma unroll
    for (int k = 0; k < W; k++) x[k] = T(raw.value[k]);
  } else if (dtype == kFloat32) {
    const auto raw = *reinterpret_cast<const Packed<float, W>*>(static_cast<const float*>(data) + i);
#pragma unroll
    for (int k = 0; k < W; k++) x[k] = T(raw.value[k]);
  } else if constexpr (W == 1) {
    x[0] = T(real_of(static_cast<const uint16_t*>(data)[i], dtype));
  } else {
    const auto raw = *reinterpret_cast<const Packed<uint32_t, W / 2>*>(static_cast<const uint16_t*>(data) + i);
#pragma unroll
    for (int k = 0; k < W; k++) x[k] = T(real_of(uint16_t(raw.value[k / 2] >> (16 * (k % 2))), dtype));
  }
}

template <int W, class T>
__device__ inline void store(void* data, Dtype dtype, int64_t i, const T (&x)[W]) {
  if constexpr (sizeof(T) == 8) {  // the arithmetic is in float64 for float64 alone
    Packed<double, W> raw;
#pragma unroll
    for (int k = 0; k < W; k++) raw.value[k] = x[k];
    *reinterpret_cast<Packed<double, W>*>(static_cast<double*>(data) + i) = raw;
  } else if (dtype == kFloat32) {
    Packed<float, W> raw;
#pragma unroll
    for (int k = 0; k < W; k++) raw.value[k] = x[k];
    *reinterpret_cast<Packed<float, W>*>(static_cast<float*>(data) + i) = raw;
  } else if constexpr (W == 1) {
    static_cast<uint16_t*>(data)[i] = half_of(x[0], dtype);
  } else {
    Packed<uint32_t, W / 2> raw;
#pragma unroll
    for (int k = 0; k < W / 2; k++)
      raw.value[k] = uint32_t(half_of(x[2 * k], dtype)) | uint32_t(half_of(x[2 * k + 1], dtype)) << 16;
    *reinterpret_cast<Packed<uint32_t, W / 2>*>(static_cast<uint16_t*>(data) + i) = raw;
  }
}

// The bytes of an access to G elements, a power of 2. All divisors here are powers of 2, because the remainder by a number that the
// compiler does not know takes 20 instructions.
template <int G>
__device__ inline int access_bytes(Dtype dtype) {
  const int bytes = G * bytes_of(dtype);
  return bytes < 16 ? bytes : 16;
}
__device__ inline bool is_multiple(int64_t number, int power_of_2) { return (number & (power_of_2 - 1)) == 0; }

// Whether load and store may access G elements at `data`, which is aligned then. Null is aligned, because it is not read.
template <int G>
__device__ inline bool fits(const void* data, Dtype dtype) {
  return is_multiple(reinterpret_cast<int64_t>(data), access_bytes<G>(dtype));
}

__device__ inline const void* element(const void* data, Dtype dtype, int64_t i) {
  return static_cast<const char*>(data) + i * bytes_of(dtype);
}
__device__ inline void* element(void* data, Dtype dtype, int64_t i) { return static_cast<char*>(data) + i * bytes_of(dtype); }
__device__ inline const void* row_of(const RowsView& view, int64_t sample, int64_t row) {
  return element(view.data, view.dtype, sample * view.sample + row * view.row);
}

// Calls f(i, Width<W>) for elements i .. i + W - 1 of a row; the lanes take turns.
template <int G, class F>
__device__ inline void walk_row(int64_t count, bool aligned, const F& f) {
  const int64_t grouped = aligned ? count / G * G : 0;
#pragma unroll 1
  for (int64_t i = int64_t(lane()) * G; i < grouped; i += kWarp * G) f(i, Width<G>{});
#pragma unroll 1
  for (int64_t i = grouped + lane(); i < count; i += kWarp) f(i, Width<1>{});
}

// Calls write(i, read(i)) for groups of G elements up to `end`, a multiple of G; the lanes take turns.
template <int G, class Read, class Write>
__device__ inline void read_ahead(int64_t end, const Read& read, const Write& write) {
  constexpr int kStep = kWarp * G;
#pragma unroll 1
  for (int64_t i = int64_t(lane()) * G; i < end; i += kStep * kReadsAhead) {
    decltype(read(i)) x[kReadsAhead] = {};
#pragma unroll
    for (int u = 0; u < kReadsAhead; u++)
      if (i + u * kStep < end) x[u] = read(i + u * kStep);
#pragma unroll
    for (int u = 0; u < kReadsAhead; u++)
      if (i + u * kStep < end) write(i + u * kStep, x[u]);
  }
}

template <class T>
__device__ inline T value_of(uint16_t bits, Dtype dtype) {
  return T(real_of(bits, dtype));
}
template <class T>
__device__ inline T value_of(float x, Dtype) {
  return T(x);
}
template <class T>
__device__ inline T value_of(double x, Dtype) {
  return T(x);
}

// Calls f(i, x) for the entries of a row of fewer than 2^31, where x = data[place(i)]; a lane takes one entry at each step. Four
// loads of each lane are under way before the first is used: 20 KB of float32 on a multiprocessor with 40 warps.
template <class T, class E, class Place, class F>
__device__ inline void read_singles(const E* data, Dtype dtype, const Place& place, uint32_t count, const F& f) {
  constexpr int kAhead = 4;
#pragma unroll 1
  for (uint32_t i = lane(); i < count; i += kWarp * kAhead) {
    E x[kAhead] = {};
#pragma unroll
    for (int u = 0; u < kAhead; u++)
      if (i + u * kWarp < count) x[u] = data[place(i + u * kWarp)];
#pragma unroll
    for (int u = 0; u < kAhead; u++)
      if (i + u * kWarp < count) f(i + u * kWarp, value_of<T>(x[u], dtype));
  }
}
template <class T, class Place, class F>
__device__ inline void read_singles(const void* data, Dtype dtype, const Place& place, uint32_t count, const F& f) {
  if (dtype == kFloat64) read_singles<T>(static_cast<const double*>(data), dtype, place, count, f);
  else if (dtype == kFloat32) read_singles<T>(static_cast<const float*>(data), dtype, place, count, f);
  else read_singles<T>(static_cast<const uint16_t*>(data), dtype, place, count, f);
}

// Entry i of a row lies at element i.
struct InOrder {
  __device__ int64_t operator()(int64_t i) const { return i; }
  template <int G>
  __device__ bool in_groups(Dtype) const {
    return true;
  }
};

// out[place(i)] = from[i], or 0 where `from` is null; the bits are copied.
template <int G, class Place>
__device__ inline void copy_row(void* out, const Place& place, const void* from, int64_t count) {
  const bool aligned = (reinterpret_cast<uint64_t>(out) | reinterpret_cast<uint64_t>(from)) % 16 == 0;
  const int64_t grouped = aligned && place.template in_groups<G>(known_dtype<G>(kNothing)) ? count / G * G : 0;
  const auto* source = static_cast<const Bits<G>*>(from);
  const auto write = [&](int64_t i, auto x) { *reinterpret_cast<decltype(x)*>(static_cast<Bits<G>*>(out) + place(i)) = x; };
  if (from) read_ahead<G>(grouped, [&](int64_t i) { return *reinterpret_cast<const Sixteen*>(source + i); }, write);
  else read_ahead<G>(grouped, [&](int64_t) { return Sixteen{}; }, write);
#pragma unroll 1
  for (int64_t i = grouped + lane(); i < count; i += kWarp) write(i, from ? source[i] : Bits<G>{});
}

struct Row {
  const void* data;  // null: zeros
  Dtype dtype;
};

// out = a + b in the dtype of `out`, rounded once.
template <int G>
__device__ inline void write_sum(void* out, Dtype out_dtype, const Row& a, const Row& b, int64_t count) {
  const Dtype dtype = known_dtype<G>(out_dtype);
  const bool aligned = fits<G>(out, dtype) && fits<G>(a.data, a.dtype) && fits<G>(b.data, b.dtype);
  walk_row<G>(count, aligned, [&](int64_t i, auto width) {
    constexpr int W = decltype(width)::value;
    Real<G> x[W] = {}, y[W];
    if (a.data) load<W>(a.data, a.dtype, i, x);
    if (b.data) {
      load<W>(b.data, b.dtype, i, y);
#pragma unroll
      for (int k = 0; k < W; k++) x[k] += y[k];
    }
    store<W>(out, dtype, i, x);
  });
}

// A search for `wanted` among the ids of a sample.
struct Search {
  const int64_t* ids;
  int64_t count, wanted;
};

// Calls f(bits, base) for each kWarp ids that hold the wanted one: bit b is set where id base + b is the wanted one. All lanes of
// the warp run together.
template <class F>
__device__ inline void for_each_match(const Search& search, const F& f) {
  constexpr int kAhead = 4;
  for (int64_t base = 0; base < search.count; base += kWarp * kAhead) {
    bool found[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++) {
      const int64_t k = base + u * kWarp + lane();
      found[u] = k < search.count && search.ids[k] == search.wanted;
    }
#pragma unroll
    for (int u = 0; u < kAhead; u++)
      if (const unsigned bits = __ballot_sync(kAllLanes, found[u])) f(bits, base + u * kWarp);
  }
}

// out[place(i)] = sum of rows.data[k][i] over the k whose id is the wanted one, in the order of k; `rows` begins at row 0 of the
// sample. Each element is written once, by one lane, and nothing is added across lanes, so that every run gives the same bits.
template <int G, class Place>
__device__ inline void write_found(void* out, const Place& place, const RowsView& rows, const Search& search, int64_t count) {
  int64_t first = -1;
  bool several = false;
  for_each_match(search, [&](unsigned bits, int64_t base) {
    several |= first >= 0 || (bits & (bits - 1)) != 0;
    if (first < 0) first = base + __ffs(int(bits)) - 1;
  });
  if (!several) return copy_row<G>(out, place, first < 0 ? nullptr : row_of(rows, 0, first), count);
  constexpr int kColumns = 2;  // of a lane at once
  for (int64_t i0 = 0; i0 < count; i0 += kWarp * kColumns) {
    Real<G> sum[kColumns] = {};
    for_each_match(search, [&](unsigned bits, int64_t base) {
      for (; bits; bits &= bits - 1) {
        const void* row = row_of(rows, 0, base + __ffs(int(bits)) - 1);
#pragma unroll
        for (int c = 0; c < kColumns; c++) {
          const int64_t i = i0 + c * kWarp + lane();
          Real<G> x[1] = {};
          if (i < count) load<1>(row, known_dtype<G>(rows.dtype), i, x);
          sum[c] += x[0];
        }
      }
    });
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      const int64_t i = i0 + c * kWarp + lane();
      const Real<G> x[1] = {sum[c]};
      if (i < count) store<1>(out, known_dtype<G>(rows.dtype), place(i), x);
    }
  }
}

// The sum over the lanes of a warp, returned to all of them: in each of five steps both partners add the same two numbers.
template <class T>
__device__ inline T add_over_warp(T x) {
#pragma unroll
  for (int other = kWarp / 2; other > 0; other /= 2) x += __shfl_xor_sync(kAllLanes, x, other);
  return x;
}

}  // namespace fastssl
