// Forward on tensor cores, for rows of 32 channels in 16 bits.
//
// A product of 16 x 8 by 8 x 8 covers 4 corners of each item of a pair: k counts (corner, one of two
// neighbouring channels), so that rows enter A as loaded from memory. Rows of A are pairs of channels; B has
// the high and low part of a weight in a column for the even and one for the odd channels of each item:
//
//   column of B   4 e      4 e + 1   4 e + 2   4 e + 3     of item e
//   k even        high     low       0         0
//   k odd         0        0         high      low
//
// A lane has the even or the odd ones of eight channels, and its neighbour the others. Corners outside read
// another corner's row with weight zero. An infinity there, or times a low part of zero, gives NaN: if a
// result is not finite, the warp computes its items again as the other kernels do.
#pragma once

#include "cuda_forward.cuh"
#include "cuda_pairs.cuh"

namespace dino_kernels {

struct ForwardPairs {
  Levels levels;
  int4* places;  // [warps][2][kPairPlaces]: four rows of a sample, then its four weights
  __host__ __device__ ForwardPairs(Carver& carver, const CudaParams& p)
      : levels(carver, p), places(carver.take<int4>(kPairThreads / 32 * 2 * kPairPlaces)) {}
};

// The general algorithm, for the items of a warp.
template <class T, bool kFused>
DINO_NEVER_INLINE __device__ void sum_rows_again(const CudaParams& p, const Levels& levels, void* places) {
  static_assert(sizeof(Hits<float>) * 32 <= sizeof(int4) * 2 * kPairPlaces);
  constexpr int kVector = 16 / sizeof(T), kGroup = 4;
  const Item item = Item::of_thread(p, levels, kGroup);
  sum_rows<T, kVector, kGroup, 1, kFused>(p, levels, item,
                                          static_cast<Hits<float>*>(places)[threadIdx.x % 32]);
}

template <class T>
struct ForwardPair {
  const PairLane lane;
  int4* const rows;       // [kPairPlaces] of the warp
  uint4* const weights;   // [kPairPlaces]
  const uint32_t select;  // of a weight's word, for this lane's column of B

  __device__ explicit ForwardPair(const ForwardPairs& shared)
      : rows(shared.places + threadIdx.x / 32 * 2 * kPairPlaces),
        weights(reinterpret_cast<uint4*>(rows + kPairPlaces)),
        select(lane.g % 4 == 0   ? 0x4432
               : lane.g % 4 == 1 ? 0x4410
               : lane.g % 4 == 2 ? 0x3244
                                 : 0x1044) {}

  __device__ __forceinline__ void leave(const PairSample& sample) const {
    uint32_t word[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float weight[2] = {sample.weight[2 * i] * sample.attention,
                               sample.weight[2 * i + 1] * sample.attention};
      SplitWeight<T>::split(weight, word[i]);
    }
    const int place = pair_place(lane.item, lane.sample);
    rows[place] = make_int4(sample.row[0], sample.row[1], sample.row[2], sample.row[3]);
    weights[place] = make_uint4(word[0][0], word[0][1], word[1][0], word[1][1]);
  }

  // The corners of four samples per item: 16 bytes of each row. A row of 64 bytes takes one load by four
  // lanes, so that the first-level cache looks it up once.
  __device__ __forceinline__ void load(const HeadRows<T>& value, int first_sample, uint4 (&corner)[4]) const {
    const int4 row = rows[pair_place(lane.g / 4, first_sample + lane.t)];
    const int32_t each[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
    for (int c = 0; c < 4; ++c) corner[c] = __ldg(reinterpret_cast<const uint4*>(value.row(each[c])));
  }

  // sums += the products of four samples per item. sums[i]: from 4 i on of the lane's channels.
  __device__ __forceinline__ void add(const uint4 (&corner)[4], int first_sample, float (&sums)[2][4]) const {
    const uint4 word = weights[pair_place(lane.g / 4, first_sample + lane.t)];
    const uint32_t each[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const uint32_t column = __byte_perm(each[c], 0, select);
      mma_16x8x8<T>(sums[0], corner[c].x, corner[c].y, column);
      mma_16x8x8<T>(sums[1], corner[c].z, corner[c].w, column);
    }
  }

  // Returns whether all sums are finite. `to`: the row of item g / 4.
  __device__ __forceinline__ bool store(const float (&sums)[2][4], bool exists, T* to) const {
    constexpr float kScale = 1 / SplitWeight<T>::kScale;
    // sums[i] has channels from 8 (g % 4) + 4 i on: the even or the odd two of four.
    float own[2][2], zero = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        own[i][j] = (sums[i][2 * j] + sums[i][2 * j + 1]) * kScale;
        zero += own[i][j] * 0.0f;
      }
    }
    // A lane with even channels completes the first four, its neighbour the last four.
    const bool odd = lane.t % 2;
    float numbers[4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float given = __shfl_xor_sync(kWholeWarp, odd ? own[0][j] : own[1][j], 1);
      const float kept = odd ? own[1][j] : own[0][j];
      numbers[2 * j] = odd ? given : kept;
      numbers[2 * j + 1] = odd ? kept : given;
    }
    const bool mine = exists && lane.t / 2 == lane.g / 4;
    if (mine) {
      Packed<T, 4> pack;
#pragma unroll
      for (int i = 0; i < 4; ++i) pack.element[i] = narrow<T>(numbers[i]);
      uint2 bits;
      memcpy(&bits, &pack, 8);
      __stcg(reinterpret_cast<uint2*>(to + 8 * (lane.g % 4) + 4 * odd), bits);
    }
    return !mine || zero == 0.0f;
  }
};

template <class T, bool kFused, int kSamples, bool kMask>
__global__ void __launch_bounds__(kPairThreads, 3) forward_mma_kernel(const __grid_constant__ CudaParams p) {
  DINO_DYNAMIC_SHARED(memory);
  Carver carver{memory};
  const ForwardPairs shared(carver, p);
  shared.levels.fill(p);
  using Raws = PairSource<T, kFused, kSamples, kMask>;
  constexpr int kChunks = Raws::kChunks;
  const Raws source(p, shared.levels);
  const ForwardPair<T> pair(shared);
  const BlockHead& head = source.head;
  const HeadRows<T> value(p.value, head.b, head.m * p.D + pair.lane.g % 4 * 8);
  char* const output =
      kept_whole(static_cast<char*>(p.output) + (head.b * p.Q * p.M + head.m) * p.D * sizeof(T));
  const uint32_t output_stride = static_cast<uint32_t>(p.M * p.D * sizeof(T));
  bool finite = true;
  typename Raws::Raw raw[kChunks];
  source.load(source.query_of(pair.lane.item), raw);
#pragma unroll 1
  for (int first = 0; first < kWarpItems; first += 2) {
    float sums[2][4] = {};
    source.weigh(raw);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      PairSample sample;
      const bool readable = source.locate(raw[chunk], chunk, first + pair.lane.item < source.alive, sample);
      pair.leave(sample);
      __syncwarp();
      // Loads the next pair's numbers while this one's rows are in flight.
      if (chunk == kChunks - 1 && first + 2 < kWarpItems) {
        source.load(source.query_of(first + 2 + pair.lane.item), raw);
      }
      const int samples = number_of_samples<kSamples>(p) - kPairSamples * chunk;
      if (readable) {
        // The next rows are on their way while these are added, if registers allow it.
        constexpr bool kAhead = kSamples == kPairSamples;
        uint4 corners[2][4];
#pragma unroll
        for (int i = 0; i < kPairSamples; i += 4) {
          if (i >= samples) break;
          if (!kAhead || i == 0) pair.load(value, i, corners[i / 4 % 2]);
          if (kAhead && i + 4 < kPairSamples) pair.load(value, i + 4, corners[(i / 4 + 1) % 2]);
          pair.add(corners[i / 4 % 2], i, sums);
        }
      }
      __syncwarp();
    }
    const int stored = first + pair.lane.g / 4;
    char* const to = row_address(output, source.query_of(stored), output_stride);
    finite &= pair.store(sums, stored < source.alive, reinterpret_cast<T*>(to));
  }
  if (!__all_sync(kWholeWarp, finite)) sum_rows_again<T, kFused>(p, shared.levels, pair.rows);
}

}  // namespace dino_kernels
