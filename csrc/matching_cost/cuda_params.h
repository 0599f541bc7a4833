// Parameters of the CUDA kernel besides MatchingCostParams. Passed by value: no copy to the device precedes
// the launch.
#pragma once

#include "params.h"

namespace dino_kernels {

// Kernel parameters are limited to 4 KB; the same in dino_kernels/ops/matching_cost/cuda.py.
constexpr int kMaxSources = 32;

struct CudaCostParams : MatchingCostParams {
  PredictionSource table[kMaxSources];  // what `sources` points to
  int64_t tiles;                        // blocks of one problem
  int32_t logit_bytes;

  float* cost;     // [G, N, Q]
  int32_t* notes;  // [G, B, tiles] bits of the status
};

}  // namespace dino_kernels
