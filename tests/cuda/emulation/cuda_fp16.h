// IEEE half as storage: conversions and pairs. Rounds to nearest even; denormals, infinities and NaN are
// kept.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half v) {
  const uint32_t sign = (v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | magnitude << 13);
  // The multiplication moves the exponent's bias from 15 to 127, denormals included.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));
}
inline __half __float2half_rn(float v) {
  const uint32_t bits = __float_as_uint(v), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fffu;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more rounds to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // denormal: the addition aligns the mantissa and rounds it
    half = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}
inline __half __float2half(float v) { return __float2half_rn(v); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
