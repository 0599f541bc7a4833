// Backward: all gradients in one kernel, from the inputs alone.
//
// For each sample the groups compute four dot products of its rows with the head's output gradient. A
// transposing reduction brings them to the lane that located the sample, which turns them into the gradients
// of its position and weight. The softmax first needs the sum of all weight gradients of an item, so they are
// kept in shared memory in float32. The gradient of value: cuda_grad_value.cuh.
#pragma once

#include "cuda_grad_value.cuh"

namespace dino_kernels {

template <int kSplit>
constexpr int kBackwardThreads = kSplit > 1 ? 128 : 256;
// Minimum number of resident blocks per multiprocessor.
template <int kSplit>
constexpr int kBackwardBlocks = kSplit > 1 ? 5 : 2;

// Per-sample state that the lanes keep until the last sample of an item: [chunk][thread].
template <class A>
struct Kept {
  A* attention = nullptr;
  A* grad_attention = nullptr;
  A* grad_reference = nullptr;  // [coordinates, chunk, thread]
  int stride;                   // from one coordinate to the next

  __host__ __device__ Kept(Carver& carver, const CudaParams& p, int threads, int chunks)
      : stride(chunks * threads) {
    if (p.reference_points && p.grad_weights) {
      attention = carver.take<A>(stride);
      grad_attention = carver.take<A>(stride);
    }
    if (p.grad_reference_points) grad_reference = carver.take<A>(p.reference_coordinates * stride);
  }
};

template <class A>
struct BackwardShared {
  Levels levels;
  Hits<A>* hits;  // [threads]
  Kept<A> kept;
  __host__ __device__ BackwardShared(Carver& carver, const CudaParams& p, int threads, int chunks)
      : levels(carver, p), hits(carver.take<Hits<A>>(threads)), kept(carver, p, threads, chunks) {}
};

// Chain rule. A sample outside has no gradient, not even 0 * NaN if its position is not finite.
template <class A>
__device__ __forceinline__ A chain(A gradient, A factor) {
  return gradient == A(0) ? A(0) : gradient * factor;
}

// parts[i][c]: this lane's share of corner c's dot product for the group's i-th sample. Each step halves the
// number of samples per lane, until each lane has the sums of its own. Recursive, so that every index is a
// constant.
template <int kHalf, int kGroup, class A>
__device__ __forceinline__ void sum_and_transpose(A (&parts)[kGroup][4], int member) {
  if constexpr (kHalf > 0) {
    const bool upper = member & kHalf;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const A given = upper ? parts[i][c] : parts[i + kHalf][c];
        const A kept = upper ? parts[i + kHalf][c] : parts[i][c];
        parts[i][c] = kept + __shfl_xor_sync(kWholeWarp, given, kHalf);
      }
    }
    sum_and_transpose<kHalf / 2>(parts, member);
  }
}

// The lanes of one item. The template parameters are the kernel's.
template <class T, int V, int kGroup, int kSplit, bool kFused, bool kFixed>
struct Backward {
  using A = typename Compute<T>::type;
  const CudaParams& p;
  const BackwardShared<A> shared;
  const Lanes<kGroup, kSplit> lanes;
  const Item item;
  const Source<T, kFused> source;
  const Sums<A, kFixed> sums;
  const HeadRows<T> rows;  // of value, from this lane's first channel on
  Hits<A>& own;
  const bool wants_samples, wants_value;
  // Output gradients, if a group covers a row: of the channels that this lane reads, and of those it adds to.
  A grad[V] = {}, grad_added[V] = {};

  __device__ Backward(const CudaParams& p_, const BackwardShared<A>& shared_)
      : p(p_),
        shared(shared_),
        lanes(p_),
        item(Item::of_thread(p_, shared_.levels, lanes.per_item())),
        source(p_, shared_.levels, item, lanes.of_item()),
        sums(p_, item.b, item.m, lanes.member, V % 4 == 0 ? 4 : 1),
        rows(p_.value, item.b, item.m * p_.D + lanes.member * V),
        own(shared_.hits[threadIdx.x]),
        wants_samples(p_.grad_positions || p_.grad_weights || p_.grad_reference_points),
        wants_value(p_.sums) {}

  __device__ __forceinline__ const T* grad_output() const {
    return static_cast<const T*>(p.grad_output.data) + item.b * p.grad_output.batch_stride +
           item.q * p.grad_output.row_stride + item.m * p.D;
  }

  // This lane's shares of the dot products of one sample, over V of its channels, `ahead` of its first one.
  __device__ __forceinline__ void dot(const Hits<A>& hits, int ahead, const A (&g)[V], A (&part)[4]) const {
    Packed<T, V> packed[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      packed[c] = Packed<T, V>{};
      const int32_t row = hits.corner[c].row;
      if (row >= 0) packed[c] = load_packed<T, V>(rows.row(row) + ahead);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      A numbers[V];
      widen<T, V>(packed[c], numbers);
#pragma unroll
      for (int v = 0; v < V; ++v) part[c] += numbers[v] * g[v];
    }
  }

  __device__ __forceinline__ void add_rows(const Hits<A>& hits, int ahead, int left, const A (&g)[V]) const {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const Hit<A> hit = hits.corner[c];
      if (hit.row >= 0) sums.add(hit.row, ahead, lanes.group, left, hit.weight, g);
    }
  }

  // The group iterates over its samples and returns the `dots` of this lane's own sample.
  __device__ __forceinline__ void walk(int samples, A (&dots)[4]) const {
    const Hits<A>* walked = &own - lanes.member;
    const int steps = lanes.steps(samples);
    if constexpr (kGroup > 0) {
      A parts[kGroup][4] = {};
#pragma unroll
      for (int step = 0; step < kGroup; ++step) {
        if (step >= steps) continue;
        const Hits<A> hits = read_hits(walked[step]);
        if (wants_samples) dot(hits, 0, grad, parts[step]);
        if (wants_value) add_rows(hits, 0, kGroup * V, grad_added);
      }
      if (!wants_samples) return;
      sum_and_transpose<kGroup / 2>(parts, lanes.member);
#pragma unroll
      for (int c = 0; c < 4; ++c) dots[c] = parts[0][c];
    } else {
      for (int step = 0; step < steps; ++step) {
        const Hits<A> hits = read_hits(walked[step]);
        A part[4] = {};
        const int D = static_cast<int>(p.D);
        for (int ahead = 0; ahead < D; ahead += lanes.group * V) {
          A g[V] = {};
          const int channel = ahead + lanes.member * V;
          if (wants_samples && channel < D) {
            if (item.alive) load_numbers<T, V>(grad_output() + channel, g);
            dot(hits, ahead, g, part);
          }
          if (wants_value) {
            sums.load(grad_output() + ahead, lanes.group, item.alive ? D - ahead : 0, g);
            add_rows(hits, ahead, D - ahead, g);
          }
        }
        if (!wants_samples) continue;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          for (int bit = lanes.group / 2; bit > 0; bit /= 2)
            part[c] += __shfl_xor_sync(kWholeWarp, part[c], bit);
          if (step == lanes.member) dots[c] = part[c];
        }
      }
    }
  }

  // Gradients of this lane's own sample k, from its dot products. Returns its share of the softmax's mean.
  __device__ __forceinline__ A finish_sample(const Sample<A>& sample, int k, const A (&d)[4],
                                             int kept) const {
    const Corners<A>& corners = sample.corners;
    const A right = corners.fraction_x, below = corners.fraction_y;
    const A upper_slope = d[1] - d[0], lower_slope = d[3] - d[2];
    const A upper = d[0] + right * upper_slope, lower = d[2] + right * lower_slope;
    const A sampled = upper + below * (lower - upper);
    const A grad_x = sample.attention * (upper_slope + below * (lower_slope - upper_slope));  // per pixel
    const A grad_y = sample.attention * (lower - upper);
    const int64_t i = item.index * p.K + k;
    if (p.grad_positions) {
      store_raw<T, A>(p.grad_positions, p.positions_as_value, 2 * i, chain(grad_x, sample.scale_x));
      store_raw<T, A>(p.grad_positions, p.positions_as_value, 2 * i + 1, chain(grad_y, sample.scale_y));
    }
    if constexpr (!kFused) {
      if (p.grad_weights) store_raw<T, A>(p.grad_weights, p.weights_as_value, i, sampled);
    } else {
      if (shared.kept.attention) {
        shared.kept.attention[kept] = sample.attention;
        shared.kept.grad_attention[kept] = sampled;
      }
      if (p.grad_reference_points) {
        const LevelInShared level = shared.levels.level[sample.level];
        const A width = static_cast<A>(level.width), height = static_cast<A>(level.height);
        A* const to = shared.kept.grad_reference + kept;
        const int stride = shared.kept.stride;
        to[0] = grad_x * width;
        to[stride] = grad_y * height;
        if (p.reference_coordinates == 4) {
          const A half = A(0.5) / static_cast<A>(level.points);
          to[2 * stride] = chain(grad_x, sample.raw_x) * width * half;
          to[3 * stride] = chain(grad_y, sample.raw_y) * height * half;
        }
      }
    }
    return sample.attention * sampled;
  }

  // The softmax gradient, once the mean over the samples of the item is known.
  __device__ __forceinline__ void finish_logits(A mean) const {
    for (int bit = lanes.per_item() / 2; bit > 0; bit /= 2) mean += __shfl_xor_sync(kWholeWarp, mean, bit);
    int kept = threadIdx.x;
    for (int k = lanes.own_sample(); k < p.K; k += lanes.per_item(), kept += blockDim.x) {
      if (!item.alive) break;
      const A gradient = shared.kept.attention[kept] * (shared.kept.grad_attention[kept] - mean);
      store_raw<T, A>(p.grad_weights, p.weights_as_value, item.index * p.K + k, gradient);
    }
  }

  // This head's share of the gradient of its query's reference points: [B, Q, M, L, coordinates].
  __device__ __forceinline__ void finish_reference_points() const {
    const int coordinates = static_cast<int>(p.reference_coordinates), per_item = lanes.per_item();
    const int lane = threadIdx.x % per_item, first_thread = threadIdx.x - lane;
    A* to = static_cast<A*>(p.grad_reference_points) + item.index * p.L * coordinates;
    for (int i = lane; i < p.L * coordinates && item.alive; i += per_item) {
      const int level = i / coordinates, coordinate = i % coordinates;
      int first = 0;
      for (int l = 0; l < level; ++l) first += shared.levels.level[l].points;
      A sum = 0;
      for (int k = first; k < first + shared.levels.level[level].points; ++k) {
        const int in_chunk = k % per_item;  // inverse of own_sample()
        const int thread = first_thread + in_chunk % kSplit * lanes.group + in_chunk / kSplit;
        sum +=
            shared.kept.grad_reference[coordinate * shared.kept.stride + k / per_item * blockDim.x + thread];
      }
      to[i] = sum;
    }
  }

  __device__ __forceinline__ void run() {
    const int K = static_cast<int>(p.K);
    if constexpr (kGroup > 0) {
      if (item.alive) {
        load_numbers<T, V>(grad_output() + lanes.member * V, grad);
        sums.load(grad_output(), kGroup, kGroup * V, grad_added);
      }
    }
    A mean = 0;
    int kept = threadIdx.x;
    for (int chunk = 0; chunk < K; chunk += lanes.per_item(), kept += blockDim.x) {
      const int k = chunk + lanes.own_sample();
      const Sample<A> sample = source.locate(k, K <= lanes.per_item());
      source.leave(sample, own);
      __syncwarp();
      A dots[4] = {};
      walk(K - chunk, dots);
      if (wants_samples && item.alive && k < K) mean += finish_sample(sample, k, dots, kept);
      __syncwarp();
    }
    if constexpr (kFused) {
      if (shared.kept.attention) finish_logits(mean);
      if (p.grad_reference_points) finish_reference_points();
    }
  }
};

// kFixed: grad_value may be summed in fixed point.
template <class T, int V, int kGroup, int kSplit, bool kFused, bool kFixed>
__global__ void __launch_bounds__(kBackwardThreads<kSplit>, kBackwardBlocks<kSplit>)
    backward_kernel(const __grid_constant__ CudaParams p) {
  DINO_DYNAMIC_SHARED(memory);
  Carver carver{memory};
  const int per_item = (kGroup ? kGroup : p.group) * kSplit;
  const BackwardShared<typename Compute<T>::type> shared(carver, p, blockDim.x,
                                                         static_cast<int>((p.K + per_item - 1) / per_item));
  shared.levels.fill(p);
  Backward<T, V, kGroup, kSplit, kFused, kFixed>(p, shared).run();
}

}  // namespace dino_kernels
