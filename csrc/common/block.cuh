// What kernels have in common about the threads and the memory of a block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dino_kernels {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Hands out pieces of memory, 16-byte aligned; with a null base it only measures.
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
