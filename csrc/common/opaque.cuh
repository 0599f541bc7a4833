// Numbers that the compiler must keep instead of computing them again from their parts.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dino_kernels {

// Makes the origin of `x` unknown. Without it, what a loop needs is often computed anew in every round from
// the kernel's parameters, to save a register.
__device__ __forceinline__ void forget_origin(int32_t& x) {
#if defined(__CUDACC__)
  asm("" : "+r"(x));
#endif
  (void)x;
}
__device__ __forceinline__ void forget_origin(int64_t& x) {
#if defined(__CUDACC__)
  asm("" : "+l"(x));
#endif
  (void)x;
}
__device__ __forceinline__ void forget_origin(float& x) {
#if defined(__CUDACC__)
  asm("" : "+f"(x));
#endif
  (void)x;
}
template <class T>
__device__ __forceinline__ void forget_origin(T*& x) {
#if defined(__CUDACC__)
  asm("" : "+l"(x));
#endif
  (void)x;
}

}  // namespace dino_kernels
