// Backward with dot products on tensor cores, for rows of 32 channels in 16 bits.
//
// A product of 16 x 16 by 16 x 8 covers 8 rows, loaded as 16 bytes per lane: of the four words of a row that
// lane (g, t) reads, the first and third are in row g of A, the second and fourth in row g + 8. B holds the
// output gradients of the pair's items, in four columns each, which alternate between the channels of the
// first and third words and those of the others. So a dot product is the sum of two numbers, available to all
// lanes of the item, including the one that located the sample.
#pragma once

#include "cuda_backward.cuh"
#include "cuda_tile_sums.cuh"

namespace dino_kernels {

// Marks the weight of a corner that must not be added. GPU arithmetic never returns this NaN.
constexpr uint32_t kNotToAdd = 0xffffffffu;

// How grad_value is summed: row by row in global memory, in floating or fixed point; or for a tile of queries
// first.
enum class ValueSums { scatter, fixed_point, tile };

// Shared memory of a block.
struct BackwardPairs {
  Levels levels;
  int4* places;  // [warps][2][kPairPlaces]: four rows of a sample, then its four weights
  // [warps][coordinates][2][samples of an item]: a pair's gradients of reference points.
  float* grad_reference;
  __host__ __device__ BackwardPairs(Carver& carver, const CudaParams& p, int samples)
      : levels(carver, p), places(carver.take<int4>(kPairThreads / 32 * 2 * kPairPlaces)) {
    const int64_t coordinates = p.grad_reference_points ? p.reference_coordinates : 0;
    grad_reference = carver.take<float>(kPairThreads / 32 * coordinates * 2 * samples);
  }
};

template <class T, bool kFused, int kSamples, ValueSums kSums>
struct BackwardPair {
  using Raws = PairSource<T, kFused, kSamples, kFused>;
  static constexpr int kChunks = Raws::kChunks;
  const CudaParams& p;
  const Raws source;
  const HeadRows<T> value;  // from this lane's 8 channels on
  const Sums<float, kSums == ValueSums::fixed_point> sums;
  int4* const rows;      // [kPairPlaces] of the warp
  uint4* const weights;  // [kPairPlaces]
  float* const grad_reference;
  const char* grad_output;  // of the block's head

  __device__ BackwardPair(const CudaParams& p_, const BackwardPairs& shared)
      : p(p_),
        source(p_, shared.levels),
        value(p_.value, source.head.b, source.head.m * p_.D + source.lane.t * 8),
        sums(p_, source.head.b, source.head.m, threadIdx.x % 4, 4),
        rows(shared.places + threadIdx.x / 32 * 2 * kPairPlaces),
        weights(reinterpret_cast<uint4*>(rows + kPairPlaces)),
        grad_reference(shared.grad_reference + threadIdx.x / 32 * p_.reference_coordinates * 2 * kSamples),
        grad_output(kept_whole(static_cast<const char*>(p_.grad_output.data) +
                               (source.head.b * p_.grad_output.batch_stride + source.head.m * p_.D) *
                                   int64_t{sizeof(T)})) {}

  __device__ __forceinline__ const T* grad_of(uint32_t q) const {
    const uint32_t stride = static_cast<uint32_t>(p.grad_output.row_stride) * uint32_t{sizeof(T)};
    return reinterpret_cast<const T*>(row_address(grad_output, q, stride));
  }

  // Publishes the sample to the other lanes. `to_add`: the corners that scatter() must add, one bit each.
  __device__ __forceinline__ void leave(const PairSample& sample, uint32_t to_add) const {
    uint32_t weight[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      weight[c] = to_add >> c & 1 ? __float_as_uint(sample.weight[c] * sample.attention) : kNotToAdd;
    }
    const int place = pair_place(source.lane.item, source.lane.sample);
    rows[place] = make_int4(sample.row[0], sample.row[1], sample.row[2], sample.row[3]);
    weights[place] = make_uint4(weight[0], weight[1], weight[2], weight[3]);
  }

  // The four dot products of this lane's sample. `samples`: number in the chunk.
  __device__ __forceinline__ void dot(const uint32_t (&column)[2], int samples, float (&dots)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (8 * half >= samples) break;
#pragma unroll
      for (int item = 0; item < 2; ++item) {
        const int4 row = rows[pair_place(item, 8 * half + source.lane.g)];
        const int32_t each[4] = {row.x, row.y, row.z, row.w};
        const bool mine = source.lane.t == 2 * item + half;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const uint4 a = __ldg(reinterpret_cast<const uint4*>(value.row(each[c])));
          float product[4] = {};
          mma_16x8x16<T>(product, a.x, a.y, a.z, a.w, column[0], column[1]);
          dots[c] = mine ? product[0] + product[3] : dots[c];
        }
      }
    }
  }

  // Adds the contributions of an item's samples to grad_value. A lane has one corner of every second sample,
  // and 8 channels.
  __device__ __forceinline__ void scatter(int item, uint32_t q, int samples) const {
    constexpr int kLanes = 4, kChannels = 32;
    const int lane = threadIdx.x % 32;
    float grad[8];
    sums.load(grad_of(q), kLanes, kChannels, grad);
    const int32_t* const row = reinterpret_cast<const int32_t*>(rows) + lane / 4 % 4;
    const uint32_t* const weight = reinterpret_cast<const uint32_t*>(weights) + lane / 4 % 4;
#pragma unroll
    for (int i = 0; i < kPairSamples; i += 2) {
      if (i >= samples) break;
      const int place = pair_place(item, i) + lane / 16;
      const uint32_t bits = weight[4 * place];
      if (bits != kNotToAdd) sums.add(row[4 * place], 0, kLanes, kChannels, __uint_as_float(bits), grad);
    }
  }

  __device__ __forceinline__ char* gradients(void* first, uint32_t q, uint32_t bytes) const {
    const int64_t row = source.head.b * p.Q + q;
    const int64_t number = (row * p.M + source.head.m) * number_of_samples<kSamples>(p) + source.lane.sample;
    return static_cast<char*>(first) + number * bytes;
  }

  // The gradients of a chunk's sample. Returns the gradient of its weight.
  __device__ __forceinline__ float finish(const PairSample& sample, const float (&d)[4], int chunk,
                                          bool exists, char* grad_positions) const {
    const float upper_slope = d[1] - d[0], lower_slope = d[3] - d[2];
    const float upper = d[0] + sample.fraction_x * upper_slope,
                lower = d[2] + sample.fraction_x * lower_slope;
    const float grad_x = sample.attention * (upper_slope + sample.fraction_y * (lower_slope - upper_slope));
    const float grad_y = sample.attention * (lower - upper);  // per pixel
    if (p.grad_positions && exists) {
      const float pair[2] = {chain(grad_x, sample.scale_x), chain(grad_y, sample.scale_y)};
      void* const to = grad_positions + chunk * kPairSamples * 2 * source.position_bytes();
      if (p.positions_as_value) {
        store_numbers<T, 2>(static_cast<T*>(to), pair);
      } else {
        store_numbers<float, 2>(static_cast<float*>(to), pair);
      }
    }
    if (kFused && p.grad_reference_points) {
      const LevelInShared& level = source.level[chunk];
      const float width = static_cast<float>(level.width), height = static_cast<float>(level.height);
      float* const to = grad_reference + source.lane.item * kSamples + source.k(chunk);
      to[0] = grad_x * width;
      to[2 * kSamples] = grad_y * height;
      if (p.reference_coordinates == 4) {
        to[4 * kSamples] = chain(grad_x, sample.raw_x) * source.unit_x[chunk];
        to[6 * kSamples] = chain(grad_y, sample.raw_y) * source.unit_y[chunk];
      }
    }
    return upper + sample.fraction_y * (lower - upper);
  }

  // This head's share of the gradient of the items' reference points, [B, Q, M, L, coordinates], by the lanes
  // of the pair.
  __device__ __forceinline__ void finish_reference_points(const Levels& levels, int first) const {
    const int coordinates = static_cast<int>(p.reference_coordinates), L = static_cast<int>(p.L);
    __syncwarp();
    for (int i = threadIdx.x % 32; i < 2 * L * coordinates; i += 32) {
      const int coordinate = i % coordinates, level = i / coordinates % L, item = i / (coordinates * L);
      int begin = 0;
      for (int l = 0; l < level; ++l) begin += levels.level[l].points;
      const float* const from = grad_reference + (coordinate * 2 + item) * kSamples;
      float sum = 0;
      for (int k = begin; k < begin + levels.level[level].points; ++k) sum += from[k];
      const uint32_t nth = source.first + first + item;
      if (first + item >= static_cast<int>(source.alive)) continue;
      const int64_t q = levels.query(nth, L), row = source.head.b * p.Q + q;
      static_cast<float*>(
          p.grad_reference_points)[((row * p.M + source.head.m) * L + level) * coordinates + coordinate] =
          sum;
    }
    __syncwarp();
  }
};

template <class T, bool kTiles>
__host__ __device__ auto tile_sums(Carver& carver, const CudaParams& p, int samples) {
  if constexpr (kTiles) {
    return TileSums<T>(carver, p, samples);
  } else {
    return 0;
  }
}

template <class T, bool kFused, int kSamples, ValueSums kSums>
__global__ void __launch_bounds__(kPairThreads, 3) backward_mma_kernel(const __grid_constant__ CudaParams p) {
  DINO_DYNAMIC_SHARED(memory);
  Carver carver{memory};
  const BackwardPairs shared(carver, p, kSamples);
  constexpr bool kTiles = kSums == ValueSums::tile;
  [[maybe_unused]] const auto tile = tile_sums<T, kTiles>(carver, p, kSamples);
  shared.levels.fill(p);
  using Pair = BackwardPair<T, kFused, kSamples, kSums>;
  constexpr int kChunks = Pair::kChunks;
  const Pair pair(p, shared);
  const auto& source = pair.source;
  const PairLane& lane = source.lane;
  const bool wants_samples = p.grad_positions || p.grad_weights || p.grad_reference_points;
  typename Pair::Raws::Raw raw[kChunks];
  if constexpr (kTiles) tile.prepare(p, shared.levels, source.head);
#pragma unroll 1
  for (int first = 0; first < kWarpItems; first += 2) {
    const uint32_t q = source.query_of(first + lane.item), q_of_column = source.query_of(first + lane.g / 4);
    const bool alive = first + lane.item < static_cast<int>(source.alive);
    uint32_t column[2] = {};
    if (wants_samples) {
      const uint32_t* const words =
          reinterpret_cast<const uint32_t*>(pair.grad_of(q_of_column)) + 4 * lane.t + lane.g % 2;
      column[0] = __ldg(words);
      column[1] = __ldg(words + 2);
    }
    source.load(q, raw);
    source.weigh(raw);
    char* const grad_positions = pair.gradients(p.grad_positions, q, 2 * source.position_bytes());
    float attention[kChunks] = {}, grad_attention[kChunks] = {}, mean = 0;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int samples = number_of_samples<kSamples>(p) - kPairSamples * chunk;
      if (samples <= 0) break;
      attention[chunk] = raw[chunk].weight;
      PairSample sample;
      const bool readable = source.locate(raw[chunk], chunk, alive, sample);
      uint32_t to_add = sample.valid;
      if constexpr (kTiles) {
        const int item = threadIdx.x / 32 * kWarpItems + first + lane.item;
        to_add &= ~tile.take(sample, tile.windows[source.level_index[chunk]], item, source.k(chunk));
      }
      pair.leave(sample, to_add);
      __syncwarp();
      if (wants_samples) {
        float dots[4] = {};
        if (readable) pair.dot(column, samples, dots);
#pragma unroll
        for (int c = 0; c < 4; ++c) dots[c] = sample.valid >> c & 1 ? dots[c] : 0.0f;
        grad_attention[chunk] =
            pair.finish(sample, dots, chunk, alive && source.exists(chunk), grad_positions);
        mean += attention[chunk] * grad_attention[chunk];
      }
      if (p.sums) {
        pair.scatter(0, source.query_of(first), samples);
        pair.scatter(1, source.query_of(first + 1), samples);
      }
      __syncwarp();
    }
    if (p.grad_weights) {
      if constexpr (kFused) {
        for (const int bit : {1, 4, 8, 16}) mean += __shfl_xor_sync(kWholeWarp, mean, bit);
      }
      char* const to = pair.gradients(p.grad_weights, q, source.weight_bytes());
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const float gradient =
            kFused ? attention[chunk] * (grad_attention[chunk] - mean) : grad_attention[chunk];
        if (alive && source.exists(chunk))
          store_raw<T>(to, p.weights_as_value, kPairSamples * chunk, gradient);
      }
    }
    if (kFused && p.grad_reference_points) pair.finish_reference_points(shared.levels, first);
  }
  if constexpr (kTiles) {
    for (int l = 0, begin = 0, end = 0; l < static_cast<int>(p.L); ++l, begin = end) {
      const LevelInShared level = shared.levels.level[l];
      end = begin + level.points;
      if (tile.windows[l].used) tile.add_up(level, tile.windows[l], begin, end, pair.sums);
    }
  }
}

}  // namespace dino_kernels
