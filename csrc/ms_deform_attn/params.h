// All parameters of one call. Strides are in elements; the last dimension is dense.
//
// B images, S = sum of H * W, M heads, D channels per head, Q queries, L levels, K samples per head.
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace dino_kernels {

struct Level {
  int32_t height;       // pixels
  int32_t width;        // pixels
  int64_t start;        // first row of the level in S
  int64_t first_point;  // first of its samples in K
  int64_t points;       // how many of the K samples belong to this level
};

// [B, n, ...] with dense rows: batch b, row i begins at data + b * batch_stride + i * row_stride.
struct Rows {
  const void* data;
  int64_t batch_stride;
  int64_t row_stride;
};

struct MSDeformAttnParams {
  int64_t B, S, M, D, Q, L, K;
  DType dtype;  // of value, grad_output, output and grad_value

  Rows value;      // [B, S, M * D]
  Rows positions;  // [B, Q, M * K * 2] sampling locations, or raw offsets if reference_points is set
  Rows weights;    // [B, Q, M * K] attention weights, or logits if reference_points is set
  // In value's dtype rather than the compute dtype (float64 for float64, else float32).
  bool positions_as_value;
  bool weights_as_value;

  const void* reference_points;   // [B, Q, L, reference_coordinates] compute dtype; null: the classic op
  int64_t reference_coordinates;  // 2 (x, y) or 4 (cx, cy, w, h), in [0, 1]
  const bool* value_mask;         // [B, S] true = padding, counts as zero; or null

  void* output;  // [B, Q, M * D]

  // Backward. A null gradient is not computed.
  Rows grad_output;      // [B, Q, M * D]
  void* grad_value;      // [B, S, M, D]
  void* grad_positions;  // [B, Q, M, K, 2] dtype of positions
  void* grad_weights;    // [B, Q, M, K] dtype of weights
  // [B, Q, L, reference_coordinates] compute dtype; on CUDA [B, Q, M, L, reference_coordinates], not yet
  // summed
  void* grad_reference_points;
};

}  // namespace dino_kernels
