// A block computes the cost of an image's targets with a tile of one set's queries. A thread owns a query.
//
// Targets come in chunks of one per lane. First all threads together compute the class cost of the tile with
// each distinct label of the chunk, lanes along labels, so that a row of logits is read once and by
// neighbours. Then each thread adds the box part for every target, and a warp writes 128 bytes of a row of
// the cost at a time. Traffic: only the logit sectors with a needed label (softmax: all, twice, the second
// time from the cache); the boxes and the cost once. float32 throughout.
#pragma once

#include "../common/dependent_launch.cuh"
#include "cuda_class.cuh"

namespace dino_kernels {

// Location of one query's costs with consecutive targets.
struct CostColumn {
  float* cost;
  const float* extra;  // or null
  int64_t stride;

  __device__ __forceinline__ CostColumn(const CudaCostParams& p, int64_t set, int64_t target, int64_t query)
      : cost(p.cost + (set * p.N + target) * p.Q + query),
        extra(p.extra_cost ? p.extra_cost + set * p.extra_set_stride + target * p.Q + query : nullptr),
        stride(p.Q) {}

  // For `count` targets.
  __device__ __forceinline__ void forbid(int64_t count) {
#pragma unroll 1
    for (; count > 0; --count) {
      *cost = kInfinite;
      cost += stride;
    }
  }
};

// The costs of a thread's query with each target of the chunk.
template <bool kBoxes, bool kExtra>
__device__ __forceinline__ void write_costs(const CudaCostParams& p, const CostShared& shared, const Box& box,
                                            int count, CostColumn column) {
  const float* class_cost = &shared.class_cost[0][threadIdx.x];
  const float l1_weight = p.formula.l1_weight, giou_weight = -p.formula.giou_weight, eps = p.formula.giou_eps;
  const StagedTarget* target = shared.target;
#pragma unroll 1
  for (; count > 0; --count, ++target) {
    float cost = class_cost[target->class_costs];
    if constexpr (kBoxes) {
      cost += l1_weight * l1_distance(box, target->box);
      cost += giou_weight * generalized_iou(box, target->box, eps);
    }
    if constexpr (kExtra) {
      cost += *column.extra;
      column.extra += column.stride;
    }
    *column.cost = target->valid ? cost : kInfinite;
    column.cost += column.stride;
  }
}

// Rows of unused capacity, divided among the blocks of the images.
__device__ __forceinline__ void fill_unused(const CudaCostParams& p, const CostProblem& problem) {
  const int64_t images = max(p.B, int64_t{1}), query = problem.first_query + threadIdx.x;
  const int64_t first = p.offsets[0], used = p.offsets[p.B] - first;
  if (query >= p.Q) return;
  // Rare, so not worth the code of an unrolled loop and its 64-bit division.
#pragma unroll 1
  for (int64_t i = problem.image; i < p.N - used; i += images) {
    CostColumn(p, problem.set, i < first ? i : i + used, query).forbid(1);
  }
}

__global__ void __launch_bounds__(kTile) matching_cost_kernel(const __grid_constant__ CudaCostParams p) {
  DINO_DYNAMIC_SHARED(memory);
  CostShared& shared = *reinterpret_cast<CostShared*>(memory);
  let_next_kernel_start();  // all blocks of this kernel are resident before any of the next
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
    load_four(problem.source->boxes, p.boxes_dtype, problem.boxes_row(thread), numbers);
    for (float number : numbers) box_finite = box_finite && is_finite(number);
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
        sum_softmax_rows(p, shared, problem);
        __syncthreads();
      }
      some_valid = true;
      compute_class_costs(p, shared, problem);
    }
    __syncthreads();
    if (has_query) {
      const CostColumn column(p, problem.set, first, problem.first_query + thread);
      if (p.target_boxes) {
        p.extra_cost ? write_costs<true, true>(p, shared, box, count, column)
                     : write_costs<true, false>(p, shared, box, count, column);
      } else {
        p.extra_cost ? write_costs<false, true>(p, shared, box, count, column)
                     : write_costs<false, false>(p, shared, box, count, column);
      }
    }
    __syncthreads();
  }

  // The last label may be the one that forbids a query, so its costs are reset here.
  const bool forbidden = has_query && some_valid && (!box_finite || shared.forbidden[thread]);
  if (forbidden || (!has_query && problem.first_query + thread < p.Q)) {
    CostColumn column(p, problem.set, problem.begin, problem.first_query + thread);
    column.forbid(problem.end - problem.begin);
  }
  const int32_t nonfinite = __syncthreads_or(forbidden) ? kNonfinitePrediction : 0;
  if (thread == 0) p.notes[blockIdx.x] = nonfinite | (some_invalid ? kInvalidTarget : 0);
}

}  // namespace dino_kernels
