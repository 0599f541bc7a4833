// From tensors to parameters: the entry point shared by the CPU and the CUDA library.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../linear_sum_assignment/arguments.h"
#include "../matching_cost/arguments.h"

namespace dino_kernels {

// A `Call` has `cost_params` with its sources, `assignment_params` with targets as rows and queries as
// columns, and `run_match(labels)`, which fills every result. A cost matrix exists only if the call allocates
// one.
template <class Call>
AssignmentResult hungarian_match(std::vector<Tensor> logits, std::vector<Tensor> boxes, const Tensor& labels,
                                 const std::optional<Tensor>& target_boxes, const Tensor& offsets,
                                 const std::optional<Tensor>& extra_cost, int64_t max_targets,
                                 std::string class_cost, std::vector<double> formula, std::string ties,
                                 bool full) {
  Call call("hungarian_match", labels);
  set_cost_inputs(
      call, {logits, boxes, labels, target_boxes, offsets, extra_cost, max_targets, class_cost, formula});
  const MatchingCostParams& cost = call.cost_params;
  AssignmentParams& p = call.assignment_params;
  STD_TORCH_CHECK(cost.N < (int64_t{1} << 31) && cost.Q < (int64_t{1} << 31), call.op,
                  ": there are too many targets or queries");
  p.G = cost.G;
  p.R = cost.N;
  p.C = cost.Q;
  p.B = cost.B;
  p.max_rows = cost.max_targets;
  p.offsets = cost.offsets;
  p.as_scipy = is_scipy_order(call, ties);
  AssignmentResult results = new_results(p, labels, full);
  call.run_match(labels);
  return results;
}

}  // namespace dino_kernels
