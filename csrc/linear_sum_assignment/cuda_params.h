// Parameters of the CUDA kernels besides AssignmentParams. In the solvers rows are the smaller side, as in
// dino_kernels/ops/linear_sum_assignment/reference.py; here and in AssignmentParams they are the input's.
#pragma once

#include "../matching_cost/params.h"  // bits of a status
#include "params.h"

namespace dino_kernels {

struct CudaAssignmentParams : AssignmentParams {
  int64_t solver_rows;       // capacity of a block's state
  int64_t solver_columns;    // likewise
  unsigned char* workspace;  // the states of all blocks; null: in the shared memory of each block
  int64_t state_bytes;       // of one block
};

}  // namespace dino_kernels
