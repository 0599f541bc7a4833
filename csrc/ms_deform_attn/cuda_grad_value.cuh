// The gradient of value: four rows of every sample gain weight * grad_output. Three ways to add them up:
//
// 1. Rows one by one: vectors of floating-point adds in global memory. For few samples, or scattered ones.
// 2. A tile of queries together: the block sorts by row what its tile adds, and sums hits on the same row in
//    registers first. In an encoder neighbouring queries sample the same rows: 5 hits a row for 8 x 8 queries
//    and 4 points.
// 3. In fixed point, one by one: integer sums are the same in any order, hence deterministic.
//
// Sums are float32 or wider in all of them; `finish_kernel` turns them into value's dtype where that differs.
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

  // No sum exceeds 2^(ilogb(bound) + 1 + headroom); its integer stays below 2^61. A bound that is not finite
  // makes every number that is added NaN.
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

// What the threads of a block add to grad_value in one chunk, sorted by row: a counting sort over a hash
// table of rows. Hit number 4 * thread + corner is a corner of the sample that a thread located.
//
// Sorted hits are dealt out evenly, and a group adds up those of one row before it goes to global memory.
// Whole rows for each group would leave most lanes idle: near a coarse level's few rows a tile has up to 60
// hits, elsewhere one.
struct RowSort {
  static constexpr int32_t kNone = -1;
  int32_t slots;     // a power of two, and as many as hits: never full
  int32_t* row;      // [slots] or kNone
  int32_t* hits;     // [slots] of the row; from place() on, where they begin among the sorted
  uint16_t* sorted;  // [slots] hit numbers
  int32_t* count;    // [2] of sorted hits; chunks take turns

  __host__ __device__ RowSort(Carver& carver, int threads)
      : slots(4 * threads),
        row(carver.take<int32_t>(slots)),
        hits(carver.take<int32_t>(slots)),
        sorted(carver.take<uint16_t>(slots)),
        count(carver.take<int32_t>(2)) {}

  // Each thread empties four slots.
  __device__ __forceinline__ void clear_slots() const {
    reinterpret_cast<int4*>(row)[threadIdx.x] = make_int4(kNone, kNone, kNone, kNone);
    reinterpret_cast<int4*>(hits)[threadIdx.x] = make_int4(0, 0, 0, 0);
  }
  // By all threads; a barrier must follow.
  __device__ void clear() const {
    clear_slots();
    if (threadIdx.x < 2) count[threadIdx.x] = 0;
  }

  // Counts a hit on `wanted`. Returns its row's slot, and above it which of the row's hits it is.
  __device__ __forceinline__ uint32_t insert(int32_t wanted) const {
    uint32_t slot = static_cast<uint32_t>(wanted) * 2654435761u >> 7;
    for (;; ++slot) {
      slot &= static_cast<uint32_t>(slots - 1);
      int32_t found = *reinterpret_cast<volatile int32_t*>(row + slot);
      if (found == kNone) found = atomicCAS(row + slot, kNone, wanted);
      if (found == kNone || found == wanted) break;
    }
    return slot | static_cast<uint32_t>(atomicAdd(hits + slot, 1)) << 16;
  }

  // Between barriers: turns the counts of each row into where its hits begin. Rows come in any order: a
  // warp's slots get the next places.
  __device__ __forceinline__ void place(int turn) const {
    int4& four = reinterpret_cast<int4*>(hits)[threadIdx.x];
    const int4 n = four;
    const int own = n.x + n.y + n.z + n.w, lane = threadIdx.x % warpSize;
    int through = own;  // inclusive sum over the lanes
#pragma unroll
    for (int distance = 1; distance < warpSize; distance *= 2) {
      const int before = __shfl_up_sync(kWholeWarp, through, distance);
      if (lane >= distance) through += before;
    }
    int begin = lane == warpSize - 1 ? atomicAdd(count + turn, through) : 0;
    begin = __shfl_sync(kWholeWarp, begin, warpSize - 1) + through - own;
    four = make_int4(begin, begin + n.x, begin + n.x + n.y, begin + n.x + n.y + n.z);
  }

  __device__ __forceinline__ void sort(uint32_t inserted, int hit) const {
    sorted[hits[inserted & 0xffff] + (inserted >> 16)] = static_cast<uint16_t>(hit);
  }

  // Between barriers: adds everything to global memory, and leaves the table empty. `grads` has the output
  // gradients of the block's items.
  template <int V, int kGroup, class T, class A>
  __device__ __forceinline__ void add_up(const Hits<A>* of_thread, const T* grads, int member,
                                         const Sums<A, false>& sums, int turn) const {
    const Hit<A>* const all = of_thread->corner;
    const int groups = blockDim.x / kGroup, each = (count[turn] + groups - 1) / groups;
    const int begin = threadIdx.x / kGroup * each, end = min(begin + each, count[turn]);
    clear_slots();
    if (threadIdx.x == 0) count[1 - turn] = 0;
    A numbers[V] = {};
    int32_t last_row = kNone;
    for (int i = begin; i < end; ++i) {
      const int number = sorted[i];
      const Hit<A> hit = all[number];
      A grad[V];
      widen<T, V>(
          *reinterpret_cast<const Packed<T, V>*>(grads + (number / (4 * kGroup) * kGroup + member) * V),
          grad);
      if (hit.row != last_row) {
        if (last_row != kNone) sums.add(last_row, 0, numbers);
        last_row = hit.row;
#pragma unroll
        for (int v = 0; v < V; ++v) numbers[v] = A(0);
      }
#pragma unroll
      for (int v = 0; v < V; ++v) numbers[v] += hit.weight * grad[v];
    }
    if (last_row != kNone) sums.add(last_row, 0, numbers);
  }
};

// Sums to grad_value's dtype, four at a time: from the compute dtype, or from fixed point.
constexpr int kFinishThreads = 256;
template <class T>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const __grid_constant__ CudaParams p) {
  using A = typename Compute<T>::type;
  constexpr int kTogether = 4;
  const int64_t count = p.B * p.S * p.M * p.D, step = int64_t{gridDim.x} * kFinishThreads * kTogether;
  const Sums<A, true> sums(p, 0, 0, 0);
  const auto one = [&](int64_t i) {
    const auto* integers = static_cast<const long long*>(p.sums) + i * sums.kIntegers;
    return sums.fixed ? from_fixed(integers, sums.scale, sums.fine_scale) : static_cast<const A*>(p.sums)[i];
  };
  T* const to = static_cast<T*>(p.grad_value);
  for (int64_t i = (int64_t{blockIdx.x} * kFinishThreads + threadIdx.x) * kTogether; i < count; i += step) {
    A numbers[kTogether];
    if (i + kTogether > count) {
      for (int64_t rest = i; rest < count; ++rest) to[rest] = narrow<T>(one(rest));
    } else {
      if (sums.fixed || sizeof(T) != 2) {  // only 16-bit values have float32 sums of their own
        for (int v = 0; v < kTogether; ++v) numbers[v] = one(i + v);
      } else if constexpr (sizeof(T) == 2) {
        load_numbers<float, kTogether>(static_cast<const float*>(p.sums) + i, numbers);
      }
      store_numbers<T, kTogether>(to + i, numbers);
    }
  }
}

}  // namespace dino_kernels
