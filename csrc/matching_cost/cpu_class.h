// The class cost of a vector of queries with the labels of their image: one query per lane. A focal cost
// reads only the logits of those labels.
#pragma once

#include <type_traits>

#include "../common/channels.h"
#include "../common/exp_log.h"
#include "params.h"

namespace dino_kernels::DINO_CPU_VARIANT {

using Floats = Vector<float>;
constexpr int kQueries = kLanes<float>;

// Numbers `stride` apart, as float32; lanes after the first `count` repeat the last one.
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

// Focal loss of the class as a positive minus as a negative; see `focal_cost` in reference.py.
template <bool kSquares, bool kEps>
struct FocalCost {
  float gamma, eps, positive_weight, negative_weight;

  explicit FocalCost(const CostFormula& f)
      : gamma(f.gamma),
        eps(f.class_eps),
        positive_weight(f.class_weight * f.alpha),
        negative_weight(f.class_weight * (1.0f - f.alpha)) {}

  // p^gamma, given -log(p), for any sign of gamma.
  DINO_INLINE Floats power(Floats minus_log) const {
    const Floats exponent = -gamma * minus_log;
    const Floats bounded = exp_of_nonpositive<float>(-absolute<float>(exponent));
    return exponent > 0.0f ? 1.0f / bounded : bounded;
  }

  // From logits to costs. Of the probability and its complement, one is larger and one smaller; which is
  // which matters only at the end.
  template <int kCount>
  DINO_INLINE void operator()(Floats (&x)[kCount]) const {
    Floats odds[kCount], sum[kCount], larger[kCount], smaller[kCount], logs[2 * kCount];
    DINO_EACH odds[k] = -absolute<float>(x[k]);
    exp_of_nonpositive<float>(odds);
    DINO_EACH sum[k] = 1.0f + odds[k];
    DINO_EACH larger[k] = 1.0f / sum[k];
    DINO_EACH smaller[k] = odds[k] * larger[k];
    Floats minus_log_larger[kCount], minus_log_smaller[kCount];
    if constexpr (!kSquares || !kEps) {
      DINO_EACH minus_log_larger[k] = sum[k];
      logarithm(minus_log_larger);
      DINO_EACH minus_log_larger[k] += odds[k] - (sum[k] - 1.0f);  // rounding error of 1 + odds
      DINO_EACH minus_log_smaller[k] = minus_log_larger[k] + absolute<float>(x[k]);
    }
    if constexpr (kEps) {
      DINO_EACH logs[k] = larger[k] + eps;
      DINO_EACH logs[kCount + k] = smaller[k] + eps;
      logarithm(logs);
    } else {
      DINO_EACH logs[k] = -minus_log_larger[k];
      DINO_EACH logs[kCount + k] = -minus_log_smaller[k];
    }
    DINO_EACH larger[k] = kSquares ? larger[k] * larger[k] : power(minus_log_larger[k]);
    DINO_EACH smaller[k] = kSquares ? smaller[k] * smaller[k] : power(minus_log_smaller[k]);
    DINO_EACH smaller[k] *= logs[k];
    DINO_EACH larger[k] *= logs[kCount + k];
    const Floats positive = broadcast(-positive_weight), negative = broadcast(negative_weight);
    DINO_EACH {
      const auto is_positive = x[k] >= 0.0f;
      const Floats other = (is_positive ? negative : positive) * larger[k];
      x[k] = (is_positive ? positive : negative) * smaller[k] + other;
    }
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

}  // namespace dino_kernels::DINO_CPU_VARIANT
