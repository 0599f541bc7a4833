// The data of a block of the cost kernel: some queries of one problem, and its targets, a chunk at a time.
#pragma once

#include <cstdio>

#include "../common/block.cuh"
#include "../common/launch.h"
#include "../common/vec.cuh"
#include "cuda_pair.cuh"
#include "cuda_params.h"

namespace dino_kernels {

constexpr int kTile = 128;  // queries, and threads
constexpr int kChunk = 32;  // targets

struct alignas(16) StagedTarget {
  Box box;
  int32_t class_costs;  // first cost of its label in class_cost
  int32_t valid;
};

struct CostShared {
  StagedTarget target[kChunk];
  uint32_t label[kChunk];  // distinct labels
  int32_t distinct;
  uint32_t per_distinct;                     // see `divided_by_distinct`
  int32_t invalid;                           // some target is
  float class_cost[kChunk][kTile + 1];       // weighted; padded: lanes write down a column
  float row_max[kTile], per_row_sum[kTile];  // of the softmax of a query
  bool forbidden[kTile];
};

// pair / distinct, for a pair of a query with one of `distinct` labels. per_distinct = 2^20 / distinct + 1 is
// too large by at most kTile * kChunk / 2^20 = 1/256, less than 1 / kChunk.
constexpr int kDivisionBits = 20;
__device__ __forceinline__ int divided_by_distinct(int pair, uint32_t per_distinct) {
  return static_cast<int>(static_cast<uint32_t>(pair) * per_distinct >> kDivisionBits);
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < kInfinite; }

// One problem, for a block.
struct CostProblem {
  int64_t set, image, first_query;
  int64_t begin, end;  // of its targets
  const PredictionSource* source;
  const unsigned char* logits;  // of the tile's first query
  uint32_t logits_row_bytes;
  int queries;  // of this tile that the set has

  __device__ __forceinline__ const unsigned char* logits_row(int q) const {
    return logits + uint64_t{static_cast<uint32_t>(q)} * logits_row_bytes;
  }
  __device__ int64_t boxes_row(int q) const {
    return (set - source->first_set) * source->boxes_set_stride + image * source->boxes_batch_stride +
           (first_query + q) * source->boxes_row_stride;
  }
};

template <class T>
__device__ __forceinline__ void load_four(const void* from, int64_t at, float (&numbers)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) numbers[i] = static_cast<float>(widen(static_cast<const T*>(from)[at + i]));
}
__device__ __forceinline__ void load_four(const void* from, DType dtype, int64_t at, float (&numbers)[4]) {
  switch (dtype) {
    case DType::float64:
      return load_four<double>(from, at, numbers);
    case DType::bfloat16:
      return load_four<BFloat16>(from, at, numbers);
    case DType::float16:
      return load_four<Half>(from, at, numbers);
    default:
      return load_four<float>(from, at, numbers);
  }
}

// Offsets are on the device, so that only a kernel can check them.
__device__ __forceinline__ void check_offsets(const CudaCostParams& p, const CostProblem& problem) {
  const int64_t first = p.offsets[0], last = p.offsets[p.B];
  if (first >= 0 && first <= problem.begin && problem.begin <= problem.end && problem.end <= last &&
      last <= p.N) {
    return;
  }
  printf("dino_kernels: offsets of image %lld do not fit the %lld targets\n",
         static_cast<long long>(problem.image), static_cast<long long>(p.N));
  __trap();
}

__device__ __forceinline__ CostProblem problem_of_block(const CudaCostParams& p) {
  const unsigned images = static_cast<unsigned>(max(p.B, int64_t{1}));
  const unsigned tiles = static_cast<unsigned>(p.tiles), number = blockIdx.x / tiles;
  CostProblem problem;
  problem.set = number / images;
  problem.image = number % images;
  problem.first_query = int64_t{blockIdx.x % tiles} * kTile;
  problem.begin = p.offsets[problem.image];
  problem.end = p.offsets[min(problem.image + 1, p.B)];
  int i = 0;
  while (i + 1 < p.num_sources && p.table[i + 1].first_set <= problem.set) ++i;
  problem.source = &p.table[i];
  const PredictionSource& source = *problem.source;
  const int64_t first = (problem.set - source.first_set) * source.logits_set_stride +
                        problem.image * source.logits_batch_stride +
                        problem.first_query * source.logits_row_stride;
  problem.logits = kept_whole(static_cast<const unsigned char*>(source.logits) + first * p.logit_bytes);
  problem.logits_row_bytes = static_cast<uint32_t>(source.logits_row_stride * p.logit_bytes);
  problem.queries = static_cast<int>(max(int64_t{0}, min(int64_t{kTile}, source.Q - problem.first_query)));
  return problem;
}

// By one warp, one target per lane.
__device__ __forceinline__ void stage_targets(const CudaCostParams& p, CostShared& shared, int64_t first,
                                              int count) {
  const int lane = static_cast<int>(threadIdx.x);
  bool valid = false;
  StagedTarget target{};
  int32_t label = 0;
  if (lane < count) {
    const int64_t given = p.labels[first + lane];
    valid = given >= 0 && given < p.C;
    if (p.target_boxes) {
      float numbers[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        numbers[i] = p.target_boxes[(first + lane) * 4 + i];
        valid = valid && is_finite(numbers[i]);
      }
      valid = valid && numbers[2] >= 0 && numbers[3] >= 0;
      target.box = make_box(numbers);
    }
    if (valid) label = static_cast<int32_t>(given);
  }
  const unsigned same = __match_any_sync(kWholeWarp, valid ? label : -1);
  const int leader = __ffs(static_cast<int>(same)) - 1;
  const unsigned leaders = __ballot_sync(kWholeWarp, valid && leader == lane);
  const unsigned invalid = __ballot_sync(kWholeWarp, lane < count && !valid);
  const int class_row = __popc(leaders & ((1u << leader) - 1));
  target.class_costs = valid ? class_row * (kTile + 1) : 0;
  target.valid = valid;
  shared.target[lane] = target;
  if (valid && leader == lane) shared.label[class_row] = static_cast<uint32_t>(label);
  if (lane == 0) {
    const uint32_t distinct = __popc(leaders);
    shared.distinct = static_cast<int32_t>(distinct);
    shared.per_distinct = (1u << kDivisionBits) / max(distinct, 1u) + 1;
    shared.invalid = invalid != 0;
  }
}

}  // namespace dino_kernels
