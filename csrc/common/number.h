// What templates over "a number, or a vector of them" need to know about it.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DINO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DINO_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace dino_kernels {

template <class Real>
struct Number;  // vectors: see simd.h

template <>
struct Number<float> {
  using Element = float;
  using Int = int32_t;
  static DINO_HOST_DEVICE Int truncate(float x) { return static_cast<Int>(x); }
  static DINO_HOST_DEVICE float from(Int i) { return static_cast<float>(i); }
};

template <>
struct Number<double> {
  using Element = double;
  using Int = int64_t;
  static DINO_HOST_DEVICE Int truncate(double x) { return static_cast<Int>(x); }
  static DINO_HOST_DEVICE double from(Int i) { return static_cast<double>(i); }
};

}  // namespace dino_kernels
