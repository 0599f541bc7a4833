// All parameters of one cost call. Strides are in elements; the last dimension is dense.
//
// G sets of predictions, B images, Q queries, C classes, N targets of all images, T targets of one image.
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace dino_kernels {

// Bits of a problem's status; the same in dino_kernels/ops/_matching.py.
constexpr int32_t kNonfinitePrediction = 1;
constexpr int32_t kInvalidTarget = 2;
constexpr int32_t kInvalidCost = 4;
constexpr int32_t kIncomplete = 8;

// One tensor of predictions: some of the G sets.
struct PredictionSource {
  const void* logits;  // [sets, B, Q, C]
  const void* boxes;   // [sets, B, Q, 4] (cx, cy, w, h), or null
  int64_t logits_set_stride, logits_batch_stride, logits_row_stride;
  int64_t boxes_set_stride, boxes_batch_stride, boxes_row_stride;
  int64_t first_set;
  int64_t sets;
  int64_t Q;  // at most that of MatchingCostParams
};

struct CostFormula {
  bool softmax;  // else focal
  float class_weight, l1_weight, giou_weight;
  float alpha, gamma;
  float class_eps;  // in the logarithms of the focal cost; 0: exact, by softplus
  float giou_eps;   // added to the union and to the enclosing area
};

struct MatchingCostParams {
  int64_t G, B, Q, C, N;
  int64_t max_targets;              // of an image
  DType logits_dtype, boxes_dtype;  // of all sources
  const PredictionSource* sources;  // on the host
  int64_t num_sources;

  const int64_t* labels;      // [N]
  const float* target_boxes;  // [N, 4] (cx, cy, w, h), or null if boxes have no weight
  const int64_t* offsets;     // [B + 1]: image b has the targets offsets[b] to offsets[b + 1]
  const float* extra_cost;    // [G or 1, N, Q], or null
  int64_t extra_set_stride;   // N * Q, or 0 where all sets share it
  CostFormula formula;
};

}  // namespace dino_kernels
