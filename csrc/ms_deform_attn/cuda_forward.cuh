// Forward. A block handles one head of one image and consecutive queries; on a pixel grid, a tile of 8 x 8
// queries.
//
// Traffic: rows of value are gathered 16 bytes per lane, mostly from the first-level cache; positions and
// weights are read once, output is written once. Positions, weights and sums are float32 (float64 for
// float64).
#pragma once

#include "cuda_samples.cuh"

namespace dino_kernels {

// Room for 1024 threads per multiprocessor: 64 registers each.
template <int kSplit>
constexpr int kForwardThreads = kSplit > 1 ? 128 : 256;

template <class A>
struct ForwardShared {
  Levels levels;
  Hits<A>* hits;  // [threads]
  __host__ __device__ ForwardShared(Carver& carver, const CudaParams& p, int threads)
      : levels(carver, p), hits(carver.take<Hits<A>>(threads)) {}
};

// sums += the four corners of one sample. kAll: all corners must be read, which saves zeroing the others.
template <bool kAll, class T, int V, class A>
__device__ __forceinline__ void add_sample(const HeadRows<T>& rows, const Hits<A>& hits, A (&sums)[V]) {
  Packed<T, V> packed[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (!kAll) packed[c] = Packed<T, V>{};
    if (kAll || hits.corner[c].row >= 0) packed[c] = load_packed<T, V>(rows.row(hits.corner[c].row));
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    A numbers[V];
    widen<T, V>(packed[c], numbers);
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] += hits.corner[c].weight * numbers[i];
  }
}

// Sums over the groups of an item. Each step halves the number of channels per lane, ending with channel
// `part` in sums[0]. Recursive, so that every index is a constant.
template <int kHalf, int kGroup, int V, class A>
__device__ __forceinline__ void sum_over_groups(A (&sums)[V], int part) {
  if constexpr (kHalf > 0) {
    const bool upper = part & kHalf;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const A given = upper ? sums[i] : sums[i + kHalf];
      const A kept = upper ? sums[i + kHalf] : sums[i];
      sums[i] = kept + __shfl_xor_sync(kWholeWarp, given, kHalf * kGroup);
    }
    sum_over_groups<kHalf / 2, kGroup>(sums, part);
  }
}

// The lanes of one item. T: value's type. V: channels of a lane. kGroup: lanes of a row, 0 for any number.
// kSplit: groups of an item; more than one shortens calls that are too small to fill the device. `own`: this
// lane's place among those of its warp.
template <class T, int V, int kGroup, int kSplit, bool kFused>
__device__ __forceinline__ void sum_rows(const CudaParams& p, const Levels& levels, const Item& item,
                                         Hits<typename Compute<T>::type>& own) {
  using A = typename Compute<T>::type;
  const Lanes<kGroup, kSplit> lanes(p);
  const Source<T, kFused> source(p, levels, item, lanes.of_item());
  const Hits<A>* walked = &own - lanes.member;
  const int K = static_cast<int>(p.K), D = static_cast<int>(p.D);

  // One round, if a group covers a whole row; true up to 32 lanes.
  for (int begin = 0; begin < D; begin += lanes.group * V) {
    const int channel = begin + lanes.member * V;
    const bool has_channels = kGroup || channel < D;
    const HeadRows<T> rows(p.value, item.b, item.m * p.D + (has_channels ? channel : 0));
    A sums[V] = {};
    for (int chunk = 0; chunk < K; chunk += lanes.per_item()) {
      const Sample<A> sample = source.locate(chunk + lanes.own_sample(), K <= lanes.per_item());
      const bool all = source.leave(sample, own);
      __syncwarp();
      if (kGroup && kSplit == 1 && __all_sync(kWholeWarp, all)) {
#pragma unroll 4
        for (int step = 0; step < kGroup; ++step) add_sample<true>(rows, read_hits(walked[step]), sums);
      } else {
        const int steps = lanes.steps(K - chunk);
        for (int step = 0; step < steps; ++step) add_sample<false>(rows, read_hits(walked[step]), sums);
      }
      __syncwarp();
    }
    T* to = static_cast<T*>(p.output) + item.index * p.D + channel;
    if constexpr (kSplit > 1) {
      static_assert(V == kSplit);
      sum_over_groups<V / 2, kGroup>(sums, lanes.part);
      if (item.alive) to[lanes.part] = narrow<T>(sums[0]);
    } else if (item.alive && has_channels) {
      store_numbers<T, V>(to, sums);
    }
  }
}

template <class T, int V, int kGroup, int kSplit, bool kFused>
__global__ void __launch_bounds__(kForwardThreads<kSplit>, 1024 / kForwardThreads<kSplit>)
    forward_kernel(const __grid_constant__ CudaParams p) {
  DINO_DYNAMIC_SHARED(memory);
  Carver carver{memory};
  const ForwardShared<typename Compute<T>::type> shared(carver, p, blockDim.x);
  shared.levels.fill(p);
  const int lanes_per_item = Lanes<kGroup, kSplit>(p).per_item();
  const Item item = Item::of_thread(p, shared.levels, lanes_per_item);
  sum_rows<T, V, kGroup, kSplit, kFused>(p, shared.levels, item, shared.hits[threadIdx.x]);
}

}  // namespace dino_kernels
