// How the kernels with tensor cores deal out a block: 64 consecutive queries of one head, eight a warp, which takes
// them as four pairs.
//
// A pair has 16 samples an item and chunk: one a lane. With g = lane / 4 and t = lane % 4, the letters of mma.cuh, lane
// (g, t) locates sample g + 8 (t % 2) of item t / 2. Numbers of queries and bytes from row to row fit 32 bits here, and
// x and y of a position are aligned together; other calls go to the other kernels (cuda_launch.cuh).
//
// kSamples: how many an item has, if it is 16, as in nearly all models; or 32, for up to as many.
#pragma once

#include "../common/mma.cuh"
#include "cuda_samples.cuh"

namespace dino_kernels {

constexpr int kPairThreads = 256;
constexpr int kBlockItems = 64, kWarpItems = 8;  // (image, query, head)s of a block and of a warp
constexpr int kPairSamples = 16;                 // of an item in one chunk

template <int kSamples>
__device__ __forceinline__ int number_of_samples(const CudaParams& p) {
  return kSamples == kPairSamples ? kPairSamples : static_cast<int>(p.K);
}

struct PairLane {
  int g, t;
  int item;    // of the pair
  int sample;  // of the chunk

  __device__ PairLane()
      : g(threadIdx.x % 32 / 4), t(threadIdx.x % 4), item(t / 2), sample(g + 8 * (t % 2)) {}
};

// Where a sample of a pair lies in shared memory, in units of 16 bytes. Spread, so that lanes of one access do not
// share banks.
constexpr int kPairPlaces = 40;
__device__ __forceinline__ int pair_place(int item, int sample) { return 20 * item + 10 * (sample / 8) + sample % 8; }

// 16-bit numbers high + low for each of two weights, as the halves of a word: together they have 16 significant bits
// (BFloat16), or 21 (Half, of a weight times kScale, which keeps small ones normal).
template <class T>
struct SplitWeight;

template <>
struct SplitWeight<BFloat16> {
  static constexpr float kScale = 1;
  // Cut off rather than rounded: a finite number stays finite.
  static __device__ __forceinline__ void split(const float (&weight)[2], uint32_t (&word)[2]) {
    float rest[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rest[i] = weight[i] - __uint_as_float(__float_as_uint(weight[i]) & 0xffff0000u);
    }
    const __nv_bfloat162 low = __floats2bfloat162_rn(rest[0], rest[1]);
    uint32_t lows;
    memcpy(&lows, &low, 4);
    word[0] = __byte_perm(lows, __float_as_uint(weight[0]), 0x7610);
    word[1] = __byte_perm(lows, __float_as_uint(weight[1]), 0x7632);
  }
  static __device__ __forceinline__ float join(uint32_t word) {
    return __uint_as_float(word & 0xffff0000u) + __uint_as_float(word << 16);
  }
};

template <>
struct SplitWeight<Half> {
  static constexpr float kScale = 1024;
  static __device__ __forceinline__ void split(const float (&weight)[2], uint32_t (&word)[2]) {
    const float first = weight[0] * kScale, second = weight[1] * kScale;
    const __half2 high = __floats2half2_rn(first, second);
    const float2 wide = __half22float2(high);
    const __half2 low = __floats2half2_rn(first - wide.x, second - wide.y);
    uint32_t highs, lows;
    memcpy(&highs, &high, 4);
    memcpy(&lows, &low, 4);
    word[0] = __byte_perm(lows, highs, 0x5410);
    word[1] = __byte_perm(lows, highs, 0x7632);
  }
  static __device__ __forceinline__ float join(uint32_t word) {
    __half2 parts;
    memcpy(&parts, &word, 4);
    const float2 wide = __half22float2(parts);
    return (wide.x + wide.y) * (1 / kScale);
  }
};

// Rounded down; far away numbers become the nearest there is.
__device__ __forceinline__ int32_t floor_to_int(float x) {
#if defined(__CUDA_ARCH__)
  return __float2int_rd(x);
#else
  return static_cast<int32_t>(fmaxf(fminf(floorf(x), 2147483520.0f), -2147483648.0f));
#endif
}

// Within 2^-20 of e^x for -20 < x <= 0, more for smaller ones; below 2^-126 it is 0.
__device__ __forceinline__ float fast_exponential(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
  return result;
#else
  const float result = expf(x);
  return result < 0x1p-126f ? 0.0f : result;
#endif
}

// Within 2^-22 of 1 / x, of a normal number.
__device__ __forceinline__ float fast_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}

// The four pixels around a point as bilinear_corners() has them, but with weight 0 where they are not valid, and with rows
// that always exist: of the nearest pixel.
__device__ __forceinline__ Corners<float> clamped_corners(float x, float y, bool exists, const LevelInShared& level) {
  exists = exists && x == x && y == y;
  x = exists ? x : -2.0f;
  y = exists ? y : -2.0f;
  const int32_t x0 = floor_to_int(x), y0 = floor_to_int(y);
  const uint32_t width = static_cast<uint32_t>(level.width), height = static_cast<uint32_t>(level.height);
  // Unsigned: negative ones are large. Beyond the level a fraction may be anything, and is not used.
  const bool left = static_cast<uint32_t>(x0) < width, right = static_cast<uint32_t>(x0) + 1 < width;
  const bool above = static_cast<uint32_t>(y0) < height, below = static_cast<uint32_t>(y0) + 1 < height;
  Corners<float> corners;
  corners.fraction_x = x - static_cast<float>(x0);
  corners.fraction_y = y - static_cast<float>(y0);
  const float weight_x[2] = {left ? 1.0f - corners.fraction_x : 0.0f, right ? corners.fraction_x : 0.0f};
  const float weight_y[2] = {above ? 1.0f - corners.fraction_y : 0.0f, below ? corners.fraction_y : 0.0f};
  const int32_t column[2] = {left ? x0 : 0, right ? x0 + 1 : 0};
  const int32_t line[2] = {level.start + (above ? y0 : 0) * level.width, level.start + (below ? y0 + 1 : 0) * level.width};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    corners.row[c] = line[c / 2] + column[c % 2];
    corners.weight[c] = weight_y[c / 2] * weight_x[c % 2];
  }
  corners.valid[0] = above && left;
  corners.valid[1] = above && right;
  corners.valid[2] = below && left;
  corners.valid[3] = below && right;
  return corners;
}

// The raw samples of a pair of items, the counterpart of Source. A lane's samples belong to the
// same levels in all pairs.
template <class T, bool kFused, int kSamples>
struct PairSource {
  static constexpr int kChunks = kSamples / kPairSamples;
  const CudaParams& p;
  const PairLane lane;
  const BlockHead head;
  const bool* mask;                 // [S] of the image, or null
  const char *positions, *weights;  // of the block's head, this lane's first sample
  const char* references;           // of its image, of this lane's first sample's level
  int level_index[kChunks];
  LevelInShared level[kChunks];
  uint32_t first;  // of the warp's items, counted in the order of Levels::query
  uint32_t alive;  // how many of them there are
  uint32_t query;  // one of theirs a lane; lanes 8 and on repeat them

  // What a lane reads for one chunk.
  struct Raw {
    float x, y, weight;
    float at[4];  // reference
  };

  __device__ PairSource(const CudaParams& p_, const Levels& levels)
      : p(p_),
        head(p_, kBlockItems),
        mask(kFused && p_.value_mask ? p_.value_mask + head.b * p_.S : nullptr),
        positions(first_of_head(p_.positions, 2, position_bytes())),
        weights(first_of_head(p_.weights, 1, weight_bytes())),
        first(static_cast<uint32_t>(head.first_query) + threadIdx.x / 32 * kWarpItems),
        alive(min(static_cast<uint32_t>(p_.Q) - min(first, static_cast<uint32_t>(p_.Q)), uint32_t{kWarpItems})) {
    const uint32_t nth = min(first + threadIdx.x % kWarpItems, static_cast<uint32_t>(p_.Q) - 1);
    query = static_cast<uint32_t>(levels.query(nth, static_cast<int>(p_.L)));
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      level_index[c] = levels.of_sample[min(k(c), number_of_samples<kSamples>(p_) - 1)];
      level[c] = levels.level[level_index[c]];
    }
    references = kept_whole(static_cast<const char*>(p_.reference_points) +
                            (head.b * p_.Q * p_.L + level_index[0]) * reference_bytes());
  }

  __device__ __forceinline__ uint32_t position_bytes() const { return p.positions_as_value ? sizeof(T) : 4; }
  __device__ __forceinline__ uint32_t weight_bytes() const { return p.weights_as_value ? sizeof(T) : 4; }
  __device__ __forceinline__ uint32_t reference_bytes() const {
    return static_cast<uint32_t>(p.reference_coordinates) * 4;
  }
  __device__ __forceinline__ const char* first_of_head(const Rows& rows, uint32_t each, uint32_t bytes) const {
    const int64_t column = (head.m * number_of_samples<kSamples>(p) + lane.sample) * each;
    return kept_whole(static_cast<const char*>(rows.data) + (head.b * rows.batch_stride + column) * bytes);
  }

  __device__ __forceinline__ int k(int chunk) const { return kPairSamples * chunk + lane.sample; }
  __device__ __forceinline__ bool exists(int chunk) const { return k(chunk) < number_of_samples<kSamples>(p); }
  // By all lanes of the warp, each with an item of its own.
  __device__ __forceinline__ uint32_t query_of(int item) const { return __shfl_sync(kWholeWarp, query, item); }

  __device__ __forceinline__ void load(uint32_t q, Raw (&raw)[kChunks]) const {
    const char* const position =
        row_address(positions, q, static_cast<uint32_t>(p.positions.row_stride) * position_bytes());
    const char* const weight = row_address(weights, q, static_cast<uint32_t>(p.weights.row_stride) * weight_bytes());
    const char* const reference = row_address(references, q, static_cast<uint32_t>(p.L) * reference_bytes());
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      Raw& to = raw[c];
      to = {0, 0, kFused ? -INFINITY : 0, {0, 0, 0, 0}};
      if (!exists(c)) continue;
      load_raw_pair<T>(position + 2 * kPairSamples * c * position_bytes(), p.positions_as_value, true, to.x, to.y);
      to.weight = load_raw<T>(weight + kPairSamples * c * weight_bytes(), p.weights_as_value);
      if constexpr (kFused) {
        const int beyond = level_index[c] - level_index[0];
        const float* const at = reinterpret_cast<const float*>(reference + beyond * static_cast<int>(reference_bytes()));
        to.at[0] = __ldg(at);
        to.at[1] = __ldg(at + 1);
        if (p.reference_coordinates == 4) {
          to.at[2] = __ldg(at + 2);
          to.at[3] = __ldg(at + 3);
        }
      }
    }
  }

  // From logits to weights: softmax over the lanes of an item.
  __device__ __forceinline__ void weigh(Raw (&raw)[kChunks]) const {
    if constexpr (!kFused) return;
    constexpr int kBits[] = {1, 4, 8, 16};  // that tell the lanes of an item apart
    float maximum = raw[0].weight;
#pragma unroll
    for (int c = 1; c < kChunks; ++c) maximum = fmaxf(maximum, raw[c].weight);
#pragma unroll
    for (int i = 0; i < 4; ++i) maximum = fmaxf(maximum, __shfl_xor_sync(kWholeWarp, maximum, kBits[i]));
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) sum += raw[c].weight = fast_exponential(raw[c].weight - maximum);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += __shfl_xor_sync(kWholeWarp, sum, kBits[i]);
    const float inverse = fast_reciprocal(sum);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) raw[c].weight *= inverse;
  }

  // The sample of a chunk, of which weigh() has been called. Its corners' rows exist, and so they can be read, valid or
  // not.
  __device__ __forceinline__ Sample<float> locate(const Raw& raw, int chunk, bool item_exists) const {
    Sample<float> sample;
    sample.level = level_index[chunk];
    sample.raw_x = raw.x;
    sample.raw_y = raw.y;
    sample.attention = raw.weight;
    float x, y;
    sample.template project<kFused>(level[chunk], raw.at, static_cast<int>(p.reference_coordinates), x, y);
    Corners<float>& corners = sample.corners;
    corners = clamped_corners(x, y, item_exists && exists(chunk), level[chunk]);
    if (kFused && mask != nullptr) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const bool padding = mask[corners.row[c]];
        corners.valid[c] = corners.valid[c] && !padding;
        corners.weight[c] = padding ? 0.0f : corners.weight[c];
      }
    }
    return sample;
  }
};

}  // namespace dino_kernels
