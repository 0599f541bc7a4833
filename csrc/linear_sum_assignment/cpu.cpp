// CPU entry point: a task is a problem.
#include <algorithm>

#include "../common/tasks.h"
#include "arguments.h"
#include "cpu_problems.h"

namespace dino_kernels {
namespace {

// Below this many costs, starting a thread costs more than it saves.
constexpr int64_t kCostsOfThread = 32768;

struct CpuAssignmentCall : OnCpu {
  AssignmentParams assignment_params{};
  const char* op;

  CpuAssignmentCall(const char* op_, const Tensor&) : op(op_) {}
  void run_assignment() const;

 private:
  void check_offsets() const;
  void check_sizes() const;
  void solve(int64_t group, int64_t problem, void* scratch) const;
};

void CpuAssignmentCall::check_offsets() const {
  const AssignmentParams& p = assignment_params;
  for (int64_t b = 0; b <= p.B; ++b) {
    const int64_t before = b > 0 ? p.offsets[b - 1] : 0;
    STD_TORCH_CHECK(before <= p.offsets[b] && p.offsets[b] <= p.R, op,
                    ": offsets must ascend from 0 to at most ", p.R, " rows, got ", p.offsets[b], " after ",
                    before);
  }
}

void CpuAssignmentCall::check_sizes() const {
  const AssignmentParams& p = assignment_params;
  for (int64_t g = 0; g < p.G; ++g) {
    const int64_t rows = p.sizes[2 * g], columns = p.sizes[2 * g + 1];
    STD_TORCH_CHECK(0 <= rows && rows <= p.R && 0 <= columns && columns <= p.C, op,
                    ": sizes must be within 0..", p.R, " and 0..", p.C, ", got ", rows, " and ", columns);
  }
}

void CpuAssignmentCall::solve(int64_t group, int64_t b, void* scratch) const {
  const AssignmentParams& p = assignment_params;
  int64_t first = 0, rows = p.R, columns = p.C;
  if (p.offsets) {
    first = p.offsets[b];
    rows = p.offsets[b + 1] - first;
  } else if (p.sizes) {
    rows = p.sizes[2 * group];
    columns = p.sizes[2 * group + 1];
    clear_rows(p, group, rows, p.R);
  }
  AssignmentProblem problem = new_problem(p, group, b, first, rows);
  problem.columns = columns;
  problem.cost_float64 = p.cost_float64;
  const int64_t offset = group * p.group_stride + first * p.row_stride;
  problem.cost = static_cast<const char*>(p.cost) + offset * (p.cost_float64 ? 8 : 4);
  problem.row_stride = p.row_stride;
  problem.column_stride = p.column_stride;
  if (problem.column_duals) std::fill(problem.column_duals + columns, problem.column_duals + p.C, 0.0);
  int32_t status = assignment_kernels().solve(problem, scratch);
  const int64_t place = group * p.B + b;
  for (int64_t i = 0; i < p.notes_per_problem; ++i) status |= p.notes[place * p.notes_per_problem + i];
  p.status[place] = status;
}

void CpuAssignmentCall::run_assignment() const {
  const AssignmentParams& p = assignment_params;
  int64_t most_rows = p.R;
  std::vector<int64_t> order{0};
  if (p.sizes) check_sizes();
  if (p.offsets) {
    check_offsets();
    order = largest_first(p);
    most_rows = order.empty() ? 0 : p.offsets[order[0] + 1] - p.offsets[order[0]];
    for (int64_t g = 0; g < p.G; ++g) {
      clear_rows(p, g, 0, p.offsets[0]);
      clear_rows(p, g, p.offsets[p.B], p.R);
    }
  }
  const int64_t bytes = assignment_kernels().scratch_bytes(most_rows, p.C, p.cost_float64, p.as_scipy);
  run_each(p.G * p.B, p.G * p.R * p.C / kCostsOfThread, bytes,
           [&](int64_t task, void* scratch) { solve(task % p.G, order[task / p.G], scratch); });
}

}  // namespace
}  // namespace dino_kernels

STABLE_TORCH_LIBRARY_IMPL(dino_kernels_native, CPU, m) {
  m.impl("linear_sum_assignment",
         TORCH_BOX(&dino_kernels::linear_sum_assignment<dino_kernels::CpuAssignmentCall>));
}
