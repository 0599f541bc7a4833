// The class cost of a vector of queries with the labels of their image: one query a lane. Of the logits, a
// focal cost reads those labels' only.
#pragma once

#include <type_traits>

#include "../common/channels.h"
#include "params.h"

namespace dino_kernels::DINO_CPU_VARIANT {

using Floats = Vector<float>;
constexpr int kQueries = kLanes<float>;

// Numbers that lie `stride` apart, as float32; lanes past `count` of them repeat the last.
template <class T>
DINO_INLINE Floats load_strided(const T* from, int64_t stride, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    constexpr int64_t kMostStride = int64_t{1} << 24;  // of 32-bit indices
    if (stride < kMostStride) {
      const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i last = _mm512_set1_epi32(static_cast<int>(count < kQueries ? count - 1 : kQueries - 1));
      const __m512i index =
          _mm512_mullo_epi32(_mm512_min_epi32(lane, last), _mm512_set1_epi32(static_cast<int>(stride)));
      return (Floats)_mm512_i32gather_ps(index, from, 4);
    }
  }
#endif
  using Staged = std::conditional_t<std::is_same_v<T, double>, float, T>;
  Staged staged[kQueries];
  if (count >= kQueries) {
#pragma GCC unroll 16
    for (int i = 0; i < kQueries; ++i) staged[i] = static_cast<Staged>(from[i * stride]);
  } else {
    for (int i = 0; i < kQueries; ++i)
      staged[i] = static_cast<Staged>(from[(i < count ? i : count - 1) * stride]);
  }
  return widen(staged);
}

// Focal loss of the class as positive minus as negative; see `focal_cost` in reference.py.
template <bool kSquares, bool kEps>
struct FocalCost {
  float gamma, eps, positive_weight, negative_weight;

  explicit FocalCost(const CostFormula& f)
      : gamma(f.gamma),
        eps(f.class_eps),
        positive_weight(f.class_weight * f.alpha),
        negative_weight(f.class_weight * (1.0f - f.alpha)) {}

  // e^(-gamma y), for any sign of gamma.
  DINO_INLINE Floats power(Floats y) const {
    const Floats exponent = -gamma * y;
    const Floats bounded = exp_of_nonpositive<float>(-absolute<float>(exponent));
    return exponent > 0.0f ? 1.0f / bounded : bounded;
  }

  // `chosen` tells which queries are finite.
  DINO_INLINE Floats operator()(Floats logit, Floats& chosen) const {
    chosen = logit;
    const Floats odds = exp_of_nonpositive<float>(-absolute<float>(logit));
    const Floats larger = 1.0f / (1.0f + odds), smaller = odds * larger;
    const Floats probability = logit >= 0.0f ? larger : smaller, opposite = logit >= 0.0f ? smaller : larger;
    Floats positive, negative;  // minus the logarithms of probability and opposite
    if constexpr (!kSquares || !kEps) {
      const Floats sum = 1.0f + odds;
      const Floats softplus = logarithm(sum) + (odds - (sum - 1.0f));
      positive = softplus + (logit < 0.0f ? -logit : Floats{});
      negative = softplus + (logit > 0.0f ? logit : Floats{});
    }
    const Floats probability_power = kSquares ? probability * probability : power(positive);
    const Floats opposite_power = kSquares ? opposite * opposite : power(negative);
    if constexpr (kEps) {
      positive = -logarithm(probability + eps);
      negative = -logarithm(opposite + eps);
    }
    return positive_weight * opposite_power * positive - negative_weight * probability_power * negative;
  }
};

// The largest logit of a query, and the sum of e^(logit - largest).
template <class T>
DINO_INLINE void softmax_of_row(const T* logits, int64_t C, float& largest, float& sum) {
  const auto load = [&](int64_t c) { return load_strided(logits + c, 1, C - c); };
  Floats most = load(0);
  for (int64_t c = kQueries; c < C; c += kQueries) {
    const Floats v = load(c);
    most = v > most ? v : most;
  }
  most = max_of_lanes<float>(most);
  Floats sums{};
  int64_t c = 0;
  for (; c + kQueries <= C; c += kQueries) sums += exp_of_nonpositive<float>(load(c) - most);
  if (c < C) {
    const Floats e = exp_of_nonpositive<float>(load(c) - most);
    for (int64_t i = 0; c + i < C; ++i) sums[0] += e[i];
  }
  largest = most[0];
  sum = sum_of_lanes<float>(sums)[0];
}

// Minus the probability that a softmax gives.
struct SoftmaxCost {
  const CostFormula& f;
  Floats largest, sum;

  DINO_INLINE Floats operator()(Floats logit, Floats& chosen) const {
    chosen = exp_of_nonpositive<float>(logit - largest) / sum;
    return -f.class_weight * chosen;
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
