// All parameters of one assignment call. Strides are in elements.
//
// G matrices of R rows and C columns. With offsets, the rows of each matrix belong to B consecutive problems;
// without, each matrix is one problem, and B = 1.
#pragma once

#include <cstdint>

namespace dino_kernels {

struct AssignmentParams {
  int64_t G, R, C, B;
  int64_t max_rows;   // of a problem
  const void* cost;   // [G, R, C]
  bool cost_float64;  // else float32
  int64_t group_stride, row_stride, column_stride;
  const int64_t* offsets;  // [B + 1] first row of each problem, or null
  const int64_t* sizes;    // [G, 2] rows and columns in use, or null; not with offsets
  const int32_t* notes;    // [G, B, notes_per_problem] bits to add to the status, or null
  int64_t notes_per_problem;
  bool maximize;
  bool as_scipy;  // return SciPy's assignment among those of equal cost

  int64_t* columns;      // [G, R] -1 if none
  int32_t* status;       // [G, B]
  double* objective;     // [G, B], or null
  double* row_duals;     // [G, R], or null
  double* column_duals;  // [G, B, C], or null
};

}  // namespace dino_kernels
