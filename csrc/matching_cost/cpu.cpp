// CPU entry point: tiles of queries of all sets and images over ATen's threads.
#include <algorithm>
#include <limits>

#include "../common/tasks.h"
#include "arguments.h"
#include "cpu_problems.h"

namespace dino_kernels {
namespace {

// Below this many pairs of targets and queries, starting a thread costs more than it saves.
constexpr int64_t kPairsOfThread = 16384;

struct CpuCostCall : OnCpu {
  MatchingCostParams cost_params{};
  std::vector<PredictionSource> sources;
  const char* op;

  CpuCostCall(const char* op_, const Tensor&) : op(op_) {}
  std::tuple<Tensor, Tensor> run_cost(const Tensor& labels) const;
};

std::tuple<Tensor, Tensor> CpuCostCall::run_cost(const Tensor& labels) const {
  const MatchingCostParams& p = cost_params;
  Tensor cost = new_tensor(labels, {p.G, p.N, p.Q}, ScalarType::Float);
  Tensor status = new_tensor(labels, {p.G, p.B, 1}, ScalarType::Int);
  auto* costs = static_cast<float*>(cost.mutable_data_ptr());
  auto* bits = static_cast<int32_t*>(status.mutable_data_ptr());
  std::fill(bits, bits + p.G * p.B, 0);
  const CostProblems problems(op, p);
  const int64_t tiles = problems.tiles();
  run_each(p.G * p.B * tiles, p.G * p.N * p.Q / kPairsOfThread, problems.scratch_bytes(),
           [&](int64_t task, void* scratch) {
             const int64_t problem = task / tiles, set = problem / p.B, image = problem % p.B;
             float* from = costs + (set * p.N + p.offsets[image]) * p.Q;
             const int32_t found = problems.run(set, image, task % tiles, from, p.Q, scratch);
             if (found) __atomic_fetch_or(bits + problem, found, __ATOMIC_RELAXED);
           });
  // Targets that belong to no image: unused capacity.
  const int64_t first = p.B > 0 ? p.offsets[0] : 0, last = p.B > 0 ? p.offsets[p.B] : 0;
  for (int64_t set = 0; set < p.G; ++set) {
    float* rows = costs + set * p.N * p.Q;
    std::fill(rows, rows + first * p.Q, std::numeric_limits<float>::infinity());
    std::fill(rows + last * p.Q, rows + p.N * p.Q, std::numeric_limits<float>::infinity());
  }
  return {cost, status};
}

}  // namespace
}  // namespace dino_kernels

STABLE_TORCH_LIBRARY_IMPL(dino_kernels_native, CPU, m) {
  m.impl("matching_cost", TORCH_BOX(&dino_kernels::matching_cost<dino_kernels::CpuCostCall>));
}
