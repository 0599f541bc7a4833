// Parameters of the CUDA kernels besides MSDeformAttnParams. Passed by value: no copy to the device precedes
// a launch.
#pragma once

#include "params.h"

namespace dino_kernels {

constexpr int kMaxLevels = 32;

struct LevelTable {
  const void* shapes;  // [L, 2] (H, W) on the device; null: they are in sizes
  const void* starts;  // [L] first rows, on the device; null: the exclusive cumulative sum of H * W
  bool shapes_int64;   // else int32
  bool starts_int64;   // else int32
  int32_t sizes[2 * kMaxLevels];  // [L, 2] (H, W)
  int32_t points[kMaxLevels];     // [L] samples per head
};

struct CudaParams : MSDeformAttnParams {
  LevelTable table;
  uint32_t blocks_per_head;  // of a launch
  int32_t group;             // lanes that share a row's channels, for kernels not compiled for one number
  bool pairs_aligned;        // x and y of a position can be loaded together
  bool queries_on_grid;      // Q == S: queries are probably the pixels of the levels

  // Backward.
  void* sums;            // [B, S, M, D] of grad_value: compute dtype, or int64 (two each for float64)
  const void* bound;     // [1] compute dtype: no term of a sum exceeds it; null: sums in floating point
  int32_t sum_headroom;  // no sum exceeds bound * 2^this
};

}  // namespace dino_kernels
