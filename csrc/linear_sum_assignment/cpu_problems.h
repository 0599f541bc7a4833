// The problems of a call, for the tasks of linear_sum_assignment and hungarian_match.
#pragma once

#include <vector>

#include "cpu.h"

namespace dino_kernels {

const AssignmentKernels& assignment_kernels();

// The destinations of the results of `rows` rows from `first_row` of a group, and how to solve them. The
// costs are set later.
AssignmentProblem new_problem(const AssignmentParams& p, int64_t group, int64_t problem, int64_t first_row,
                              int64_t rows);

// Writes -1 for rows that belong to no problem.
void clear_rows(const AssignmentParams& p, int64_t group, int64_t begin, int64_t end);

// The problems that share `offsets`, largest number of rows first: started last, they would delay the end.
std::vector<int64_t> largest_first(const AssignmentParams& p);

}  // namespace dino_kernels
