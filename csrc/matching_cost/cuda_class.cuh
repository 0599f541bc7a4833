// Class costs of a tile's queries with the distinct labels of a chunk of targets.
#pragma once

#include "cuda_tile.cuh"

namespace dino_kernels {

// Loads per thread in flight at the same time.
constexpr int kCostLoads = 4;

template <class T>
__device__ __forceinline__ void load_logits(const unsigned char* const (&row)[kCostLoads],
                                            const uint32_t (&label)[kCostLoads],
                                            float (&numbers)[kCostLoads]) {
  T loaded[kCostLoads];
#pragma unroll
  for (int i = 0; i < kCostLoads; ++i) loaded[i] = __ldg(reinterpret_cast<const T*>(row[i]) + label[i]);
#pragma unroll
  for (int i = 0; i < kCostLoads; ++i) numbers[i] = static_cast<float>(widen(loaded[i]));
}

// The logit of each row's label. The whole grid branches on the type: this costs one instruction per load,
// and saves three of four kernels.
__device__ __forceinline__ void load_logits(DType dtype, const unsigned char* const (&row)[kCostLoads],
                                            const uint32_t (&label)[kCostLoads],
                                            float (&numbers)[kCostLoads]) {
  if (dtype == DType::float32) return load_logits<float>(row, label, numbers);
  if (dtype == DType::bfloat16) return load_logits<BFloat16>(row, label, numbers);
  if (dtype == DType::float16) return load_logits<Half>(row, label, numbers);
  load_logits<double>(row, label, numbers);
}

// Calls `run(numbers)` with a lane's logits of a row, `kCostLoads` at once; -inf beyond the last class.
template <class Run>
__device__ __forceinline__ void for_logits(DType dtype, const unsigned char* from, uint32_t classes,
                                           Run run) {
  const unsigned char* row[kCostLoads];
#pragma unroll
  for (int i = 0; i < kCostLoads; ++i) row[i] = from;
  for (uint32_t first = threadIdx.x % 32; first < classes; first += 32 * kCostLoads) {
    uint32_t label[kCostLoads];
    float numbers[kCostLoads];
#pragma unroll
    for (int i = 0; i < kCostLoads; ++i) label[i] = min(first + 32 * i, classes - 1);
    load_logits(dtype, row, label, numbers);
#pragma unroll
    for (int i = 1; i < kCostLoads; ++i) {
      if (first + 32 * i >= classes) numbers[i] = -kInfinite;
    }
    run(numbers);
  }
}

// One warp per query.
inline __device__ void sum_softmax_rows(const CudaCostParams& p, CostShared& shared,
                                        const CostProblem& problem) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t C = static_cast<uint32_t>(p.C);
  for (int q = static_cast<int>(threadIdx.x) / 32; q < problem.queries; q += kTile / 32) {
    const unsigned char* row = problem.logits_row(q);
    float largest = -kInfinite, sum = 0;
    for_logits(p.logits_dtype, row, C, [&](const float (&numbers)[kCostLoads]) {
#pragma unroll
      for (float number : numbers) largest = fmaxf(largest, number);
    });
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, bits));
    }
    for_logits(p.logits_dtype, row, C, [&](const float (&numbers)[kCostLoads]) {
#pragma unroll
      for (float number : numbers) sum += expf(number - largest);
    });
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, bits);
    if (lane == 0) {
      shared.row_max[q] = largest;
      shared.per_row_sum[q] = 1.0f / sum;
    }
  }
}

// Class costs of the tile's queries with the chunk's labels: `cost(logit, query)` for each pair. A logit that
// is not finite forbids its query.
template <class Cost>
__device__ __forceinline__ void compute_class_costs(const CudaCostParams& p, CostShared& shared,
                                                    const CostProblem& problem, Cost cost) {
  const int distinct = shared.distinct, pairs = problem.queries * distinct;
  const uint32_t per_distinct = shared.per_distinct;
  for (int first = static_cast<int>(threadIdx.x); first < pairs; first += kTile * kCostLoads) {
    int query[kCostLoads], class_row[kCostLoads];
    uint32_t label[kCostLoads];
    const unsigned char* row[kCostLoads];
    float logit[kCostLoads];
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kCostLoads; ++i) {
      const int pair = min(first + i * kTile, pairs - 1);  // after the last pair, that pair again
      query[i] = divided_by_distinct(pair, per_distinct);
      class_row[i] = pair - query[i] * distinct;
      label[i] = shared.label[class_row[i]];
      row[i] = problem.logits_row(query[i]);
    }
    load_logits(p.logits_dtype, row, label, logit);
#pragma unroll
    for (int i = 0; i < kCostLoads; ++i) {
      const float x = cost(logit[i], query[i]);
      if (first < pairs - i * kTile) shared.class_cost[class_row[i]][query[i]] = x;
      finite = finite && is_finite(logit[i]);
    }
    if (finite) continue;
#pragma unroll
    for (int i = 0; i < kCostLoads; ++i) {
      if (!is_finite(logit[i])) shared.forbidden[query[i]] = true;
    }
  }
}

// The same by the call's formula; for a softmax, the probability must be finite.
inline __device__ void compute_class_costs(const CudaCostParams& p, CostShared& shared,
                                           const CostProblem& problem) {
  if (p.formula.softmax) {
    const float weight = -p.formula.class_weight;
    compute_class_costs(p, shared, problem, [&shared, weight](float& number, int q) {
      number = expf(number - shared.row_max[q]) * shared.per_row_sum[q];
      return weight * number;
    });
  } else if (FocalCost<true>::applies(p.formula)) {
    compute_class_costs(p, shared, problem, FocalCost<true>(p.formula));
  } else {
    compute_class_costs(p, shared, problem, FocalCost<false>(p.formula));
  }
}

}  // namespace dino_kernels
