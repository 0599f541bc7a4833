// Exponential and logarithm of vectors.
#pragma once

#include "simd.h"

namespace dino_kernels::DINO_CPU_VARIANT {

// Functions of several vectors, in place. Each step is applied to all of them before the next, so that their
// long chains of dependent steps overlap further than a processor looks ahead.
#define DINO_EACH for (int k = 0; k < kCount; ++k)

// e^x for x <= 0, as in a softmax: 0 below the smallest normal number, NaN stays NaN. Cody-Waite reduction to
// |r| <= ln(2) / 2, then the Taylor series up to the last significant term.
template <class A, int kCount>
DINO_INLINE void exp_of_nonpositive(Vector<A> (&x)[kCount]) {
  constexpr bool kDouble = sizeof(A) == 8;
  constexpr A kSmallest = kDouble ? A(-708.0) : A(-87.0);
  constexpr A kLog2e = A(1.44269504088896340736);
  constexpr A kLn2High = kDouble ? A(6.93147180369123816490e-01) : A(0.693359375);
  constexpr A kLn2Low = kDouble ? A(1.90821492927058770002e-10) : A(-2.12194440054690583e-4);
  constexpr A kOneOverFactorial[] = {A(1.0 / 6227020800.0),
                                     A(1.0 / 479001600.0),
                                     A(1.0 / 39916800.0),
                                     A(1.0 / 3628800.0),
                                     A(1.0 / 362880.0),
                                     A(1.0 / 40320.0),
                                     A(1.0 / 5040.0),
                                     A(1.0 / 720.0),
                                     A(1.0 / 120.0),
                                     A(1.0 / 24.0),
                                     A(1.0 / 6.0),
                                     A(0.5),
                                     A(1),
                                     A(1)};
  constexpr int kFirst = kDouble ? 0 : 6;
  Vector<Integer<A>> vanishes[kCount], exponent[kCount];
  Vector<A> n[kCount], r[kCount], e[kCount];
  DINO_EACH vanishes[k] = x[k] < kSmallest;
  DINO_EACH x[k] = vanishes[k] ? Vector<A>{} : x[k];
  // Truncation of a non-positive number: rounds.
  DINO_EACH exponent[k] = __builtin_convertvector(x[k] * kLog2e - A(0.5), Vector<Integer<A>>);
  DINO_EACH n[k] = Number<Vector<A>>::from(exponent[k]);
  DINO_EACH r[k] = x[k] - n[k] * kLn2High;
  DINO_EACH r[k] = r[k] - n[k] * kLn2Low;
  DINO_EACH e[k] = broadcast(kOneOverFactorial[kFirst]);
#pragma GCC unroll 16
  for (int term = kFirst + 1; term < 14; ++term) DINO_EACH e[k] = e[k] * r[k] + kOneOverFactorial[term];
  constexpr int kMantissa = kDouble ? 52 : 23, kBias = kDouble ? 1023 : 127;
  DINO_EACH r[k] = bit_cast<Vector<A>>((exponent[k] + kBias) << kMantissa);
  DINO_EACH x[k] = vanishes[k] ? Vector<A>{} : e[k] * r[k];
}
template <class A>
DINO_INLINE Vector<A> exp_of_nonpositive(Vector<A> x) {
  Vector<A> one[] = {x};
  exp_of_nonpositive<A>(one);
  return one[0];
}

// The natural logarithm of a positive normal number. 0 and denormal numbers count as the smallest normal one,
// and NaN is not preserved. With x = m 2^n and m in [sqrt(1/2), sqrt(2)), log(m) = f - f^2 / 2 + f^3 R(f) for
// f = m - 1, and R from Cephes' logf.
template <int kCount>
DINO_INLINE void logarithm(Vector<float> (&x)[kCount]) {
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kR[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                          -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                          2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  constexpr int32_t kRootHalf = 0x3f3504f3;  // bits of sqrt(1/2)
  Vector<int32_t> bits[kCount], exponent[kCount];
  Vector<float> n[kCount], f[kCount], r[kCount], square[kCount];
  DINO_EACH bits[k] = bit_cast<Vector<int32_t>>(max_of(x[k], broadcast(0x1p-126f)));
  DINO_EACH exponent[k] = (bits[k] - kRootHalf) >> 23;
  DINO_EACH n[k] = __builtin_convertvector(exponent[k], Vector<float>);
  DINO_EACH f[k] = bit_cast<Vector<float>>(bits[k] - (exponent[k] << 23)) - 1.0f;
  DINO_EACH r[k] = broadcast(kR[0]);
#pragma GCC unroll 8
  for (int term = 1; term < 9; ++term) DINO_EACH r[k] = r[k] * f[k] + kR[term];
  DINO_EACH square[k] = f[k] * f[k];
  DINO_EACH x[k] = n[k] * kLn2Low - 0.5f * square[k];
  DINO_EACH x[k] = (f[k] * square[k]) * r[k] + x[k];
  DINO_EACH x[k] = (f[k] + x[k]) + n[k] * kLn2High;
}

}  // namespace dino_kernels::DINO_CPU_VARIANT
