// grad_value of a tile of 64 queries as a matrix product, where they sample the same rows: on each level a
// window of 16 x 16 pixels around the tile. Its sums are W G: W has the weight with which a query (column)
// hits a pixel of the window (row), G the output gradients of the queries. So each row of the window is
// written to global memory once. Hits outside it are added one by one.
//
// A weight is split into a high and a low 16-bit part (cuda_pairs.cuh), G is exact, and sums are float32. W
// has room for half of the queries at a time. Zeros of W would turn an infinity in G into NaN on all rows, so
// such tiles have no windows.
#pragma once

#include "cuda_grad_value.cuh"
#include "cuda_pairs.cuh"

namespace dino_kernels {

// The window of one level; if there is none, first_x is far from all pixels.
struct Window {
  int32_t first_x, first_y;  // pixels
  bool used;
};

template <class T>
struct TileSums {
  static constexpr int kSide = 16, kSlots = kSide * kSide;  // pixels of a window
  static constexpr int kColumns = kBlockItems / 2;          // of W
  static constexpr int kGradStride = 40;  // numbers; a multiple of 8 that spreads rows over the banks

  Window* windows;      // [L]
  uint32_t* weights;    // W: [kSlots][kColumns], split; columns are exchanged by column()
  T* grads;             // G: [kBlockItems][kGradStride], channels in the order of channel_place()
  uint32_t* hit_slots;  // [kBlockItems][hits + 1]: of a sample's corners, a byte each
  float4* hit_weights;  // [kBlockItems][hits + 1]: 0 for hits outside the window
  int hits;             // samples of an item

  __host__ __device__ TileSums(Carver& carver, const CudaParams& p, int samples)
      : windows(carver.take<Window>(p.L)),
        weights(carver.take<uint32_t>(kSlots * kColumns)),
        grads(carver.take<T>(kBlockItems * kGradStride)),
        hit_slots(carver.take<uint32_t>(kBlockItems * (samples + 1))),
        hit_weights(carver.take<float4>(kBlockItems * (samples + 1))),
        hits(samples) {}

  // Lanes that read a pair of columns of 4 rows, or write 8 columns of one, do not share banks.
  static __device__ __forceinline__ int place(int slot, int column) {
    return slot * kColumns + (column ^ slot % 4 * 8);
  }

  // Place of a pair of channels, such that the sums of a lane, two neighbours of each product of 8 columns,
  // belong to 4 neighbours of two.
  static __device__ __forceinline__ int channel_pair_place(int pair) {
    return (pair & 8) | (pair & 1) << 2 | (pair >> 1 & 3);
  }

  // By all threads of the block; ends with a barrier.
  __device__ void prepare(const CudaParams& p, const Levels& levels, const BlockHead& head) const {
    const int thread = threadIdx.x;
    // G: 16 bytes per thread.
    const int item = thread / 4, part = thread % 4;
    const int64_t nth = head.first_query + item;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (nth < p.Q) {
      const int64_t q = levels.query(nth, static_cast<int>(p.L));
      const T* const from = static_cast<const T*>(p.grad_output.data) + head.b * p.grad_output.batch_stride +
                            q * p.grad_output.row_stride + head.m * p.D;
      words = __ldg(reinterpret_cast<const uint4*>(from) + part);
    }
    uint32_t* const row = reinterpret_cast<uint32_t*>(grads + item * kGradStride);
    const uint32_t each[4] = {words.x, words.y, words.z, words.w};
    float zero = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      row[channel_pair_place(4 * part + i)] = each[i];
      Packed<T, 2> pack;
      memcpy(&pack, &each[i], 4);
      float pair[2];
      widen<T, 2>(pack, pair);
      zero += pair[0] * 0.0f + pair[1] * 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kSlots * kColumns / 4 / kPairThreads; ++i) {
      reinterpret_cast<uint4*>(weights)[thread + i * kPairThreads] = make_uint4(0, 0, 0, 0);
    }
    const bool finite = !__syncthreads_or(zero != 0.0f);
    if (thread < p.L) windows[thread] = window(p, levels, head.first_query, levels.level[thread], finite);
    __syncthreads();
  }

  // Between the positions, on a level, of the tile's first and last query.
  static __device__ Window window(const CudaParams& p, const Levels& levels, int64_t first,
                                  const LevelInShared& of, bool finite) {
    const int L = static_cast<int>(p.L);
    const int64_t end = p.Q - first < kBlockItems ? p.Q : first + kBlockItems;
    int32_t level[2], x[2], y[2];
    for (int i = 0; i < 2; ++i) {
      const int32_t q = static_cast<int32_t>(levels.query(i == 0 ? first : end - 1, L));
      int l = 0;
      while (l + 1 < L && q >= levels.level[l + 1].start) ++l;
      level[i] = l;
      y[i] = (q - levels.level[l].start) / levels.level[l].width;
      x[i] = (q - levels.level[l].start) % levels.level[l].width;
    }
    const LevelInShared own = levels.level[level[0]];
    const float scale_x = static_cast<float>(of.width) / static_cast<float>(own.width);
    const float scale_y = static_cast<float>(of.height) / static_cast<float>(own.height);
    // Tiles of another level's pixels, or across several strips, may be wider than the window.
    const float wide = static_cast<float>(max(x[0], x[1]) - min(x[0], x[1]) + 1) * scale_x;
    const float high = static_cast<float>(max(y[0], y[1]) - min(y[0], y[1]) + 1) * scale_y;
    const float x_center = 0.5f * static_cast<float>(x[0] + x[1] + 1) * scale_x;
    const float y_center = 0.5f * static_cast<float>(y[0] + y[1] + 1) * scale_y;
    const auto begin = [](float center, int32_t size) {
      return max(0, min(static_cast<int32_t>(center) - kSide / 2, size - kSide));
    };
    if (!finite || level[0] != level[1] || wide > kSide || high > kSide)
      return {INT32_MIN / 2, INT32_MIN / 2, false};
    return {begin(x_center, of.width), begin(y_center, of.height), true};
  }

  // Stores a sample's hits for add_up(). Returns which corners are in the window, one bit each.
  __device__ __forceinline__ uint32_t take(const PairSample& sample, const Window& window, int item,
                                           int k) const {
    // Unsigned, as in PairSource::locate.
    const uint32_t x = static_cast<uint32_t>(sample.x) - static_cast<uint32_t>(window.first_x);
    const uint32_t y = static_cast<uint32_t>(sample.y) - static_cast<uint32_t>(window.first_y);
    float weight[4];
    uint32_t taken = 0, slots = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const uint32_t column = x + c % 2, line = y + c / 2;
      weight[c] = sample.weight[c] * sample.attention;
      const bool inside = (sample.valid >> c & 1) && column < kSide && line < kSide &&
                          fabsf(weight[c]) <= SplitWeight<T>::kLargest;
      weight[c] = inside ? weight[c] : 0.0f;
      slots |= inside ? (line * kSide + column) << 8 * c : 0u;
      taken |= inside ? 1u << c : 0u;
    }
    const int at = item * (hits + 1) + k;
    hit_slots[at] = slots;
    hit_weights[at] = make_float4(weight[0], weight[1], weight[2], weight[3]);
    return taken;
  }

  // Adds to W the hits of a warp's 8 items on samples [begin, end). A lane has one corner of one item: the
  // four corners of a sample are different rows, and the next sample follows when all have been added.
  __device__ __forceinline__ void gather(int begin, int end) const {
    const int lane = threadIdx.x % 32, corner = lane / kWarpItems;
    const int item = threadIdx.x / 32 * kWarpItems + lane % kWarpItems;
    const float* const from = reinterpret_cast<const float*>(hit_weights + item * (hits + 1)) + corner;
    for (int k = begin; k < end; ++k) {
      const float weight = from[4 * k];
      const int slot = hit_slots[item * (hits + 1) + k] >> 8 * corner & 255;
      if (weight != 0.0f) {
        uint32_t& to = weights[place(slot, item % kColumns)];
        const float sum[2] = {SplitWeight<T>::join(to) + weight, 0.0f};
        uint32_t words[2];
        SplitWeight<T>::split(sum, words);
        to = words[0];
      }
      __syncwarp();
    }
  }

  // Adds the hits on samples [begin, end), which all belong to one level. By all threads; the windows' W is
  // zero before and after it.
  template <class Sums>
  __device__ __forceinline__ void add_up(const LevelInShared& level, const Window& window, int begin, int end,
                                         const Sums& sums) const {
    constexpr int kWarps = kPairThreads / 32, kTiles = kSlots / 16 / kWarps;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float products[kTiles][4][4] = {};
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      if (warp / (kWarps / 2) == half) gather(begin, end);
      __syncthreads();
#pragma unroll
      for (int step = 0; step < kColumns / 16; ++step) {
        uint32_t right[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int item = half * kColumns + step * 16 + lane % 16;
          load_transposed_x4(right[i], grads + item * kGradStride + (2 * i + lane / 16) * 8);
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          uint32_t high[4], low[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int slot = (warp + tile * kWarps) * 16 + g + i % 2 * 8;
            uint2* const pair =
                reinterpret_cast<uint2*>(weights + place(slot, step * 16 + i / 2 * 8 + 2 * t));
            const uint2 words = *pair;
            *pair = make_uint2(0, 0);
            high[i] = __byte_perm(words.x, words.y, 0x7632);
            low[i] = __byte_perm(words.x, words.y, 0x5410);
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            mma_16x8x16<T>(products[tile][j], high[0], high[1], high[2], high[3], right[j / 2][j % 2 * 2],
                           right[j / 2][j % 2 * 2 + 1]);
            mma_16x8x16<T>(products[tile][j], low[0], low[1], low[2], low[3], right[j / 2][j % 2 * 2],
                           right[j / 2][j % 2 * 2 + 1]);
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int32_t line =
          level.start + (window.first_y + warp + tile * kWarps) * level.width + window.first_x;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const auto& left = products[tile][2 * part];
          const auto& right = products[tile][2 * part + 1];
          constexpr float kScale = 1 / SplitWeight<T>::kScale;
          const float numbers[4] = {left[2 * i] * kScale, left[2 * i + 1] * kScale, right[2 * i] * kScale,
                                    right[2 * i + 1] * kScale};
          // Rows of pixels beyond the level have no hits.
          if (numbers[0] != 0 || numbers[1] != 0 || numbers[2] != 0 || numbers[3] != 0) {
            sums.add_numbers(line + g + 8 * i, 16 * part, numbers);
          }
        }
      }
    }
  }
};

}  // namespace dino_kernels
