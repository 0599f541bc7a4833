// One block per problem, from its costs to all results.
//
// Traffic: the costs once, coalesced if the larger side is dense, and the parts visited by paths again from
// the caches. The solver's state is in registers and shared memory, or for thousands of rows in global
// memory.
#pragma once

#include "../common/dependent_launch.cuh"
#include "cuda_solve_as_scipy.cuh"
#include "cuda_solve_lowest.cuh"
#include "cuda_warp_solver.cuh"

namespace dino_kernels {

// Rows that belong to no problem are assigned to the first and the last one.
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

// The sum of the assigned costs in the order of the input rows. By one warp.
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

// Destination of a problem's results; rows and columns are those of the solver's matrix.
class AssignmentResults {
 public:
  __device__ AssignmentResults(const CudaAssignmentParams& p, const AssignmentProblem& problem,
                               bool is_transposed)
      : columns_(p.columns + problem.group * p.R + problem.first_row),
        row_duals_(p.row_duals + problem.group * p.R + problem.first_row),
        column_duals_(p.column_duals + int64_t{blockIdx.x} * p.C),
        maximize_(p.maximize),
        is_transposed_(is_transposed) {}

  __device__ void pair(int64_t row, int64_t column) const {
    columns_[is_transposed_ ? column : row] = is_transposed_ ? row : column;
  }
  __device__ void row_dual(int64_t row, double dual) const {
    (is_transposed_ ? column_duals_ : row_duals_)[row] = given(dual);
  }
  __device__ void column_dual(int64_t column, double dual) const {
    (is_transposed_ ? row_duals_ : column_duals_)[column] = given(dual);
  }
  __device__ const int64_t* columns() const { return columns_; }

 private:
  int64_t* columns_;
  double *row_duals_, *column_duals_;
  bool maximize_, is_transposed_;

  __device__ double given(double dual) const { return (maximize_ ? -dual : dual) + 0.0; }  // no -0
};

__device__ __forceinline__ int32_t completeness(const AssignmentProblem& problem, int matched) {
  return matched == min(problem.rows, problem.columns) ? 0 : kIncomplete;
}

// T: type of the costs, or double for either.
template <class T, template <class> class Solver>
__global__ void __launch_bounds__(kMaxWarps * 32, sizeof(T) == 4 ? 2 : 1)
    assignment_kernel(const __grid_constant__ CudaAssignmentParams p) {
  DINO_DYNAMIC_SHARED(memory);
  Carver in_shared{memory};
  AssignmentShared& shared = *in_shared.take<AssignmentShared>(1);
  Carver carver = p.workspace ? Carver{p.workspace + blockIdx.x * p.state_bytes} : in_shared;
  Solver<T> solver(carver, p.solver_rows, p.solver_columns);
  const AssignmentProblem problem = assignment_of_block(p);
  wait_for_previous_kernel();
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
  const int used =
      orient(matrix, solver.rows.index, [&](const Matrix<T>& of) { return solver.rows.fill(of, shared); });
  BlockLowest lowest(shared.lowest);
  const int matched = solver.solve(matrix, used, shared, lowest);

  const AssignmentResults results(p, problem, matrix.is_transposed);
  for (int i = threadIdx.x; i < used; i += blockDim.x) {
    const int64_t column = solver.column_of(i);
    if (column >= 0) results.pair(solver.rows.index[i], column);
  }
  if (threadIdx.x == 0) p.status[blockIdx.x] = shared.status | completeness(problem, matched);
  if (!p.objective) return;
  for (int i = threadIdx.x; i < used; i += blockDim.x) {
    results.row_dual(solver.rows.index[i], solver.rows.u[i]);
  }
  solver.for_column_duals(matrix, [&](int64_t column, double v) { results.column_dual(column, v); });
  __syncthreads();
  if (threadIdx.x < 32) {
    const double sum = sum_assigned(given, results.columns());
    if (threadIdx.x == 0) p.objective[blockIdx.x] = sum;
  }
}

// For problems of at most kWarpRows rows or columns, in float32: each warp reads a row, then one warp solves
// without a barrier, and the others exit.
__global__ void __launch_bounds__(kWarpRows * 32)
    small_assignment_kernel(const __grid_constant__ CudaAssignmentParams p) {
  DINO_DYNAMIC_SHARED(memory);
  WarpRows& rows = *reinterpret_cast<WarpRows*>(memory);
  const AssignmentProblem problem = assignment_of_block(p);
  wait_for_previous_kernel();
  clear_results(p, problem);
  if (p.B == 0) return;
  int32_t status = 0;
  for (int64_t i = threadIdx.x; i < p.notes_per_problem; i += 32) {
    status |= p.notes[int64_t{blockIdx.x} * p.notes_per_problem + i];
  }

  const Matrix<float> given = problem.matrix<float>(p);
  Matrix<float> matrix = given;
  bool invalid = false;
  const int used =
      orient(matrix, rows.index, [&](const Matrix<float>& of) { return rows.fill(of, invalid); });
  if (threadIdx.x >= 32) return;
  WarpSolver solver(matrix, rows, used);
  solver.solve();

  const int lane = static_cast<int>(threadIdx.x);
  const AssignmentResults results(p, problem, matrix.is_transposed);
  const uint32_t column = solver.column();
  if (lane < used && column != kNoIndex) results.pair(solver.index, column);
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) status |= __shfl_xor_sync(kWholeWarp, status, bits);
  status |= (invalid ? kInvalidCost : 0) | completeness(problem, solver.slots);
  if (lane == 0) p.status[blockIdx.x] = status;
  if (!p.objective) return;
  if (lane < used) results.row_dual(solver.index, solver.u);
  if (lane < solver.slots) results.column_dual(solver.slot_column, solver.slot_v);
  __syncwarp();  // the shuffles before synchronised too, but do not order memory
  const double sum = sum_assigned(given, results.columns());
  if (lane == 0) p.objective[blockIdx.x] = sum;
}

}  // namespace dino_kernels
