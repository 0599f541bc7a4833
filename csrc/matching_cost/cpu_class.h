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

// In registers: a vector that is loaded from several smaller stores waits for all of them.
template <class T, int... kLane>
DINO_INLINE Floats load_lanes(const T* from, int64_t stride, std::integer_sequence<int, kLane...>) {
  return Floats{static_cast<float>(from[kLane * stride])...};
}

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
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
    if (count >= kQueries) return load_lanes(from, stride, std::make_integer_sequence<int, kQueries>{});
  }
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

// The same for gamma = 2 and an eps that is 0 or at most kMostEps. With t = e^-|x|, both logarithms follow
// from log(1 + t), and so do the probability, 1 / (1 + t), and its complement, t / (1 + t):
//
//   cost = (a (|x| + log(1 + t) - c) + b t^2 log(1 + t)) / (1 + t)^2,   c = log(1 + eps (1 + 1 / t)),
//
// where a and b are the weights of the class that x speaks against and for. Added to the larger probability,
// eps is less than half of its last bit.
template <bool kEps>
struct SquaredFocalCost {
  static constexpr float kMostEps = 1e-8f;
  static constexpr float kMostLogit = 14.0f;  // here c is at most 0.012, and its series has an error of 5e-9
  FocalCost<true, kEps> general;

  explicit SquaredFocalCost(const CostFormula& f) : general(f) {}

  template <int kCount>
  DINO_INLINE void operator()(Floats (&x)[kCount]) const {
    Floats size[kCount], t[kCount], inverse[kCount], log[kCount], cost[kCount];
    Vector<int32_t> large[kCount];
    DINO_EACH size[k] = absolute<float>(x[k]);
    exp_of_minus(size, t, inverse);
    logarithm_of_1_plus(t, log);
    const Floats positive = broadcast(general.positive_weight),
                 negative = broadcast(-general.negative_weight);
    DINO_EACH {
      const auto is_positive = x[k] >= 0.0f;
      const Floats a = is_positive ? negative : positive, b = is_positive ? positive : negative;
      Floats minus_log = size[k] + log[k];
      if constexpr (kEps) {
        const Floats c = general.eps + general.eps * inverse[k];
        minus_log -= c + (c * c) * (c * (1.0f / 3.0f) - 0.5f);
      }
      const Floats larger = 1.0f / (1.0f + t[k]);
      cost[k] = (a * minus_log + (b * log[k]) * (t[k] * t[k])) * (larger * larger);
    }
    if constexpr (kEps) {
      Vector<int32_t> any{};
      DINO_EACH {
        large[k] = size[k] > kMostLogit;
        any |= large[k];
      }
      if (bits_of(any) != 0) {
        general(x);
        DINO_EACH cost[k] = large[k] ? x[k] : cost[k];
      }
    }
    DINO_EACH x[k] = cost[k];
  }

 private:
  // e^-x and e^x for x >= 0, of which larger ones count as 87, by the even and the odd part of the series.
  template <int kCount>
  static DINO_INLINE void exp_of_minus(const Floats (&x)[kCount], Floats (&of_minus)[kCount],
                                       Floats (&of_plus)[kCount]) {
    constexpr float kLog2e = 1.44269504088896340736f, kLn2High = 0.693359375f,
                    kLn2Low = -2.12194440054690583e-4f;
    Vector<int32_t> exponent[kCount];
    Floats r[kCount], square[kCount], even[kCount], odd[kCount];
    DINO_EACH r[k] = min_of(x[k], broadcast(87.0f));
    DINO_EACH exponent[k] = __builtin_convertvector(r[k] * kLog2e + 0.5f, Vector<int32_t>);
    DINO_EACH of_plus[k] = __builtin_convertvector(exponent[k], Floats);
    DINO_EACH r[k] = (r[k] - of_plus[k] * kLn2High) - of_plus[k] * kLn2Low;
    DINO_EACH square[k] = r[k] * r[k];
    DINO_EACH even[k] = (square[k] * (1.0f / 720.0f) + 1.0f / 24.0f) * square[k] + 0.5f;
    DINO_EACH odd[k] = (square[k] * (1.0f / 5040.0f) + 1.0f / 120.0f) * square[k] + 1.0f / 6.0f;
    DINO_EACH even[k] = even[k] * square[k] + 1.0f;
    DINO_EACH odd[k] = (odd[k] * square[k] + 1.0f) * r[k];
    DINO_EACH of_minus[k] = (even[k] - odd[k]) * bit_cast<Floats>((127 - exponent[k]) << 23);
    DINO_EACH of_plus[k] = (even[k] + odd[k]) * bit_cast<Floats>((127 + exponent[k]) << 23);
  }

  // log(1 + x) for x in 0..1: minimax polynomial with a relative error of 5e-9, its odd and even part side by
  // side.
  template <int kCount>
  static DINO_INLINE void logarithm_of_1_plus(const Floats (&x)[kCount], Floats (&log)[kCount]) {
    constexpr float kP[] = {-3.2440137893791493e-3f, 1.9851410544912892e-2f, -5.6959435282082124e-2f,
                            1.06036445818188e-1f,    -1.530558622652633e-1f, 1.9675693686908655e-1f,
                            -2.4954133148774849e-1f, 3.332996235785454e-1f,  -4.999990241972021e-1f,
                            9.999999952867621e-1f};
    Floats square[kCount], even[kCount];
    DINO_EACH square[k] = x[k] * x[k];
    DINO_EACH log[k] = square[k] * kP[0] + kP[2];
    DINO_EACH even[k] = square[k] * kP[1] + kP[3];
#pragma GCC unroll 16
    for (int term = 4; term < 10; term += 2) {
      DINO_EACH log[k] = log[k] * square[k] + kP[term];
      DINO_EACH even[k] = even[k] * square[k] + kP[term + 1];
    }
    DINO_EACH log[k] = log[k] * x[k] + even[k];
    DINO_EACH log[k] *= x[k];
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
