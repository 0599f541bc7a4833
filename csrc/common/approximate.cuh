// Single approximate instructions with an error that NVIDIA documents, for formulas that tolerate it.
// Subnormal arguments and results are flushed to 0.
//
// The emulation applies the largest documented error, so that the tolerance rule is tested with the worst
// result a GPU may return.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dino_kernels {

// 1 / x to one unit in the last place; 0 where |x| > 2^126.
__device__ __forceinline__ float reciprocal(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulation::approximate(x, 1.0f / emulation::flush(x), 0x1p-23f, 0);
#endif
}

// 2^x with a relative error of 2^-22; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_of(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulation::approximate(x, exp2f(emulation::flush(x)), 0x1p-22f, 0);
#endif
}

// The logarithm to base 2, to 2^-22; if x is not between 1/2 and 2, to a relative error of 2^-22.
__device__ __forceinline__ float log2_of(float x) {
#if defined(__CUDACC__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const bool near_one = x > 0.5f && x < 2.0f;
  return emulation::approximate(x, log2f(emulation::flush(x)), near_one ? 0 : 0x1p-22f,
                                near_one ? 0x1p-22f : 0);
#endif
}

// The same to 2^-22 plus a rounding, for a normal number: the exponent is exact.
__device__ __forceinline__ float log2_by_exponent(float x) {
  constexpr int32_t kRootHalf = 0x3f3504f3, kExponent = static_cast<int32_t>(0xff800000);
  const int32_t bits = __float_as_int(x), exponent = (bits - kRootHalf) & kExponent;
  return fmaf(static_cast<float>(exponent), 0x1p-23f, log2_of(__int_as_float(bits - exponent)));
}

}  // namespace dino_kernels
