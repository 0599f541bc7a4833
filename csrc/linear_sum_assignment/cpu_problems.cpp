#include "cpu_problems.h"

#include <algorithm>
#include <numeric>

namespace dino_kernels {

const AssignmentKernels& assignment_kernels() {
  constexpr const AssignmentKernels* kVariants[] = DINO_CPU_VARIANTS(linear_sum_assignment);
  return *kVariants[widest_variant()];
}

AssignmentProblem new_problem(const AssignmentParams& p, int64_t group, int64_t problem, int64_t first_row,
                              int64_t rows) {
  AssignmentProblem made{};
  made.rows = rows;
  made.columns = p.C;
  made.maximize = p.maximize;
  made.as_scipy = p.as_scipy;
  made.assigned = p.columns + group * p.R + first_row;
  if (p.objective) {
    made.objective = p.objective + group * p.B + problem;
    made.row_duals = p.row_duals + group * p.R + first_row;
    made.column_duals = p.column_duals + (group * p.B + problem) * p.C;
  }
  return made;
}

void clear_rows(const AssignmentParams& p, int64_t group, int64_t begin, int64_t end) {
  std::fill(p.columns + group * p.R + begin, p.columns + group * p.R + end, -1);
  if (p.row_duals) std::fill(p.row_duals + group * p.R + begin, p.row_duals + group * p.R + end, 0.0);
}

std::vector<int64_t> largest_first(const AssignmentParams& p) {
  std::vector<int64_t> order(p.B);
  std::iota(order.begin(), order.end(), 0);
  const auto rows = [&](int64_t problem) { return p.offsets[problem + 1] - p.offsets[problem]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return rows(a) > rows(b); });
  return order;
}

}  // namespace dino_kernels
