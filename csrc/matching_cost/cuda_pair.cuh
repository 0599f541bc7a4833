// Cost of one pair: the formulas of dino_kernels/_matching.py, in float32.
#pragma once

#include <cuda_runtime.h>

#include "params.h"

namespace dino_kernels {

// A box as (cx, cy, w, h) and as corners; L1 needs the one, GIoU the other.
struct Box {
  float cx, cy, width, height;
  float left, top, right, bottom;
  float area;
};

__device__ __forceinline__ Box make_box(const float (&cxcywh)[4]) {
  const auto [cx, cy, width, height] = cxcywh;
  Box box{cx, cy, width, height, cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2, 0};
  box.area = (box.right - box.left) * (box.bottom - box.top);
  return box;
}

__device__ __forceinline__ float power(float x, float exponent) {
  return exponent == 2.0f ? x * x : powf(x, exponent);
}

// e^-|x| cannot overflow, and of sigmoid(x) and sigmoid(-x) neither is 1 minus the other, which would lose
// the small one.
__device__ __forceinline__ float focal_cost(float logit, const CostFormula& formula) {
  const float e = expf(-fabsf(logit));
  const float larger = 1.0f / (1.0f + e), smaller = e * larger;
  const float probability = logit >= 0 ? larger : smaller, opposite = logit >= 0 ? smaller : larger;
  float positive, negative;
  if (formula.class_eps > 0) {
    positive = -logf(probability + formula.class_eps);
    negative = -logf(opposite + formula.class_eps);
  } else {
    const float rest = log1pf(e);
    positive = fmaxf(-logit, 0.0f) + rest;
    negative = fmaxf(logit, 0.0f) + rest;
  }
  return formula.alpha * power(opposite, formula.gamma) * positive -
         (1.0f - formula.alpha) * power(probability, formula.gamma) * negative;
}

__device__ __forceinline__ float l1_distance(const Box& a, const Box& b) {
  return fabsf(a.cx - b.cx) + fabsf(a.cy - b.cy) + fabsf(a.width - b.width) + fabsf(a.height - b.height);
}

__device__ __forceinline__ float generalized_iou(const Box& a, const Box& b, float eps) {
  const float intersection = fmaxf(fminf(a.right, b.right) - fmaxf(a.left, b.left), 0.0f) *
                             fmaxf(fminf(a.bottom, b.bottom) - fmaxf(a.top, b.top), 0.0f);
  const float hull = fmaxf(fmaxf(a.right, b.right) - fminf(a.left, b.left), 0.0f) *
                     fmaxf(fmaxf(a.bottom, b.bottom) - fminf(a.top, b.top), 0.0f);
  const float join = a.area + b.area - intersection;
  return intersection / (join + eps) - (hull - join) / (hull + eps);
}

}  // namespace dino_kernels
