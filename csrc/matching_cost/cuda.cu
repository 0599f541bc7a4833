// CUDA entry point: the table of sources by value, one launch for all sets and images.
#include <algorithm>

#include "../common/device.h"
#include "arguments.h"
#include "cuda.h"
#include "cuda_kernel.cuh"

namespace dino_kernels {
namespace {

int32_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return 4;
    case DType::float64:
      return 8;
    default:
      return 2;
  }
}

}  // namespace

std::tuple<Tensor, Tensor> launch_matching_cost(const char* op, int device, const MatchingCostParams& params,
                                                const Tensor& like) {
  static_assert(sizeof(CudaCostParams) <= 4096);
  CudaCostParams p{};
  static_cast<MatchingCostParams&>(p) = params;
  STD_TORCH_CHECK(p.num_sources <= kMaxSources, op, ": logits has ", p.num_sources, " tensors, at most ",
                  kMaxSources, " are allowed; stack some into one");
  constexpr int64_t kInt32 = int64_t{1} << 31;
  STD_TORCH_CHECK(p.C < kInt32 && p.Q < kInt32, op, ": there are too many classes or queries");
  p.logit_bytes = bytes_of(p.logits_dtype);
  for (int64_t i = 0; i < p.num_sources; ++i) {
    const PredictionSource& source = params.sources[i];
    STD_TORCH_CHECK(source.Q <= 1 || source.logits_row_stride * p.logit_bytes < kInt32, op, ": logits[", i,
                    "] has a stride of ", source.logits_row_stride, " elements between queries, less than ",
                    kInt32 / p.logit_bytes, " is allowed; call contiguous()");
  }
  std::copy_n(params.sources, p.num_sources, p.table);
  p.tiles = std::max<int64_t>(1, (p.Q + kTile - 1) / kTile);
  Tensor cost = torch::stable::new_empty(like, {p.G, p.N, p.Q}, ScalarType::Float);
  Tensor notes = torch::stable::new_empty(like, {p.G, p.B, p.tiles}, ScalarType::Int);
  p.cost = static_cast<float*>(cost.mutable_data_ptr());
  p.notes = static_cast<int32_t*>(notes.mutable_data_ptr());
  const int64_t blocks = p.G * std::max<int64_t>(1, p.B) * p.tiles;
  launch({op, blocks, kTile, sizeof(CostShared)}, device, &matching_cost_kernel, p);
  return {cost, notes};
}

namespace {

struct CudaCostCall : OnCuda {
  MatchingCostParams cost_params{};
  std::vector<PredictionSource> sources;
  const char* op;
  const OnDevice device;

  CudaCostCall(const char* op_, const Tensor& labels) : op(op_), device(labels) {}
  std::tuple<Tensor, Tensor> run_cost(const Tensor& labels) const {
    return launch_matching_cost(op, device.index, cost_params, labels);
  }
};

}  // namespace
}  // namespace dino_kernels

DINO_CUDA_LIBRARY(m) {
  m.impl("matching_cost", TORCH_BOX(&dino_kernels::matching_cost<dino_kernels::CudaCostCall>));
}
