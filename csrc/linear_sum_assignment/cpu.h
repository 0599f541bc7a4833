// The CPU solver, compiled once per instruction set, and its parameters.
#pragma once

#include "../common/cpu_capability.h"
#include "params.h"

namespace dino_kernels {

// One matrix, of any strides, and the destination of its results.
struct AssignmentProblem {
  const void* cost;  // [rows, columns]
  bool cost_float64;
  int64_t rows, columns, row_stride, column_stride;
  bool maximize, as_scipy;

  int64_t* assigned;     // [rows]
  double* objective;     // or null
  double* row_duals;     // [rows], or null
  double* column_duals;  // [columns], or null
};

struct AssignmentKernels {
  // 64-byte aligned; for problems of at most this many rows and columns.
  int64_t (*scratch_bytes)(int64_t rows, int64_t columns, bool cost_float64, bool as_scipy);
  // Returns the problem's status.
  int32_t (*solve)(const AssignmentProblem&, void* scratch);
};

DINO_DECLARE_CPU_VARIANTS(AssignmentKernels, linear_sum_assignment)

}  // namespace dino_kernels
