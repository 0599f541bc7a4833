// Helpers for the threads and the memory of a block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dino_kernels {

constexpr unsigned kWholeWarp = 0xffffffffu;

#if defined(__CUDACC__)
#define DINO_NEVER_INLINE __noinline__
#else
#define DINO_NEVER_INLINE __attribute__((noinline))
#endif

// Hides the origin of a pointer from the compiler, which then keeps it in registers unchanged. Otherwise it
// would split a base address into a kernel parameter and an offset, and add them at every use.
template <class Byte>
__device__ __forceinline__ Byte* kept_whole(Byte* base) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(base));
#endif
  return base;
}

// base + row * stride, in one instruction if the base was kept_whole(). Use it with __ldg, __stcg,
// as_global() and the like: the compiler no longer sees that it is global memory.
template <class Byte>
__device__ __forceinline__ Byte* row_address(Byte* base, uint32_t row, uint32_t stride) {
  static_assert(sizeof(Byte) == 1);
#if defined(__CUDA_ARCH__)
  uint64_t offset;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(offset) : "r"(row), "r"(stride));
  return base + offset;
#else
  return base + uint64_t{row} * stride;
#endif
}

// Hands out 16-byte aligned pieces of memory; with a null base it only measures.
struct Carver {
  unsigned char* base;
  int64_t used = 0;
  template <class U>
  __host__ __device__ U* take(int64_t count) {
    U* piece = reinterpret_cast<U*>(base + used);
    used += (count * static_cast<int64_t>(sizeof(U)) + 15) / 16 * 16;
    return piece;
  }
};

}  // namespace dino_kernels
