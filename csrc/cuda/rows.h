// What the calls of the kernels over rows of tokens and patches have in common; a warp takes a row.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

struct CUstream_st;

namespace fastssl {

constexpr int kWarp = 32;
constexpr int kRowWarps = 8;  // the warps of a block

// Rows (samples, rows, width) with strides in elements; the entries of a row are neighbours in memory.
struct RowsView {
  const void* data;
  Dtype dtype;
  int64_t sample, row;
};

// The number of blocks that have a warp for each row, but at most `most`; warps then take several rows in turn.
inline unsigned blocks_of(int64_t rows, int warps = kRowWarps, int64_t most = 1 << 30) {
  const int64_t blocks = (rows + warps - 1) / warps;
  return unsigned(blocks < most ? blocks : most);
}

// n / divisor = n multiplier >> (32 + shift) for n below 2^31, of any divisor from 1 to 2^31: the multiplier has at most 33 bits
// (Granlund and Montgomery 1994).
struct Divisor {
  uint64_t multiplier;
  uint32_t value, shift;
};
inline Divisor divisor_of(int64_t value) {
  uint32_t shift = 0;
  while (int64_t(1) << shift < value) shift++;
  const unsigned __int128 power = static_cast<unsigned __int128>(1) << (32 + shift);
  return {uint64_t((power + value - 1) / value), uint32_t(value), shift};
}

// Patches of height x width of images (N, C, H, W) whose strides are given in elements, 1 in a line.
struct PatchGrid {
  int64_t sample, channel, line;
  int64_t height, width;      // of a patch
  int64_t across, length;     // patches side by side, and of an image
  int64_t channels, entries;  // entries = channels height width, below 2^31
  Divisor by_plane, by_width, by_channels;
};
inline PatchGrid patch_grid(const int64_t* sizes, const int64_t* strides, int64_t height, int64_t width) {
  PatchGrid grid{};
  grid.sample = strides[0], grid.channel = strides[1], grid.line = strides[2];
  grid.height = height, grid.width = width;
  grid.across = sizes[3] / width, grid.length = grid.across * (sizes[2] / height);
  grid.channels = sizes[1], grid.entries = sizes[1] * height * width;
  grid.by_plane = divisor_of(height * width), grid.by_width = divisor_of(width), grid.by_channels = divisor_of(sizes[1]);
  return grid;
}

}  // namespace fastssl
