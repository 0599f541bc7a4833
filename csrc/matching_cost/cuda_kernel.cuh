// The cost of an image's targets with a tile of one set's queries: that is a block. A thread owns a query.
//
// Targets come in chunks of one per lane. First all threads together compute the class cost of the tile with
// each distinct label of the chunk, lanes along labels, so that a row of logits is read once and by
// neighbours; then each thread adds its box's part for every target, and a warp writes 128 bytes of a row of
// the cost at a time. Traffic: of the logits only the sectors with a needed label (softmax: all, twice, the
// second time from the cache); the boxes and the cost once. float32 throughout.
#pragma once

#include <cstdio>
#include <limits>

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
  int32_t class_row;  // in class_cost; -1: the target is not valid
};

struct CostShared {
  StagedTarget target[kChunk];
  int32_t label[kChunk];  // the distinct ones
  int32_t distinct;
  int32_t invalid;                       // some target is
  float class_cost[kChunk][kTile + 1];   // weighted; padded: lanes write down a column
  float row_max[kTile], row_sum[kTile];  // of the softmax of a query
  bool forbidden[kTile];
};

constexpr float kInfinite = std::numeric_limits<float>::infinity();

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < kInfinite; }

// One problem, as a block sees it.
struct CostProblem {
  int64_t set, image, first_query;
  int64_t begin, end;  // of its targets
  const PredictionSource* source;
  int queries;  // of this tile that the set has

  __device__ int64_t logits_row(int q) const {
    return (set - source->first_set) * source->logits_set_stride + image * source->logits_batch_stride +
           (first_query + q) * source->logits_row_stride;
  }
  __device__ int64_t boxes_row(int q) const {
    return (set - source->first_set) * source->boxes_set_stride + image * source->boxes_batch_stride +
           (first_query + q) * source->boxes_row_stride;
  }
};

__device__ __forceinline__ float load_float(const void* from, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::float64:
      return static_cast<float>(static_cast<const double*>(from)[i]);
    case DType::bfloat16:
      return widen(static_cast<const BFloat16*>(from)[i]);
    case DType::float16:
      return widen(static_cast<const Half*>(from)[i]);
    default:
      return static_cast<const float*>(from)[i];
  }
}

// The costs of one query with consecutive targets.
struct CostColumn {
  float* cost;         // of the set
  const float* extra;  // likewise, or null
  int64_t at;

  __device__ __forceinline__ CostColumn(const CudaCostParams& p, int64_t set, int64_t target, int64_t query)
      : cost(p.cost + set * p.N * p.Q),
        extra(p.extra_cost ? p.extra_cost + set * p.extra_set_stride : nullptr),
        at(target * p.Q + query) {}

  // Of a pair that is allowed.
  __device__ __forceinline__ void write_next(const CudaCostParams& p, float x) {
    cost[at] = extra ? x + extra[at] : x;
    at += p.Q;
  }
  __device__ __forceinline__ void forbid_next(const CudaCostParams& p) {
    cost[at] = kInfinite;
    at += p.Q;
  }
};

// By one warp, a target a lane.
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
  target.class_row = valid ? __popc(leaders & ((1u << leader) - 1)) : -1;
  shared.target[lane] = target;
  if (valid && leader == lane) shared.label[target.class_row] = label;
  if (lane == 0) {
    shared.distinct = __popc(leaders);
    shared.invalid = invalid != 0;
  }
}

// A warp a query.
template <class T>
__device__ void sum_softmax_rows(const CudaCostParams& p, CostShared& shared, const CostProblem& problem) {
  const T* logits = static_cast<const T*>(problem.source->logits);
  const int lane = static_cast<int>(threadIdx.x) % 32, C = static_cast<int>(p.C);
  for (int q = static_cast<int>(threadIdx.x) / 32; q < problem.queries; q += kTile / 32) {
    const T* row = logits + problem.logits_row(q);
    float largest = -kInfinite, sum = 0;
    for (int c = lane; c < C; c += 32) largest = fmaxf(largest, static_cast<float>(widen(row[c])));
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, bits));
    }
    for (int c = lane; c < C; c += 32) sum += expf(static_cast<float>(widen(row[c])) - largest);
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, bits);
    if (lane == 0) {
      shared.row_max[q] = largest;
      shared.row_sum[q] = sum;
    }
  }
}

// Class costs of the tile's queries with the chunk's labels. A logit that is not finite forbids its query; of
// a softmax, a probability that is none.
template <class T>
__device__ void compute_class_costs(const CudaCostParams& p, CostShared& shared, const CostProblem& problem) {
  const T* logits = static_cast<const T*>(problem.source->logits) + problem.logits_row(0);
  const int distinct = shared.distinct;
  const int queries_ahead = kTile / distinct, labels_ahead = kTile % distinct;
  int q = static_cast<int>(threadIdx.x) / distinct, row = static_cast<int>(threadIdx.x) % distinct;
  while (q < problem.queries) {
    const int64_t at = q * problem.source->logits_row_stride + shared.label[row];
    float number = static_cast<float>(widen(logits[at]));
    if (p.formula.softmax) number = expf(number - shared.row_max[q]) / shared.row_sum[q];
    if (!is_finite(number)) shared.forbidden[q] = true;
    const float cost = p.formula.softmax ? -number : focal_cost(number, p.formula);
    shared.class_cost[row][q] = p.formula.class_weight * cost;
    q += queries_ahead;
    row += labels_ahead;
    if (row >= distinct) {
      row -= distinct;
      ++q;
    }
  }
}

// Rows of capacity that no image uses; the images' blocks share them.
__device__ __forceinline__ void fill_unused(const CudaCostParams& p, const CostProblem& problem) {
  const int64_t images = max(p.B, int64_t{1}), query = problem.first_query + threadIdx.x;
  const int64_t first = p.offsets[0], used = p.offsets[p.B] - first;
  if (query >= p.Q) return;
  // Rare: not worth the code of an unrolled loop, and its 64-bit division.
#pragma unroll 1
  for (int64_t i = problem.image; i < p.N - used; i += images) {
    CostColumn(p, problem.set, i < first ? i : i + used, query).forbid_next(p);
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
  problem.queries =
      static_cast<int>(max(int64_t{0}, min(int64_t{kTile}, problem.source->Q - problem.first_query)));
  return problem;
}

// T: of the logits.
template <class T>
__global__ void __launch_bounds__(kTile) matching_cost_kernel(const __grid_constant__ CudaCostParams p) {
  DINO_DYNAMIC_SHARED(memory);
  CostShared& shared = *reinterpret_cast<CostShared*>(memory);
  const CostProblem problem = problem_of_block(p);
  const int thread = static_cast<int>(threadIdx.x);
  check_offsets(p, problem);
  fill_unused(p, problem);
  if (p.B == 0) return;
  if (problem.begin == problem.end) {
    if (thread == 0) p.notes[blockIdx.x] = 0;
    return;
  }

  const bool has_query = thread < problem.queries;
  Box box{};
  bool box_finite = true;
  if (has_query && p.target_boxes) {
    float numbers[4];
    const int64_t at = problem.boxes_row(thread);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      numbers[i] = load_float(problem.source->boxes, p.boxes_dtype, at + i);
      box_finite = box_finite && is_finite(numbers[i]);
    }
    box = make_box(numbers);
  }
  shared.forbidden[thread] = false;
  bool some_valid = false, some_invalid = false;
  for (int64_t first = problem.begin; first < problem.end; first += kChunk) {
    const int count = static_cast<int>(min(int64_t{kChunk}, problem.end - first));
    if (thread < 32) stage_targets(p, shared, first, count);
    __syncthreads();
    some_invalid = some_invalid || shared.invalid;
    if (shared.distinct > 0) {
      if (p.formula.softmax && !some_valid) {
        sum_softmax_rows<T>(p, shared, problem);
        __syncthreads();
      }
      some_valid = true;
      compute_class_costs<T>(p, shared, problem);
    }
    __syncthreads();
    CostColumn column(p, problem.set, first, problem.first_query + thread);
    for (int t = 0; t < count && has_query; ++t) {
      const StagedTarget& target = shared.target[t];
      if (target.class_row < 0) {
        column.forbid_next(p);
        continue;
      }
      float cost = shared.class_cost[target.class_row][thread];
      if (p.target_boxes) {
        cost += p.formula.l1_weight * l1_distance(box, target.box) -
                p.formula.giou_weight * generalized_iou(box, target.box, p.formula.giou_eps);
      }
      column.write_next(p, cost);
    }
    __syncthreads();
  }

  // A query may turn out to be forbidden by the last label only, so that its costs are taken back here.
  const bool forbidden = has_query && some_valid && (!box_finite || shared.forbidden[thread]);
  if (forbidden || (!has_query && problem.first_query + thread < p.Q)) {
    CostColumn column(p, problem.set, problem.begin, problem.first_query + thread);
#pragma unroll 1
    for (int64_t n = problem.begin; n < problem.end; ++n) column.forbid_next(p);
  }
  const int32_t nonfinite = __syncthreads_or(forbidden) ? kNonfinitePrediction : 0;
  if (thread == 0) p.notes[blockIdx.x] = nonfinite | (some_invalid ? kInvalidTarget : 0);
}

}  // namespace dino_kernels
