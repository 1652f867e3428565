// Where the entries of a patch lie in its image.
#pragma once
#include "cuda/rows.cuh"

namespace fastssl {

__device__ inline uint32_t quotient(uint32_t n, const Divisor& d) { return uint32_t(n * d.multiplier >> (32 + d.shift)); }

// The element of the images at which patch `l` of sample `n` begins.
__device__ inline int64_t patch_begin(const PatchGrid& grid, int64_t n, int64_t l) {
  const int64_t down = l / grid.across;
  return n * grid.sample + down * grid.height * grid.line + (l - down * grid.across) * grid.width;
}

// Entry i of a patch, in the order (c, p, q), lies at this element behind the patch's first one.
struct InPatch {
  const PatchGrid& grid;

  __device__ int64_t operator()(int64_t i) const {
    const uint32_t c = quotient(uint32_t(i), grid.by_plane), pixel = uint32_t(i) - c * grid.by_plane.value;
    const uint32_t y = quotient(pixel, grid.by_width), x = pixel - y * grid.by_width.value;
    return c * grid.channel + y * grid.line + x;
  }

  // Whether G entries from a multiple of G on are neighbours in an image of `dtype`, and aligned if the patch's first entry is.
  template <int G>
  __device__ bool in_groups(Dtype dtype) const {
    const int bytes = bytes_of(dtype), access = access_bytes<G>(dtype);
    return grid.width % G == 0 && is_multiple(grid.channel * bytes, access) && is_multiple(grid.line * bytes, access);
  }
};

// Whether a patch that begins at `patch` is read in groups of G pixels.
template <int G>
__device__ inline bool fits_in_groups(const void* patch, Dtype dtype, const PatchGrid& grid) {
  return fits<G>(patch, dtype) && InPatch{grid}.template in_groups<G>(dtype);
}

}  // namespace fastssl
