// CUDA entry point: the costs, then the assignment, in two launches on one stream. The second starts early:
// its blocks read the offsets while the costs are still being written.
#include "../common/device.h"
#include "../common/launch.h"
#include "../linear_sum_assignment/cuda.h"
#include "../matching_cost/cuda.h"
#include "arguments.h"

namespace dino_kernels {
namespace {

struct CudaMatchCall : OnCuda {
  MatchingCostParams cost_params{};
  AssignmentParams assignment_params{};
  std::vector<PredictionSource> sources;
  const char* op;
  const OnDevice device;

  CudaMatchCall(const char* op_, const Tensor& labels) : op(op_), device(labels) {}

  // `labels` is any tensor on the device.
  void run_match(const Tensor& labels) {
    const auto [cost, notes] = launch_matching_cost(op, device.index, cost_params, labels);
    AssignmentParams& p = assignment_params;
    p.cost = cost.const_data_ptr();
    p.group_stride = p.R * p.C;
    p.row_stride = p.C;
    p.column_stride = 1;
    p.notes = static_cast<const int32_t*>(notes.const_data_ptr());
    p.notes_per_problem = notes.size(2);
    launch_assignment(op, device.index, p, labels, true);
  }
};

}  // namespace
}  // namespace dino_kernels

DINO_CUDA_LIBRARY(m) {
  m.impl("hungarian_match", TORCH_BOX(&dino_kernels::hungarian_match<dino_kernels::CudaMatchCall>));
}
