// Sums in global memory that many threads add to: in floating point, or in fixed point where the result must
// not depend on the order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dino_kernels {

// to[0..3] += numbers: from sm_90 on they travel to the L2 cache as one request. `to` is aligned to 16 bytes.
__device__ __forceinline__ void add_four(float* to, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

// to[i] += numbers[i], each element atomically.
template <int V>
__device__ __forceinline__ void add_floats(float* to, const float (&numbers)[V]) {
  if constexpr (V % 4 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      add_four(to + i, numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) atomicAdd(to + i, numbers[i]);
  }
}
template <int V>
__device__ __forceinline__ void add_floats(double* to, const double (&numbers)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) atomicAdd(to + i, numbers[i]);
}

// Integer sums do not depend on their order. A number is added as round(number * scale), with a power of two
// for scale that leaves room for the largest sum; what cannot be represented (NaN, an infinity) leaves
// kPoison, which no later addition brings back into the range of numbers.
constexpr long long kPoison = -9223372036854775807LL - 1;
constexpr double kLargestSum = 0x1p62;

__device__ __forceinline__ void add_integer(long long* to, long long number) {
  // Two's complement: the unsigned add is the signed one, and the one that the hardware has.
#if defined(__CUDA_ARCH__)
  asm volatile("red.global.add.u64 [%0], %1;" ::"l"(to), "l"(number) : "memory");
#else
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(number));
#endif
}

__device__ __forceinline__ void poison_integer(long long* to) {
#if defined(__CUDA_ARCH__)
  asm volatile("red.global.min.s64 [%0], %1;" ::"l"(to), "l"(kPoison) : "memory");
#else
  atomicMin(to, kPoison);
#endif
}

// float32: one integer. Its last bit is 2^-62 of the bound of the sum, far below a rounding of any sum that
// matters.
__device__ __forceinline__ void add_fixed(long long* to, float number, float scale, float) {
  const float scaled = number * scale;
  if (fabsf(scaled) < static_cast<float>(kLargestSum)) {
    add_integer(to, __float2ll_rn(scaled));
  } else {
    poison_integer(to);
  }
}

// float64: a second integer for what the first leaves over, `fine_scale` times finer.
__device__ __forceinline__ void add_fixed(long long* to, double number, double scale, double fine_scale) {
  const double scaled = number * scale;
  if (fabs(scaled) < kLargestSum) {
    const long long coarse = __double2ll_rn(scaled);
    add_integer(to, coarse);
    add_integer(to + 1, __double2ll_rn((scaled - __ll2double_rn(coarse)) * fine_scale));
  } else {
    poison_integer(to);
  }
}

__device__ __forceinline__ bool is_poisoned(long long sum) {
  constexpr long long kLargest = static_cast<long long>(kLargestSum);
  return sum < -kLargest || sum > kLargest;
}

__device__ __forceinline__ float from_fixed(const long long* sum, float scale, float) {
  return is_poisoned(sum[0]) ? NAN : static_cast<float>(__ll2double_rn(sum[0]) / scale);
}
__device__ __forceinline__ double from_fixed(const long long* sum, double scale, double fine_scale) {
  return is_poisoned(sum[0]) ? NAN : (__ll2double_rn(sum[0]) + __ll2double_rn(sum[1]) / fine_scale) / scale;
}

}  // namespace dino_kernels
