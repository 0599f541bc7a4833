// The arguments of a call, the same for every step. `attention/call.py` fills this struct.
//
// B images, S rows of value, M heads, D channels of a head, Q queries, L levels, K samples of a head.
#pragma once

#include <cstdint>

struct Level {
  int64_t height, width;  // pixels
  int64_t start;          // its first row in S
  int64_t points;         // how many of the K samples lie on it; samples are ordered by level
};

// T is float, or a 16-bit type from step 7 on.
struct Call {
  int64_t B, S, M, D, Q, L, K;
  const Level* levels;   // [L]
  const void* value;     // T [B, S, M, D]
  const float* frame;    // [B, Q, L, 4]: a sample lies at pixel frame.xy + offset * frame.zw
  const void* offsets;   // T [B, Q, M, K, 2]
  const void* logits;    // T [B, Q, M, K]
  const uint8_t* mask;   // [B, S], 1 where value is padding and counts as zero; or null
  const int64_t* order;  // [Q]: the queries in the order in which step 6 visits them
  int64_t backwards;     // 1: visit everything in reverse order, to see whether sums depend on it

  int32_t* rows;   // step 3 alone: [B, Q, M, 4, K]
  float* weights;  // step 3 alone: [B, Q, M, 4, K]
  void* output;    // T [B, Q, M, D]

  const void* grad_output;  // T [B, Q, M, D]
  void* grad_value;         // T [B, S, M, D], zeros
  void* grad_offsets;       // T [B, Q, M, K, 2]
  void* grad_logits;        // T [B, Q, M, K]
  float* grad_frame;        // [B, Q, M, L, 4], zeros

  int64_t item(int64_t b, int64_t q, int64_t m) const { return (b * Q + q) * M + m; }
  int64_t turn(int64_t i, int64_t n) const { return backwards ? n - 1 - i : i; }
};
