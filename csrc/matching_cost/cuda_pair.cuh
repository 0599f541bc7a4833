// Cost of one pair: the formulas of dino_kernels/ops/_matching.py, in float32.
#pragma once

#include <cuda_runtime.h>

#include <limits>

#include "../common/approximate.cuh"
#include "params.h"

namespace dino_kernels {

constexpr float kInfinite = std::numeric_limits<float>::infinity();

// A box as (cx, cy, w, h) for L1 and as corners for GIoU.
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

// Not inlined, because exponents other than 2 are rare.
inline __device__ __attribute__((noinline)) float general_power(float x, float exponent) {
  return powf(x, exponent);
}

// The weighted focal cost of a logit x. e^-|x| cannot overflow, and neither sigmoid(x) nor sigmoid(-x) is
// computed as 1 minus the other, which would lose the small one.
//
// Only the logarithm near 1 is approximate, with an absolute error: its term is small beside the other one.
//
// kSquare: for gamma = 2 and an eps that is a normal number, as in nearly all formulas.
template <bool kSquare>
class FocalCost {
 public:
  static __device__ bool applies(const CostFormula& formula) {
    return !kSquare || (formula.gamma == 2.0f && formula.class_eps >= kSmallest);
  }

  __device__ explicit FocalCost(const CostFormula& formula)
      : gamma_(formula.gamma),
        eps_(formula.class_eps),
        positive_(formula.class_weight * formula.alpha),
        negative_(formula.class_weight * (1.0f - formula.alpha)) {
    if (kSquare || eps_ > 0) {  // to base 2, of numbers below 1
      positive_ *= -kLn2;
      negative_ *= -kLn2;
    }
  }

  __device__ __forceinline__ float operator()(float logit, int) const {
    const float e = expf(-fabsf(logit)), sum = 1.0f + e;
    const float guess = reciprocal(sum), larger = fmaf(guess, fmaf(-sum, guess, 1.0f), guess);
    const float smaller = e * larger;
    // For larger = max(p, 1 - p) and smaller = min; which one is p affects the weights only.
    float of_larger, of_smaller;
    if (kSquare || eps_ > 0) {
      of_larger = log2_of(at_least_smallest(larger + eps_));
      of_smaller = log2_by_exponent(at_least_smallest(smaller + eps_));
    } else {
      of_larger = kLn2 * log2_of(sum);
      of_smaller = fabsf(logit) + of_larger;
    }
    of_larger *= power(smaller);
    of_smaller *= power(larger);
    return logit >= 0 ? positive_ * of_larger - negative_ * of_smaller
                      : positive_ * of_smaller - negative_ * of_larger;
  }

 private:
  static constexpr float kLn2 = 0.693147180559945309f, kSmallest = 0x1p-126f;
  float gamma_, eps_, positive_, negative_;  // the last two: weights of the terms

  static __device__ __forceinline__ float at_least_smallest(float x) {
    return kSquare ? x : fmaxf(x, kSmallest);
  }
  __device__ __forceinline__ float power(float x) const {
    return kSquare || gamma_ == 2.0f ? x * x : general_power(x, gamma_);
  }
};

__device__ __forceinline__ float l1_distance(const Box& a, const Box& b) {
  return fabsf(a.cx - b.cx) + fabsf(a.cy - b.cy) + fabsf(a.width - b.width) + fabsf(a.height - b.height);
}

// Not inlined, because only boxes of extreme sizes need it.
inline __device__ __attribute__((noinline)) float difference_of_ratios(float a, float b, float c, float d) {
  return a / b - c / d;
}

// `b` is a valid box, so the hull has no negative side.
__device__ __forceinline__ float generalized_iou(const Box& a, const Box& b, float eps) {
  const float intersection = fmaxf(fminf(a.right, b.right) - fmaxf(a.left, b.left), 0.0f) *
                             fmaxf(fminf(a.bottom, b.bottom) - fmaxf(a.top, b.top), 0.0f);
  const float hull =
      (fmaxf(a.right, b.right) - fminf(a.left, b.left)) * (fmaxf(a.bottom, b.bottom) - fminf(a.top, b.top));
  const float join = a.area + b.area - intersection, rest = hull - join;
  const float per_join = reciprocal(join + eps), per_hull = reciprocal(hull + eps);
  // Neither is 0, infinite or NaN: both divisors are in the range of `reciprocal`.
  const float both = per_join * per_hull;
  if (both > 0 && both < kInfinite) return fmaf(-rest, per_hull, intersection * per_join);
  return difference_of_ratios(intersection, join + eps, rest, hull + eps);
}

}  // namespace dino_kernels
