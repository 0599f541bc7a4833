// The problems of a call, for the tasks of linear_sum_assignment and hungarian_match.
#pragma once

#include <vector>

#include "cpu.h"

namespace dino_kernels {

const AssignmentKernels& assignment_kernels();

// Where the results of `rows` rows from `first_row` of a group go, and how they are found. The costs are
// still to be set.
AssignmentProblem new_problem(const AssignmentParams& p, int64_t group, int64_t problem, int64_t first_row,
                              int64_t rows);

// Rows that belong to no problem have no column.
void clear_rows(const AssignmentParams& p, int64_t group, int64_t begin, int64_t end);

// The problems that share `offsets`, those of most rows first: started last, they would keep other threads
// waiting.
std::vector<int64_t> largest_first(const AssignmentParams& p);

}  // namespace dino_kernels
