// The gradient of value: four rows of every sample gain weight * grad_output. Three ways to add them up:
//
// - Rows one by one: vectors of floating-point adds in global memory. For few samples, or scattered ones.
// - A tile of queries together: the block lists by row what its tile adds, sums each row's list in registers,
// and
//   adds every distinct row to global memory once. In an encoder neighbouring queries sample the same rows.
// - In fixed point, one by one: integer sums are the same in any order, hence deterministic.
//
// Sums are float32 or wider in all of them; `finish_kernel` turns them into value's dtype where that is
// another.
#pragma once

#include "../common/atomics.cuh"
#include "cuda_samples.cuh"

namespace dino_kernels {

// Where a row's sums are, and how to add to them. kFixed: perhaps in fixed point.
template <class A, bool kFixed>
struct Sums {
  static constexpr int kIntegers = sizeof(A) / 4;  // of one sum in fixed point

  bool fixed;
  int bytes;        // of one sum
  uint32_t stride;  // bytes from row to row
  char* first;      // of row 0 of the head, from a lane's first channel on
  A scale, fine_scale;

  __device__ Sums(const CudaParams& p, int64_t b, int64_t m, int channel)
      : fixed(kFixed && p.bound != nullptr),
        bytes(fixed ? kIntegers * 8 : sizeof(A)),
        stride(static_cast<uint32_t>(p.M * p.D) * bytes),
        first(static_cast<char*>(p.sums) + ((b * p.S * p.M + m) * p.D + channel) * bytes) {
    if (fixed) set_scale(p);
  }

  // No sum exceeds bound * Q * K < 2^(ilogb(bound) + 1 + headroom); its integer stays below 2^61. A bound
  // that is not finite makes every number that is added NaN.
  __device__ void set_scale(const CudaParams& p) {
    const A bound = *static_cast<const A*>(p.bound);
    // Finer than the smallest normal number there is nothing to resolve.
    const int finest = sizeof(A) == 4 ? 126 : 1022;
    scale = bound == A(0)           ? A(1)
            : bound - bound == A(0) ? ldexp(A(1), min(finest, 60 - ilogb(bound) - p.sum_headroom))
                                    : static_cast<A>(NAN);
    fine_scale = ldexp(A(1), 62 - p.sum_headroom);
  }

  // To V channels that lie `ahead` of the first.
  template <int V>
  __device__ __forceinline__ void add(int32_t row, int ahead, const A (&numbers)[V]) const {
    char* const to = first + uint64_t{static_cast<uint32_t>(row)} * stride + ahead * bytes;
    if (kFixed && fixed) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        add_fixed(reinterpret_cast<long long*>(to) + v * kIntegers, numbers[v], scale, fine_scale);
      }
    } else {
      add_floats<V>(reinterpret_cast<A*>(to), numbers);
    }
  }
};

// What the threads of a block add in one chunk, listed by row: a hash table of rows, each with a chain of
// hits. A hit is a corner of the sample that a thread located: 4 * thread + corner.
struct RowLists {
  static constexpr int32_t kNone = -1;
  int32_t slots;   // a power of two, and as many as hits: never full
  int32_t* row;    // [slots] or kNone
  int32_t* first;  // [slots] first hit of the row's chain
  int32_t* next;   // [hits]
  int32_t* used;   // [slots] the slots in use, in the order in which they were taken
  int32_t* count;  // [2] of them; chunks take turns

  __host__ __device__ RowLists(Carver& carver, int threads)
      : slots(4 * threads),
        row(carver.take<int32_t>(slots)),
        first(carver.take<int32_t>(slots)),
        next(carver.take<int32_t>(slots)),
        used(carver.take<int32_t>(slots)),
        count(carver.take<int32_t>(2)) {}

  // By all threads of the block; a barrier must follow.
  __device__ void clear() const {
    for (int i = threadIdx.x; i < slots; i += blockDim.x) row[i] = first[i] = kNone;
    if (threadIdx.x < 2) count[threadIdx.x] = 0;
  }

  __device__ void insert(int32_t wanted, int32_t hit, int turn) const {
    uint32_t slot = static_cast<uint32_t>(wanted) * 2654435761u >> 7;
    for (;; ++slot) {
      slot &= static_cast<uint32_t>(slots - 1);
      const int32_t before = atomicCAS(row + slot, kNone, wanted);
      if (before == kNone) used[atomicAdd(count + turn, 1)] = static_cast<int32_t>(slot);
      if (before == kNone || before == wanted) break;
    }
    next[hit] = atomicExch(first + slot, hit);
  }

  // Every group of lanes takes rows in turn, sums their hits, adds each to global memory once, and leaves the
  // table empty. `grads` has the output gradients of the block's items. Between two barriers.
  template <int V, int kGroup, class T, class A>
  __device__ void add_up(const Corner4<A>* corners, const T* grads, int member, const Sums<A, false>& sums,
                         int turn) const {
    const int groups = blockDim.x / kGroup, rows = count[turn], lane = threadIdx.x % warpSize;
    const unsigned group_lanes = (kGroup == 32 ? kWholeWarp : (1u << kGroup % 32) - 1) << (lane - member);
    if (threadIdx.x == 0) count[1 - turn] = 0;
    for (int i = threadIdx.x / kGroup; i < rows; i += groups) {
      const int32_t slot = used[i], this_row = row[slot];
      int32_t hit = first[slot];
      __syncwarp(group_lanes);
      if (member == 0) row[slot] = first[slot] = kNone;
      A numbers[V] = {};
      while (hit != kNone) {
        const int32_t following = next[hit];
        const A weight = corners[hit / 4].weight[hit % 4];
        const int item = hit / 4 / kGroup;
        A grad[V];
        widen<T, V>(*reinterpret_cast<const Packed<T, V>*>(grads + (item * kGroup + member) * V), grad);
#pragma unroll
        for (int v = 0; v < V; ++v) numbers[v] += weight * grad[v];
        hit = following;
      }
      sums.add(this_row, 0, numbers);
    }
  }
};

// Sums to grad_value's dtype: from the compute dtype, or from fixed point.
constexpr int kFinishThreads = 256;
template <class T>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const __grid_constant__ CudaParams p) {
  using A = typename Compute<T>::type;
  const int64_t count = p.B * p.S * p.M * p.D, step = int64_t{gridDim.x} * kFinishThreads;
  const Sums<A, true> sums(p, 0, 0, 0);
  T* const to = static_cast<T*>(p.grad_value);
  for (int64_t i = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x; i < count; i += step) {
    const A sum = sums.fixed ? from_fixed(static_cast<const long long*>(p.sums) + i * sums.kIntegers,
                                          sums.scale, sums.fine_scale)
                             : static_cast<const A*>(p.sums)[i];
    to[i] = narrow<T>(sum);
  }
}

}  // namespace dino_kernels
