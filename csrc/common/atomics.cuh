// Sums in global memory with many contributing threads: in floating point, or in fixed point if the result
// must not depend on the order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dino_kernels {

// The compiler cannot prove for every pointer that it points to global memory. Without this it would test
// each address and emit slower atomics for shared memory as well.
template <class U>
__device__ __forceinline__ U* as_global(U* to) {
  __builtin_assume(__isGlobal(to));
  return to;
}

// Whether one request to the L2 cache can carry four sums (sm_90 or newer).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kFourAtOnce = false;
#else
constexpr bool kFourAtOnce = true;
#endif

// A template, because older architectures do not declare the function.
template <class Four>
__device__ __forceinline__ void add_at_once(float* to, Four numbers) {
  atomicAdd(reinterpret_cast<Four*>(as_global(to)), numbers);
}

// to[0..3] += numbers, each atomically. `to` is global memory, aligned to 16 bytes.
template <bool kAtOnce = kFourAtOnce>
__device__ __forceinline__ void add_four(float* to, float a, float b, float c, float d) {
  if constexpr (kAtOnce) {
    add_at_once(to, make_float4(a, b, c, d));
  } else {
    to = as_global(to);
    atomicAdd(to, a);
    atomicAdd(to + 1, b);
    atomicAdd(to + 2, c);
    atomicAdd(to + 3, d);
  }
}

// to[i] += numbers[i], each element atomically, in global memory.
template <int V>
__device__ __forceinline__ void add_floats(float* to, const float (&numbers)[V]) {
  if constexpr (V % 4 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      add_four(to + i, numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) atomicAdd(as_global(to) + i, numbers[i]);
  }
}
template <int V>
__device__ __forceinline__ void add_floats(double* to, const double (&numbers)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) atomicAdd(as_global(to) + i, numbers[i]);
}

// Integer sums do not depend on their order. A number is added as round(number * scale), with a power of two
// for scale that leaves room for the largest sum. A number that cannot be represented (NaN, an infinity)
// leaves kPoison, which no later addition brings back into range.
constexpr long long kPoison = -9223372036854775807LL - 1;
constexpr double kLargestSum = 0x1p62;

__device__ __forceinline__ void add_integer(long long* to, long long number) {
  // In two's complement the unsigned add equals the signed one, and hardware has only the unsigned one.
  atomicAdd(reinterpret_cast<unsigned long long*>(as_global(to)), static_cast<unsigned long long>(number));
}

__device__ __forceinline__ void poison_integer(long long* to) { atomicMin(as_global(to), kPoison); }

// float32: one integer. Its last bit is 2^-62 of the bound of the sum, far below a rounding of any relevant
// sum.
__device__ __forceinline__ void add_fixed(long long* to, float number, float scale, float) {
  const float scaled = number * scale;
  if (fabsf(scaled) < static_cast<float>(kLargestSum)) {
    add_integer(to, __float2ll_rn(scaled));
  } else {
    poison_integer(to);
  }
}

// float64: a second integer for the remainder of the first, `fine_scale` times finer.
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

// 1 / scale, for a power of two whose inverse is also a normal number, as for every scale. The two exponents
// add up to twice the bias.
__device__ __forceinline__ double inverse_scale(double scale) {
  return __longlong_as_double((2046LL << 52) - __double_as_longlong(scale));
}

// The sum that add_fixed accumulated with these scales; NaN if it is poisoned, or if a scale is NaN because
// the bound of the sums was not finite.
__device__ __forceinline__ float from_fixed(const long long* sum, float scale, float) {
  if (is_poisoned(sum[0]) || scale != scale) return NAN;
  return static_cast<float>(__ll2double_rn(sum[0]) * inverse_scale(scale));
}
__device__ __forceinline__ double from_fixed(const long long* sum, double scale, double fine_scale) {
  if (is_poisoned(sum[0]) || scale != scale) return NAN;
  return (__ll2double_rn(sum[0]) + __ll2double_rn(sum[1]) * inverse_scale(fine_scale)) * inverse_scale(scale);
}

}  // namespace dino_kernels
