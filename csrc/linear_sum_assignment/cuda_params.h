// What the CUDA kernels know besides AssignmentParams. In the solvers rows are the smaller side, as in
// dino_kernels/ops/linear_sum_assignment/reference.py; here and in AssignmentParams they are what was given.
#pragma once

#include "../matching_cost/params.h"  // bits of a status
#include "params.h"

namespace dino_kernels {

struct CudaAssignmentParams : AssignmentParams {
  int64_t solver_rows;       // what a block's state has room for
  int64_t solver_columns;    // likewise
  unsigned char* workspace;  // the states of all blocks, or null: each is in its block's shared memory
  int64_t state_bytes;       // of one block
};

}  // namespace dino_kernels
