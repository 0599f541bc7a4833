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
  using Mask = bool;  // of a comparison
  static DINO_HOST_DEVICE float from(Int i) { return static_cast<float>(i); }
  static DINO_HOST_DEVICE Int floor(float x) {
#if defined(__CUDA_ARCH__)
    return __float2int_rd(x);
#else
    const Int truncated = static_cast<Int>(x);
    return x < from(truncated) ? truncated - 1 : truncated;
#endif
  }
};

template <>
struct Number<double> {
  using Element = double;
  using Int = int64_t;
  using Mask = bool;
  static DINO_HOST_DEVICE double from(Int i) { return static_cast<double>(i); }
  static DINO_HOST_DEVICE Int floor(double x) {
#if defined(__CUDA_ARCH__)
    return __double2ll_rd(x);
#else
    const Int truncated = static_cast<Int>(x);
    return x < from(truncated) ? truncated - 1 : truncated;
#endif
  }
};

}  // namespace dino_kernels
