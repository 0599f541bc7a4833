// Pointers that the compiler must keep instead of computing them again from their parts.
#pragma once

#include <cuda_runtime.h>

namespace dino_kernels {

// Makes the origin of `x` unknown: what is added to it later is not added to its parts instead. Loads from it
// need __ldg, or else they are generic ones.
template <class T>
__device__ __forceinline__ void forget_origin(T*& x) {
#if defined(__CUDACC__)
  asm("" : "+l"(x));
#endif
  (void)x;
}

}  // namespace dino_kernels
