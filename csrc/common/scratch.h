// Pieces of a task's scratch memory.
#pragma once

#include "simd.h"

namespace dino_kernels::DINO_CPU_VARIANT {

DINO_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Hands out 64-byte aligned pieces; with a null base it only measures.
struct Scratch {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    char* piece = base + used;
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(piece);
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
