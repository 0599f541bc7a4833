// The lowest of many numbers, and of equal ones the one with the lowest index: over a warp or a block.
//
// Numbers are compared as integers of the same order, which three warp-wide instructions can reduce; shuffles
// would take fifteen. They must not be NaN; -0 counts as 0.
#pragma once

#include <cstring>
#include <limits>

#include "../common/block.cuh"

namespace dino_kernels {

constexpr uint32_t kNoIndex = 0xffffffffu;
constexpr int kMaxWarps = 16;

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Index of the lowest number so far; initially none.
template <class T>
struct Lowest {
  T value = kInfinity<T>;
  uint32_t index = kNoIndex;

  // Adds a number; indices must ascend.
  __device__ __forceinline__ void see(T other, uint32_t at) {
    if (other < value) {
      value = other;
      index = at;
    }
  }
  // Adds a number; indices in any order.
  __device__ __forceinline__ void see_any(T other, uint32_t at) {
    if (other < value || (other == value && at < index)) {
      value = other;
      index = at;
    }
  }
};

__device__ __forceinline__ uint32_t to_order(float x) {
  x += 0.0f;  // no -0
  int32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u);
}
__device__ __forceinline__ float from_order(uint32_t order) {
  const uint32_t bits = order & 0x80000000u ? order ^ 0x80000000u : ~order;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}
__device__ __forceinline__ uint64_t to_order(double x) {
  x += 0.0;
  int64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint64_t>(bits) ^ (static_cast<uint64_t>(bits >> 63) | uint64_t{1} << 63);
}
__device__ __forceinline__ double from_order(uint64_t order) {
  const uint64_t bits = order >> 63 ? order ^ uint64_t{1} << 63 : ~order;
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// By whole warps; every lane gets the result.
__device__ __forceinline__ Lowest<float> lowest_of_warp(const Lowest<float>& own) {
  const uint32_t order = to_order(own.value);
  const uint32_t lowest = __reduce_min_sync(kWholeWarp, order);
  return {from_order(lowest), __reduce_min_sync(kWholeWarp, order == lowest ? own.index : kNoIndex)};
}
__device__ __forceinline__ Lowest<double> lowest_of_warp(const Lowest<double>& own) {
  const uint64_t order = to_order(own.value);
  const uint32_t high = static_cast<uint32_t>(order >> 32), low = static_cast<uint32_t>(order);
  const uint32_t lowest_high = __reduce_min_sync(kWholeWarp, high);
  const uint32_t lowest_low = __reduce_min_sync(kWholeWarp, high == lowest_high ? low : kNoIndex);
  const uint64_t lowest = uint64_t{lowest_high} << 32 | lowest_low;
  return {from_order(lowest), __reduce_min_sync(kWholeWarp, order == lowest ? own.index : kNoIndex)};
}

// The lane with the lowest number, the first of equals.
__device__ __forceinline__ int lowest_lane(double own) {
  const uint64_t order = to_order(own);
  const uint32_t high = static_cast<uint32_t>(order >> 32), low = static_cast<uint32_t>(order);
  const uint32_t lowest_high = __reduce_min_sync(kWholeWarp, high);
  unsigned lanes = __ballot_sync(kWholeWarp, high == lowest_high);
  if (lanes & (lanes - 1)) {  // the upper halves of several are equal
    const uint32_t rest = high == lowest_high ? low : kNoIndex;
    const uint32_t lowest_low = __reduce_min_sync(kWholeWarp, rest);
    lanes &= __ballot_sync(kWholeWarp, rest == lowest_low);
  }
  return __ffs(static_cast<int>(lanes)) - 1;
}

// Over a block, with one barrier. Two sets of parts alternate: a thread that writes a set has passed the
// barrier that all threads reach only after reading it.
class BlockLowest {
 public:
  struct Shared {
    double value[2][kMaxWarps];
    uint32_t index[2][kMaxWarps];
  };
  __device__ explicit BlockLowest(Shared& shared) : shared_(shared) {}

  // By all threads; ends with a barrier, and every thread has the result.
  __device__ Lowest<double> operator()(const Lowest<double>& own) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const Lowest<double> of_warp = lowest_of_warp(own);
    if (lane == 0) {
      shared_.value[set_][warp] = of_warp.value;
      shared_.index[set_][warp] = of_warp.index;
    }
    __syncthreads();
    Lowest<double> part;
    if (lane < warps) part = {shared_.value[set_][lane], shared_.index[set_][lane]};
    set_ ^= 1;
    return lowest_of_warp(part);
  }

 private:
  Shared& shared_;
  int set_ = 0;
};

}  // namespace dino_kernels
