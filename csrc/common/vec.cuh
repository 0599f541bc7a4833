// Loads and stores of V consecutive channels as numbers of the compute type, up to 16 bytes at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "number.h"

namespace dino_kernels {

using BFloat16 = __nv_bfloat16;
using Half = __half;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(Half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T narrow(typename Compute<T>::type x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ Half narrow<Half>(float x) {
  return __float2half_rn(x);
}

// V elements of T, moved in one instruction if V * sizeof(T) is 4, 8 or 16.
template <class T, int V>
struct alignas(V * sizeof(T)) Packed {
  T element[V];
};

template <class T, int V>
__device__ __forceinline__ Packed<T, V> load_packed(const T* from) {
  using Pack = Packed<T, V>;
  Pack pack;
  if constexpr (sizeof(Pack) == 16) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(&pack, &bits, 16);
  } else if constexpr (sizeof(Pack) == 8) {
    const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
    memcpy(&pack, &bits, 8);
  } else if constexpr (sizeof(Pack) == 4) {
    const uint32_t bits = __ldg(reinterpret_cast<const uint32_t*>(from));
    memcpy(&pack, &bits, 4);
  } else if constexpr (sizeof(Pack) == 2) {
    const unsigned short bits = __ldg(reinterpret_cast<const unsigned short*>(from));
    memcpy(&pack, &bits, 2);
  } else {
    pack = *reinterpret_cast<const Pack*>(from);
  }
  return pack;
}

template <class T, int V, class A>
__device__ __forceinline__ void widen(const Packed<T, V>& pack, A (&numbers)[V]) {
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 2) {
      uint32_t pair;
      memcpy(&pair, &pack.element[i], 4);
      if constexpr (std::is_same_v<T, BFloat16>) {
        // One shift and one mask for two numbers: a bfloat16 is the upper half of a float32.
        numbers[i] = __uint_as_float(pair << 16);
        numbers[i + 1] = __uint_as_float(pair & 0xffff0000u);
      } else {
        __half2 halves;
        memcpy(&halves, &pair, 4);
        const float2 wide = __half22float2(halves);
        numbers[i] = wide.x;
        numbers[i + 1] = wide.y;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) numbers[i] = widen(pack.element[i]);
  }
}

template <class T, int V, class A>
__device__ __forceinline__ void load_numbers(const T* from, A (&numbers)[V]) {
  widen<T, V>(load_packed<T, V>(from), numbers);
}

template <class T, int V, class A>
__device__ __forceinline__ void store_numbers(T* to, const A (&numbers)[V]) {
  Packed<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.element[i] = narrow<T>(numbers[i]);
  *reinterpret_cast<Packed<T, V>*>(to) = pack;
}

}  // namespace dino_kernels
