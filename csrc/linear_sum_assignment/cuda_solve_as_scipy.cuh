// The assignment defined by `solve_as_scipy` of dino_kernels/ops/linear_sum_assignment/reference.py, computed
// by a block: every row along a shortest path over all columns, three barriers per step. float64 in the
// reference's order.
#pragma once

#include "cuda_problem.cuh"

namespace dino_kernels {

template <class T>
class SciPySolver {
 public:
  __host__ __device__ SciPySolver(Carver& carver, int64_t rows, int64_t columns)
      : rows(carver, rows),
        column_of_(carver.take<int32_t>(rows)),
        row_of_(carver.take<int32_t>(columns)),
        v_(carver.take<double>(columns)),
        distance_(carver.take<double>(columns)),
        previous_(carver.take<int32_t>(columns)),
        remaining_(carver.take<int32_t>(columns)) {}

  const SolverRows rows;

  // Returns the number of matched rows. By all threads; ends with a barrier.
  __device__ int solve(const Matrix<T>& matrix, int used, AssignmentShared&, BlockLowest& lowest) {
    for (int i = threadIdx.x; i < used; i += blockDim.x) {
      rows.u[i] = 0;
      column_of_[i] = -1;
    }
    for (int column = threadIdx.x; column < matrix.columns; column += blockDim.x) {
      v_[column] = 0;
      row_of_[column] = -1;
    }
    int matched = 0;
    for (int start = 0; start < used; ++start) matched += augment(matrix, start, lowest);
    return matched;
  }

  __device__ int64_t column_of(int i) const { return column_of_[i]; }

  // `write(column, dual)` for every dual that may be other than 0.
  template <class Write>
  __device__ void for_column_duals(const Matrix<T>& matrix, Write write) const {
    for (int column = threadIdx.x; column < matrix.columns; column += blockDim.x) write(column, v_[column]);
  }

 private:
  int32_t* column_of_;  // of a row, -1 if none
  int32_t* row_of_;     // likewise
  double *v_, *distance_;
  int32_t* previous_;   // row from which a column is reached
  int32_t* remaining_;  // first the unreached ones in SciPy's order, then the visited ones

  // Returns whether the row was matched. All threads execute the same steps.
  __device__ bool augment(const Matrix<T>& matrix, int start, BlockLowest& lowest) const {
    const int thread = threadIdx.x, columns = matrix.columns;
    for (int column = thread; column < columns; column += blockDim.x) {
      distance_[column] = kInfinity<double>;
      remaining_[column] = columns - 1 - column;
    }
    __syncthreads();
    int left = columns, row = start, sink = -1;
    double base = 0;
    while (sink < 0 && left > 0) {
      const int index = rows.index[row];
      const double u = rows.u[row];
      Lowest<double> nearest;
      for (int position = thread; position < left; position += blockDim.x) {
        const int column = remaining_[position];
        const double reach = ((base + static_cast<double>(matrix.at(index, column))) - u) - v_[column];
        if (reach < distance_[column]) {
          distance_[column] = reach;
          previous_[column] = row;
        }
        // Of equals the last unmatched column, or the first if all are matched.
        const uint32_t last = columns - 1 - position, first = uint32_t(columns) + position;
        nearest.see_any(distance_[column], row_of_[column] < 0 ? last : first);
      }
      nearest = lowest(nearest);
      if (nearest.value == kInfinity<double>) break;
      base = nearest.value;
      const uint32_t all = columns;
      const int position = nearest.index < all ? all - 1 - nearest.index : nearest.index - all;
      const int column = remaining_[position];
      if (row_of_[column] < 0) {
        sink = column;
      } else {
        row = row_of_[column];
      }
      __syncthreads();
      --left;
      if (thread == 0) {
        remaining_[position] = remaining_[left];
        remaining_[left] = column;
      }
      __syncthreads();
    }
    if (sink < 0) return false;
    if (thread == 0) rows.u[start] += base;
    for (int position = left + thread; position < columns; position += blockDim.x) {
      const int column = remaining_[position];
      if (column != sink) rows.u[row_of_[column]] += base - distance_[column];
      v_[column] -= base - distance_[column];
    }
    __syncthreads();
    if (thread == 0) add_path(start, sink, columns);
    __syncthreads();
    return true;
  }

  // Each row on the path takes its predecessor column. By one thread.
  __device__ void add_path(int start, int column, int columns) const {
    for (int step = 0; step < columns; ++step) {
      const int row = previous_[column], next = column_of_[row];
      row_of_[column] = row;
      column_of_[row] = column;
      if (row == start) return;
      column = next;
    }
  }
};

}  // namespace dino_kernels
