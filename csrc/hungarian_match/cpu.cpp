// CPU entry point: a task is the problem of one set and image. Its costs are computed in the thread's scratch
// memory, where the solver finds them in the cache; there is no cost matrix of the batch.
#include <algorithm>

#include "../common/tasks.h"
#include "../linear_sum_assignment/cpu_problems.h"
#include "../matching_cost/cpu_problems.h"
#include "arguments.h"

namespace dino_kernels {
namespace {

// Below this many pairs of targets and queries, starting a thread costs more than it saves.
constexpr int64_t kPairsOfThread = 8192;

int64_t round_up_to_line(int64_t n) { return (n + 63) / 64 * 64; }

struct CpuMatchCall : OnCpu {
  MatchingCostParams cost_params{};
  AssignmentParams assignment_params{};
  std::vector<PredictionSource> sources;
  const char* op;

  CpuMatchCall(const char* op_, const Tensor&) : op(op_) {}
  void run_match(const Tensor& labels) const;
};

// The problems of a thread share the same scratch memory.
struct Matcher {
  const AssignmentParams& p;
  const CostProblems& costs;
  int64_t row_stride, cost_bytes, bytes;

  Matcher(const AssignmentParams& params, const CostProblems& problems) : p(params), costs(problems) {
    row_stride = round_up_to_line(4 * p.C) / 4;
    cost_bytes = 4 * row_stride * costs.most_targets;
    const int64_t solver = assignment_kernels().scratch_bytes(costs.most_targets, p.C, false, p.as_scipy);
    bytes = cost_bytes + std::max(costs.scratch_bytes(), solver);
  }

  void match(int64_t set, int64_t image, void* scratch) const {
    float* cost = static_cast<float*>(scratch);
    void* rest = static_cast<char*>(scratch) + cost_bytes;
    int32_t status = 0;
    for (int64_t tile = 0; tile < costs.tiles(); ++tile) {
      status |= costs.run(set, image, tile, cost, row_stride, rest);
    }
    AssignmentProblem problem = new_problem(p, set, image, p.offsets[image], costs.images[image].T);
    problem.cost = cost;
    problem.row_stride = row_stride;
    problem.column_stride = 1;
    p.status[set * p.B + image] = status | assignment_kernels().solve(problem, rest);
  }
};

void CpuMatchCall::run_match(const Tensor&) const {
  const AssignmentParams& p = assignment_params;
  const CostProblems costs(op, cost_params);
  for (int64_t set = 0; set < p.G; ++set) {
    clear_rows(p, set, 0, p.B > 0 ? p.offsets[0] : 0);
    clear_rows(p, set, p.B > 0 ? p.offsets[p.B] : 0, p.R);
  }
  const Matcher matcher(p, costs);
  const std::vector<int64_t> order = largest_first(p);
  run_each(p.G * p.B, p.G * p.R * p.C / kPairsOfThread, matcher.bytes,
           [&](int64_t task, void* scratch) { matcher.match(task % p.G, order[task / p.G], scratch); });
}

}  // namespace
}  // namespace dino_kernels

STABLE_TORCH_LIBRARY_IMPL(dino_kernels_native, CPU, m) {
  m.impl("hungarian_match", TORCH_BOX(&dino_kernels::hungarian_match<dino_kernels::CpuMatchCall>));
}
