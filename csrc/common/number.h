// Traits for templates over "a number, or a vector of numbers".
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

// Of a scalar. Only CUDA sources call it, which have declared both functions. nvcc merges it with the
// conversion to an integer into one instruction (F2I.FLOOR).
template <class Real>
DINO_HOST_DEVICE Real round_down(Real x) {
  if constexpr (sizeof(Real) == 4) {
    return floorf(x);
  } else {
    return floor(x);
  }
}

template <class Real, class Integer>
struct ScalarNumber {
  using Element = Real;
  using Int = Integer;
  using Mask = bool;  // of a comparison
  static DINO_HOST_DEVICE Real from(Int i) { return static_cast<Real>(i); }
  static DINO_HOST_DEVICE Int floor(Real x) { return static_cast<Int>(round_down(x)); }
};
template <>
struct Number<float> : ScalarNumber<float, int32_t> {};
template <>
struct Number<double> : ScalarNumber<double, int64_t> {};

// The compute type of each storage type.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

}  // namespace dino_kernels
