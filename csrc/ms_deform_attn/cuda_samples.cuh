// Where the samples of a head read and with which weight: shared by forward and backward.
//
// A group of lanes holds the D channels of one row, 16 bytes per lane. An item, one (image, query, head),
// belongs to one group, or to several that share its samples. Samples are processed in chunks of as many as
// the item has lanes: each lane locates one (position, corners, weight) and stores it in shared memory, then
// every group iterates over those of its own lanes.
#pragma once

#include "../common/block.cuh"
#include "../common/launch.h"
#include "../common/vec.cuh"
#include "bilinear.h"
#include "cuda_params.h"
#include "cuda_raw.cuh"

namespace dino_kernels {

struct LevelInShared {
  int32_t width, height;  // pixels
  int32_t start;          // first row in S
  int32_t points;         // samples per head
};

__device__ __forceinline__ int64_t read_index(const void* from, bool is_int64, int i) {
  return is_int64 ? static_cast<const long long*>(from)[i] : static_cast<const int32_t*>(from)[i];
}

// The level table of a block.
struct Levels {
  LevelInShared* level;  // [L]
  uint8_t* of_sample;    // [K]
  int32_t* on_grid;      // [1]: the levels fill S, and Q == S

  __host__ __device__ Levels(Carver& carver, const CudaParams& p)
      : level(carver.take<LevelInShared>(p.L)),
        of_sample(carver.take<uint8_t>(p.K)),
        on_grid(carver.take<int32_t>(1)) {}

  // By all threads of the block; ends with a barrier. A table on the device cannot be checked before the
  // launch, so it is checked here: a level that is not inside value would be read out of bounds.
  __device__ void fill(const CudaParams& p) const {
    static_assert(kMaxLevels <= 32);
    if (threadIdx.x < 32) fill_level(p, static_cast<int>(threadIdx.x));
    for (int k = threadIdx.x; k < static_cast<int>(p.K); k += blockDim.x) {
      int l = 0;
      for (int end = p.table.points[0]; k >= end; end += p.table.points[l]) ++l;
      of_sample[k] = static_cast<uint8_t>(l);
    }
    __syncthreads();
  }

  // By the lanes of one warp, one level each.
  __device__ void fill_level(const CudaParams& p, int l) const {
    const LevelTable& table = p.table;
    const int L = static_cast<int>(p.L);
    int64_t height = 0, width = 0, start = 0;
    if (l < L) {
      height = table.shapes ? read_index(table.shapes, table.shapes_int64, 2 * l) : table.sizes[2 * l];
      width = table.shapes ? read_index(table.shapes, table.shapes_int64, 2 * l + 1) : table.sizes[2 * l + 1];
      if (table.starts) start = read_index(table.starts, table.starts_int64, l);
    }
    const bool fits = height >= 1 && width >= 1 && height <= p.S && width <= p.S && height * width <= p.S;
    const int64_t rows = fits ? height * width : 0;
    int64_t end = rows;  // of the level, if levels are packed
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int64_t before = __shfl_up_sync(kWholeWarp, end, distance);
      if (l >= distance) end += before;
    }
    if (l >= L) return;
    const int64_t packed_start = end - rows;
    if (!table.starts) start = packed_start;
    const bool inside = fits && start >= 0 && start <= p.S - rows, last = l == L - 1;
    if (!inside || (last && !table.starts && end != p.S)) {
      printf(
          "dino_kernels: level %d of spatial_shapes, at row %lld, does not fit the S = %lld rows of value\n",
          l, static_cast<long long>(start), static_cast<long long>(p.S));
      __trap();
    }
    level[l] = {static_cast<int32_t>(width), static_cast<int32_t>(height), static_cast<int32_t>(start),
                table.points[l]};
    // For all levels: each ends where the next begins, and the last at the end of value.
    const bool all_packed = __all_sync(kWholeWarp >> (32 - L), start == packed_start);
    if (last) on_grid[0] = p.queries_on_grid && all_packed && end == p.S;
  }

  // The i-th query. On a grid: strips of 8 pixel rows, column by column, so that 64 queries in a row are a
  // tile of 8 x 8 pixels, whose samples share most of their rows.
  __device__ int64_t query(int64_t i, int L) const {
    if (!*on_grid) return i;
    int l = 0;
    while (l + 1 < L && i >= level[l + 1].start) ++l;
    const int32_t width = level[l].width, height = level[l].height;
    const int32_t pixel = static_cast<int32_t>(i) - level[l].start;
    constexpr int32_t kStrip = 8;
    // Unsigned divisions are shorter. The column is counted in the strip; the last strip may have fewer rows.
    const int32_t strip = static_cast<uint32_t>(pixel) / static_cast<uint32_t>(kStrip * width);
    const int32_t in_strip = pixel - strip * kStrip * width, rows = min(kStrip, height - strip * kStrip);
    const int32_t column = static_cast<uint32_t>(in_strip) / static_cast<uint32_t>(rows);
    return level[l].start + int64_t{strip * kStrip + in_strip - column * rows} * width + column;
  }
};

// The lanes of a warp that share an item.
struct ItemLanes {
  int lane;   // this one's place among them
  int count;  // a power of two
  int bits;   // of a lane's number in the warp, that tell them apart
};

// The lanes of a warp. kGroup 0: p.group lanes.
template <int kGroup, int kSplit>
struct Lanes {
  int group;   // lanes of a group
  int member;  // of the group
  int part;    // of the item: its groups are numbered
  __device__ explicit Lanes(const CudaParams& p) : group(kGroup ? kGroup : p.group) {
    member = threadIdx.x & (group - 1);
    part = kSplit == 1 ? 0 : (threadIdx.x / group) % kSplit;
  }
  __device__ int per_item() const { return group * kSplit; }
  // The sample of a chunk that this lane locates. Samples alternate between groups, so that few samples
  // occupy all groups.
  __device__ int own_sample() const { return part + kSplit * member; }
  __device__ ItemLanes of_item() const { return {own_sample(), per_item(), per_item() - 1}; }
  // The number of iterations of a group for `samples` remaining samples.
  __device__ int steps(int samples) const { return min(group, (samples + kSplit - 1) / kSplit); }
};

// A block handles one head of one image, and consecutive queries. 32-bit divisions: 64-bit ones take a
// microsecond.
struct BlockHead {
  int64_t b, m;
  int64_t first_query;  // counted in the order of Levels::query

  __device__ BlockHead(const CudaParams& p, uint32_t queries) {
    const uint32_t blocks_per_head = p.blocks_per_head;
    const uint32_t head = blockIdx.x / blocks_per_head, heads = static_cast<uint32_t>(p.M);
    b = head / heads;
    m = head - static_cast<uint32_t>(b) * heads;
    first_query = int64_t{blockIdx.x - head * blocks_per_head} * queries;
  }
};

// One (image, query, head).
struct Item {
  int64_t b, m, q;
  bool alive;     // false beyond the last query of the block's image
  int64_t index;  // (b * Q + q) * M + m

  __device__ Item(const CudaParams& p, const BlockHead& head, int64_t q_, bool alive_)
      : b(head.b), m(head.m), q(q_), alive(alive_), index((b * p.Q + q) * p.M + m) {}

  // The i-th query of a block.
  static __device__ Item of_block(const CudaParams& p, const Levels& levels, const BlockHead& head, int i) {
    const int64_t nth = head.first_query + i;
    const bool alive = nth < p.Q;
    return {p, head, levels.query(alive ? nth : p.Q - 1, static_cast<int>(p.L)), alive};
  }

  // The item of a thread, if `lanes_per_item` consecutive threads share one.
  static __device__ Item of_thread(const CudaParams& p, const Levels& levels, int lanes_per_item) {
    const uint32_t lanes = static_cast<uint32_t>(lanes_per_item);
    return of_block(p, levels, BlockHead(p, blockDim.x / lanes), static_cast<int>(threadIdx.x / lanes));
  }
};

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// One sample, in the registers of the lane that located it.
template <class A>
struct Sample {
  A raw_x, raw_y;      // as given: a location, or an offset
  A scale_x, scale_y;  // pixels per unit of it
  A attention;
  int level;
  Corners<A> corners;
};

// Fills in a sample's scales, and returns its position in pixels of its level. `at`: the query's reference on
// this level, 2 or 4 coordinates. Without branches, which would force every part of the sample through
// registers.
template <bool kFused, class A>
__device__ __forceinline__ void project(const LevelInShared& of, const A* at, int coordinates,
                                        Sample<A>& sample, A& x, A& y) {
  const A width = static_cast<A>(of.width), height = static_cast<A>(of.height);
  A base_x = A(-0.5), base_y = A(-0.5);
  sample.scale_x = width;
  sample.scale_y = height;
  if constexpr (kFused) {
    base_x = at[0] * width - A(0.5);
    base_y = at[1] * height - A(0.5);
    sample.scale_x = sample.scale_y = A(1);
    if (coordinates == 4) {
      const A half = A(0.5) / static_cast<A>(of.points);
      sample.scale_x = at[2] * half * width;
      sample.scale_y = at[3] * half * height;
    }
  }
  x = base_x + sample.raw_x * sample.scale_x;
  y = base_y + sample.raw_y * sample.scale_y;
}

// One of its corners, for the lanes of its group: its share of the output, and the row that gains from
// grad_output.
template <class A>
struct alignas(2 * sizeof(A)) Hit {
  int32_t row;  // of S; -1: nothing to read (outside, or padding)
  A weight;     // bilinear times attention
};
template <class A>
struct alignas(16) Hits {
  Hit<A> corner[4];
};

// Corners of a sample in shared memory, 16 bytes at a time.
template <class A>
__device__ __forceinline__ Hits<A> read_hits(const Hits<A>& from) {
  int4 bits[sizeof(Hits<A>) / 16];
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Hits<A>) / 16); ++i)
    bits[i] = reinterpret_cast<const int4*>(&from)[i];
  Hits<A> hits;
  memcpy(&hits, bits, sizeof(hits));
  return hits;
}

// The raw samples of an item. Classic op: locations and weights. Fused: offsets around a reference, and
// logits.
template <class T, bool kFused>
struct Source {
  using A = typename Compute<T>::type;
  const CudaParams& p;
  // Copies, because a reference from one member of an object to another would keep the whole object out of
  // registers.
  const Levels levels;
  const Item item;
  const RawNumbers<T> positions, weights;
  const A* const reference;  // [L, coordinates] of the query
  const bool* const mask;    // [S] of the image, or null
  A maximum, inverse_sum;    // of the softmax
  A only_weight;             // of this lane's sample, if the item has no more samples than lanes

  // Lanes of a warp that share an item: their number, and which bits of a lane's number tell them apart.
  __device__ Source(const CudaParams& p_, const Levels& levels_, const Item& item_, const ItemLanes& lanes)
      : p(p_),
        levels(levels_),
        item(item_),
        positions(p_.positions, p_.positions_as_value, item_.b, item_.q, item_.m * p_.K * 2),
        weights(p_.weights, p_.weights_as_value, item_.b, item_.q, item_.m * p_.K),
        reference(static_cast<const A*>(p_.reference_points) +
                  (item_.b * p_.Q + item_.q) * p_.L * p_.reference_coordinates),
        mask(kFused && p_.value_mask ? p_.value_mask + item_.b * p_.S : nullptr) {
    if constexpr (kFused) softmax(lanes);
  }

  __device__ void softmax(const ItemLanes& lanes) {
    const int K = static_cast<int>(p.K);
    maximum = -static_cast<A>(INFINITY);
    A logit = maximum;
    for (int k = lanes.lane; k < K; k += lanes.count) {
      logit = weights.load(k);
      maximum = logit > maximum ? logit : maximum;
    }
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) {
      if (!(lanes.bits & bit)) continue;
      const A other = __shfl_xor_sync(kWholeWarp, maximum, bit);
      maximum = other > maximum ? other : maximum;
    }
    only_weight = lanes.lane < K ? exponential(logit - maximum) : A(0);
    A sum = only_weight;
    if (K > lanes.count) {
      sum = A(0);
      for (int k = lanes.lane; k < K; k += lanes.count) sum += exponential(weights.load(k) - maximum);
    }
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) {
      if (lanes.bits & bit) sum += __shfl_xor_sync(kWholeWarp, sum, bit);
    }
    inverse_sum = A(1) / sum;
    only_weight *= inverse_sum;
  }

  // The weight of sample k, which is this lane's; `only`: the item has no more samples than lanes.
  __device__ __forceinline__ A attention(int k, bool only) const {
    if constexpr (kFused) return only ? only_weight : exponential(weights.load(k) - maximum) * inverse_sum;
    return weights.load(k);
  }

  // Sample k. After the last one, or for an item that is not alive: a sample without a valid corner.
  __device__ Sample<A> locate(int k, bool only) const {
    const int K = static_cast<int>(p.K);
    const bool exists = item.alive && k < K;
    k = min(k, K - 1);
    const int l = levels.of_sample[k];
    Sample<A> sample;
    sample.level = l;
    load_raw_pair<T>(positions.at(2 * k), positions.as_value, p.pairs_aligned, sample.raw_x, sample.raw_y);
    sample.attention = attention(k, only);
    const int coordinates = static_cast<int>(p.reference_coordinates);
    const LevelInShared level = levels.level[l];
    A x, y;
    project<kFused>(level, reference + l * coordinates, coordinates, sample, x, y);
    sample.corners = bilinear_corners<A>(exists ? x : A(-2), y, level.width, level.height);
    return sample;
  }

  // Stores a sample for its group. Returns whether all four corners must be read.
  __device__ bool leave(const Sample<A>& sample, Hits<A>& to) const {
    const int32_t start = levels.level[sample.level].start;
    Hits<A> hits;
    bool read[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      hits.corner[c].row = start + static_cast<int32_t>(sample.corners.row[c]);
      read[c] = sample.corners.valid[c];
    }
    if (kFused && mask) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (read[c]) read[c] = !mask[hits.corner[c].row];
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      hits.corner[c].row = read[c] ? hits.corner[c].row : -1;
      hits.corner[c].weight = read[c] ? sample.corners.weight[c] * sample.attention : A(0);
    }
    to = hits;
    return read[0] & read[1] & read[2] & read[3];
  }
};

// Rows of one head of one image.
template <class T>
struct HeadRows {
  const char* first;
  uint32_t stride;  // bytes
  __device__ HeadRows(const Rows& rows, int64_t b, int64_t column)
      : first(kept_whole(static_cast<const char*>(rows.data) +
                         (b * rows.batch_stride + column) * int64_t{sizeof(T)})),
        stride(static_cast<uint32_t>(rows.row_stride * int64_t{sizeof(T)})) {}
  __device__ __forceinline__ const T* row(int32_t r) const {
    return reinterpret_cast<const T*>(row_address(first, static_cast<uint32_t>(r), stride));
  }
};

}  // namespace dino_kernels
