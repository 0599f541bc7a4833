// How the kernels with tensor cores divide a block: 64 consecutive queries of one head, eight per warp, which
// processes them as four pairs.
//
// A pair has 16 samples per item and chunk: one per lane. With g = lane / 4 and t = lane % 4, the letters of
// mma.cuh, lane (g, t) locates sample g + 8 (t % 2) of item t / 2. Numbers of queries and row strides in
// bytes fit 32 bits here, and x and y of a position are aligned together; other calls use the other kernels
// (cuda_launch.cu).
//
// kSamples: samples of an item, if that is 16, as in nearly all models; or 32, for up to 32.
#pragma once

#include "../common/approximate.cuh"
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

  __device__ PairLane() : g(threadIdx.x % 32 / 4), t(threadIdx.x % 4), item(t / 2), sample(g + 8 * (t % 2)) {}
};

// Index of a sample of a pair in shared memory, in units of 16 bytes. Padded, so that lanes of one access do
// not share banks.
constexpr int kPairPlaces = 40;
__device__ __forceinline__ int pair_place(int item, int sample) {
  return 20 * item + 10 * (sample / 8) + sample % 8;
}

// 16-bit numbers high + low for each of two weights, as the halves of a word: together they have 16
// significant bits (BFloat16), or 21 (Half, of a weight times kScale, which keeps small ones normal). Sums of
// up to 32 weights of size kLargest are finite.
template <class T>
struct SplitWeight;

template <>
struct SplitWeight<BFloat16> {
  static constexpr float kScale = 1;
  static constexpr float kLargest = 0x1p120f;
  // Truncated rather than rounded, so that a finite number stays finite.
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
  static constexpr float kLargest = 1;
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

// A sample of a pair, in the registers of the lane that located it.
struct PairSample {
  float raw_x, raw_y;      // as given: a location, or an offset
  float scale_x, scale_y;  // pixels per unit of it
  float attention;
  int32_t x, y;                  // pixel of the upper left corner
  float fraction_x, fraction_y;  // of Corners
  int32_t row[4];                // of S, each of which can be read
  float weight[4];               // bilinear; 0 where not valid
  uint32_t valid;                // a bit a corner: inside the level, and no padding
};

// The raw samples of a pair of items, the counterpart of Source. A lane's samples belong to the same levels
// in all pairs. kMask: there may be padding.
template <class T, bool kFused, int kSamples, bool kMask>
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
  // Pixels per unit of a position; with boxes, also per unit of their width and height.
  float unit_x[kChunks], unit_y[kChunks];
  uint32_t first;  // of the warp's items, counted in the order of Levels::query
  uint32_t alive;  // how many of them exist
  uint32_t query;  // one of theirs a lane; lanes 8 and on repeat them

  // The numbers that a lane reads for one chunk.
  struct Raw {
    float x, y, weight;
    float at[4];  // reference
  };

  __device__ PairSource(const CudaParams& p_, const Levels& levels)
      : p(p_),
        head(p_, kBlockItems),
        mask(kMask && p_.value_mask ? p_.value_mask + head.b * p_.S : nullptr),
        positions(first_of_head(p_.positions, 2, position_bytes())),
        weights(first_of_head(p_.weights, 1, weight_bytes())),
        first(static_cast<uint32_t>(head.first_query) + threadIdx.x / 32 * kWarpItems),
        alive(min(static_cast<uint32_t>(p_.Q) - min(first, static_cast<uint32_t>(p_.Q)),
                  uint32_t{kWarpItems})) {
    const uint32_t nth = min(first + threadIdx.x % kWarpItems, static_cast<uint32_t>(p_.Q) - 1);
    query = static_cast<uint32_t>(levels.query(nth, static_cast<int>(p_.L)));
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      level_index[c] = levels.of_sample[min(k(c), number_of_samples<kSamples>(p_) - 1)];
      level[c] = levels.level[level_index[c]];
      const float width = static_cast<float>(level[c].width), height = static_cast<float>(level[c].height);
      const bool boxes = kFused && p_.reference_coordinates == 4;
      const float half = 0.5f / static_cast<float>(level[c].points);
      unit_x[c] = !kFused ? width : boxes ? half * width : 1.0f;
      unit_y[c] = !kFused ? height : boxes ? half * height : 1.0f;
    }
    references = kept_whole(static_cast<const char*>(p_.reference_points) +
                            (head.b * p_.Q * p_.L + level_index[0]) * reference_bytes());
  }

  __device__ __forceinline__ uint32_t position_bytes() const { return p.positions_as_value ? sizeof(T) : 4; }
  __device__ __forceinline__ uint32_t weight_bytes() const { return p.weights_as_value ? sizeof(T) : 4; }
  __device__ __forceinline__ uint32_t reference_bytes() const {
    return static_cast<uint32_t>(p.reference_coordinates) * 4;
  }
  __device__ __forceinline__ const char* first_of_head(const Rows& rows, uint32_t each,
                                                       uint32_t bytes) const {
    const int64_t column = (head.m * number_of_samples<kSamples>(p) + lane.sample) * each;
    return kept_whole(static_cast<const char*>(rows.data) + (head.b * rows.batch_stride + column) * bytes);
  }

  __device__ __forceinline__ int k(int chunk) const { return kPairSamples * chunk + lane.sample; }
  __device__ __forceinline__ bool exists(int chunk) const {
    return k(chunk) < number_of_samples<kSamples>(p);
  }
  // By all lanes of the warp, each with its own item.
  __device__ __forceinline__ uint32_t query_of(int item) const {
    return __shfl_sync(kWholeWarp, query, item);
  }

  __device__ __forceinline__ void load(uint32_t q, Raw (&raw)[kChunks]) const {
    const char* const position =
        row_address(positions, q, static_cast<uint32_t>(p.positions.row_stride) * position_bytes());
    const char* const weight =
        row_address(weights, q, static_cast<uint32_t>(p.weights.row_stride) * weight_bytes());
    const char* const reference = row_address(references, q, static_cast<uint32_t>(p.L) * reference_bytes());
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      Raw& to = raw[c];
      to = {0, 0, kFused ? -INFINITY : 0, {0, 0, 1, 1}};
      if (!exists(c)) continue;
      load_raw_pair<T>(position + 2 * kPairSamples * c * position_bytes(), p.positions_as_value, true, to.x,
                       to.y);
      to.weight = load_raw<T>(weight + kPairSamples * c * weight_bytes(), p.weights_as_value);
      if constexpr (kFused) {
        const int beyond = level_index[c] - level_index[0];
        const float* const at =
            reinterpret_cast<const float*>(reference + beyond * static_cast<int>(reference_bytes()));
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
    constexpr float kLog2E = 1.4426950408889634f;
    float maximum = raw[0].weight;
#pragma unroll
    for (int c = 1; c < kChunks; ++c) maximum = fmaxf(maximum, raw[c].weight);
#pragma unroll
    for (int i = 0; i < 4; ++i) maximum = fmaxf(maximum, __shfl_xor_sync(kWholeWarp, maximum, kBits[i]));
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) sum += raw[c].weight = exp2_of((raw[c].weight - maximum) * kLog2E);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += __shfl_xor_sync(kWholeWarp, sum, kBits[i]);
    const float inverse = reciprocal(sum);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) raw[c].weight *= inverse;
  }

  // The sample of a chunk, after weigh() was called on it; by all lanes of a warp. Corners that are not valid
  // get the row of a valid one, of any lane, so that rows can be read without branches. Returns false if
  // there is none.
  __device__ __forceinline__ bool locate(const Raw& raw, int chunk, bool item_exists,
                                         PairSample& sample) const {
    const LevelInShared& of = level[chunk];
    sample.raw_x = raw.x;
    sample.raw_y = raw.y;
    sample.scale_x = raw.at[2] * unit_x[chunk];
    sample.scale_y = raw.at[3] * unit_y[chunk];
    sample.attention = raw.weight;
    float x = raw.x * sample.scale_x - 0.5f, y = raw.y * sample.scale_y - 0.5f;
    if constexpr (kFused) {
      x += raw.at[0] * static_cast<float>(of.width);
      y += raw.at[1] * static_cast<float>(of.height);
    }
    const bool there = item_exists && exists(chunk) && x == x && y == y;
    x = there ? x : -2.0f;
    y = there ? y : -2.0f;
    const int32_t x0 = __float2int_rd(x), y0 = __float2int_rd(y);
    sample.x = x0;
    sample.y = y0;
    sample.fraction_x = x - static_cast<float>(x0);
    sample.fraction_y = y - static_cast<float>(y0);
    // Unsigned: negative numbers become large, and overflowed results are not used.
    const uint32_t width = static_cast<uint32_t>(of.width), height = static_cast<uint32_t>(of.height);
    const uint32_t start = static_cast<uint32_t>(of.start);
    const uint32_t first_column = static_cast<uint32_t>(x0), first_line = static_cast<uint32_t>(y0);
    const bool left = first_column < width, right = first_column + 1 < width;
    const bool above = first_line < height, below = first_line + 1 < height;
    const float weight_x[2] = {left ? 1.0f - sample.fraction_x : 0.0f, right ? sample.fraction_x : 0.0f};
    const float weight_y[2] = {above ? 1.0f - sample.fraction_y : 0.0f, below ? sample.fraction_y : 0.0f};
    // Next to a border, the row of the other corner.
    const uint32_t column[2] = {left ? first_column : first_column + 1,
                                right ? first_column + 1 : first_column};
    const uint32_t line[2] = {(above ? first_line : first_line + 1) * width + start,
                              (below ? first_line + 1 : first_line) * width + start};
    const bool valid_x[2] = {left, right}, valid_y[2] = {above, below};
    sample.valid = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      sample.row[c] = static_cast<int32_t>(line[c / 2] + column[c % 2]);
      sample.weight[c] = weight_y[c / 2] * weight_x[c % 2];
      sample.valid |= valid_y[c / 2] && valid_x[c % 2] ? 1u << c : 0u;
    }
    const bool inside = (left || right) && (above || below);
    if (kMask && mask != nullptr) return without_padding(inside, sample);
    if (__all_sync(kWholeWarp, inside)) return true;
    const int32_t some = __reduce_max_sync(kWholeWarp, inside ? sample.row[0] : -1);
#pragma unroll
    for (int c = 0; c < 4; ++c) sample.row[c] = inside ? sample.row[c] : some;
    return some >= 0;
  }

  __device__ __forceinline__ bool without_padding(bool inside, PairSample& sample) const {
    int32_t some = -1;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (!inside || mask[sample.row[c]]) {
        sample.valid &= ~(1u << c);
        sample.weight[c] = 0;
      } else {
        some = sample.row[c];
      }
    }
    const int32_t any = __reduce_max_sync(kWholeWarp, some);
    // A corner next to a border has the row of a valid one, or of padding.
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (!inside || mask[sample.row[c]]) sample.row[c] = any;
    }
    return any >= 0;
  }
};

}  // namespace dino_kernels
