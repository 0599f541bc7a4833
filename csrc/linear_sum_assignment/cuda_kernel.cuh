// One block a problem, from its costs to all results.
//
// Traffic: the costs once, coalesced where the larger side is dense, and again from the caches what paths
// touch. The solver's state is in shared memory, or for thousands of rows in global memory.
#pragma once

#include "cuda_solve_as_scipy.cuh"
#include "cuda_solve_lowest.cuh"

namespace dino_kernels {

// Rows that belong to no problem count to the first and the last one.
__device__ __forceinline__ void clear_results(const CudaAssignmentParams& p,
                                              const AssignmentProblem& problem) {
  const int64_t begin = problem.number == 0 ? 0 : problem.first_row;
  const int64_t end = problem.number + 1 >= p.B ? p.R : problem.first_row + problem.rows;
  for (int64_t row = begin + threadIdx.x; row < end; row += blockDim.x) {
    p.columns[problem.group * p.R + row] = -1;
    if (p.row_duals) p.row_duals[problem.group * p.R + row] = 0;
  }
  if (!p.column_duals || p.B == 0) return;
  double* duals = p.column_duals + int64_t{blockIdx.x} * p.C;
  for (int64_t column = threadIdx.x; column < p.C; column += blockDim.x) duals[column] = 0;
}

// The sum of the assigned costs in the order of the given rows. By one warp.
template <class T>
__device__ double sum_assigned(const Matrix<T>& given, const int64_t* columns) {
  double sum = 0;
  for (int first = 0; first < given.rows; first += 32) {
    const int row = first + static_cast<int>(threadIdx.x);
    const int64_t column = row < given.rows ? columns[row] : -1;
    const double cost = column >= 0 ? static_cast<double>(given.given(row, static_cast<int32_t>(column))) : 0;
    for (unsigned left = __ballot_sync(kWholeWarp, column >= 0); left; left &= left - 1) {
      sum += __shfl_sync(kWholeWarp, cost, __ffs(static_cast<int>(left)) - 1);
    }
  }
  return (given.maximize ? -sum : sum) + 0.0;  // no -0
}

// T: of the costs.
template <class T, template <class> class Solver>
__global__ void __launch_bounds__(kMaxWarps * 32)
    assignment_kernel(const __grid_constant__ CudaAssignmentParams p) {
  DINO_DYNAMIC_SHARED(memory);
  Carver in_shared{memory};
  AssignmentShared& shared = *in_shared.take<AssignmentShared>(1);
  Carver carver = p.workspace ? Carver{p.workspace + blockIdx.x * p.state_bytes} : in_shared;
  Solver<T> solver(carver, p.solver_rows, p.solver_columns);
  const AssignmentProblem problem = assignment_of_block(p);
  clear_results(p, problem);
  if (p.B == 0) return;
  if (threadIdx.x == 0) shared.status = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.notes_per_problem; i += blockDim.x) {
    const int32_t bits = p.notes[int64_t{blockIdx.x} * p.notes_per_problem + i];
    if (bits) atomicOr(&shared.status, bits);
  }

  const Matrix<T> given = problem.matrix<T>(p);
  Matrix<T> matrix = given;
  const int used = orient(matrix, solver.rows, shared);
  BlockLowest lowest(shared.lowest);
  const int matched = solver.solve(matrix, used, shared, lowest);

  const bool transposed = matrix.is_transposed;
  const int64_t first_row = problem.group * p.R + problem.first_row;
  int64_t* columns = p.columns + first_row;
  for (int i = threadIdx.x; i < used; i += blockDim.x) {
    const int64_t row = solver.rows.index[i], column = solver.column_of(i);
    if (column < 0) continue;
    columns[transposed ? column : row] = transposed ? row : column;
  }
  if (threadIdx.x == 0) {
    const bool complete = matched == min(problem.rows, problem.columns);
    p.status[blockIdx.x] = shared.status | (complete ? 0 : kIncomplete);
  }
  if (!p.objective) return;
  double *row_duals = p.row_duals + first_row, *column_duals = p.column_duals + int64_t{blockIdx.x} * p.C;
  if (transposed) {
    double* other = row_duals;
    row_duals = column_duals;
    column_duals = other;
  }
  const double sign = p.maximize ? -1.0 : 1.0;
  const auto signed_dual = [sign](double dual) { return sign * dual + 0.0; };  // no -0
  for (int i = threadIdx.x; i < used; i += blockDim.x) {
    row_duals[solver.rows.index[i]] = signed_dual(solver.rows.u[i]);
  }
  solver.for_column_duals(matrix, [&](int64_t column, double v) { column_duals[column] = signed_dual(v); });
  __syncthreads();
  if (threadIdx.x < 32) {
    const double sum = sum_assigned(given, columns);
    if (threadIdx.x == 0) p.objective[blockIdx.x] = sum;
  }
}

}  // namespace dino_kernels
