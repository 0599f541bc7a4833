// The CPU kernel of the matching cost, compiled once per instruction set, and its parameters.
#pragma once

#include "../common/cpu_capability.h"
#include "params.h"

namespace dino_kernels {

// A target, with its corners.
struct CostTarget {
  float cx, cy, w, h;
  float x0, y0, x1, y1, area;
  int32_t class_row;  // index of its label among its image's; -1: cannot be matched
};

struct CostImage {
  const CostTarget* targets;  // [T]
  int64_t T;
  const int64_t* labels;  // [num_labels] of the targets that can be matched, each once
  int64_t num_labels;
  bool has_invalid;  // targets
};

// Some queries of one set and image. A tile has at most kCostTile of them.
struct CostTile {
  const PredictionSource* source;
  int64_t set;          // in the source
  int64_t image_index;  // in the batch
  const CostImage* image;
  int64_t first_query, queries;
  int64_t padding;     // columns after these queries, without a query
  const float* extra;  // [T, Q] of the problem, or null
  int64_t extra_row_stride;
  float* cost;  // [T, Q] of the problem
  int64_t cost_row_stride;
};
constexpr int64_t kCostTile = 128;

struct CostKernels {
  int64_t (*scratch_bytes)(int64_t most_labels);  // 64-byte aligned
  // Returns bits of the problem's status.
  int32_t (*run)(const MatchingCostParams&, const CostTile&, void* scratch);
};

DINO_DECLARE_CPU_VARIANTS(CostKernels, matching_cost)

}  // namespace dino_kernels
