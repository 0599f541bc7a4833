// One problem: where its costs are, which side is the smaller one, and each row's cheapest column.
#pragma once

#include <cstdio>

#include "../common/launch.h"
#include "cuda_lowest.cuh"
#include "cuda_params.h"

namespace dino_kernels {

// Memory shared by the threads of a block, besides a solver's state.
struct AssignmentShared {
  BlockLowest::Shared lowest;
  struct {
    double value[kMaxWarps];
    uint32_t index[kMaxWarps];
    int32_t finite[kMaxWarps];
  } scans[2];
  int32_t status;
  int32_t slots;
};

// Costs as the solvers read them: not finite is forbidden, hence infinite. T is double for costs of either
// type, or float.
template <class T>
struct Matrix {
  const void* cost;
  bool is_float64;
  int64_t row_stride, column_stride;
  int32_t rows, columns;
  bool maximize;
  bool is_transposed;

  // The cost in a column plus an offset, as stored: NaN and infinities included. kStride: stride of columns,
  // if known at compile time.
  template <int kStride = 0>
  __device__ __forceinline__ T given(int32_t row, int32_t column, int32_t further = 0) const {
    const int64_t stride = kStride ? kStride : column_stride;
    const int64_t i = row * row_stride + column * stride + further * stride;
    T x;
    if constexpr (sizeof(T) == 4) {
      x = static_cast<const float*>(cost)[i];
    } else {
      x = is_float64 ? static_cast<const double*>(cost)[i] : static_cast<const float*>(cost)[i];
    }
    return maximize ? -x : x;
  }
  __device__ __forceinline__ T at(int32_t row, int32_t column) const {
    const T x = given(row, column);
    return x > -kInfinity<T> && x < kInfinity<T> ? x : kInfinity<T>;
  }
  __device__ Matrix transposed() const {
    return {cost, is_float64, column_stride, row_stride, columns, rows, maximize, !is_transposed};
  }
};

// The problem of a block.
struct AssignmentProblem {
  int64_t group, number;  // in its group
  int64_t first_row;
  int32_t rows, columns;

  template <class T>
  __device__ Matrix<T> matrix(const CudaAssignmentParams& p) const {
    const int64_t first = group * p.group_stride + first_row * p.row_stride;
    return {static_cast<const unsigned char*>(p.cost) + first * (p.cost_float64 ? 8 : 4),
            p.cost_float64,
            p.row_stride,
            p.column_stride,
            rows,
            columns,
            p.maximize,
            false};
  }
};

// Offsets and sizes are on the device, so that only a kernel can check them.
__device__ __forceinline__ AssignmentProblem assignment_of_block(const CudaAssignmentParams& p) {
  const unsigned problems = static_cast<unsigned>(max(p.B, int64_t{1}));
  AssignmentProblem problem{};
  problem.group = blockIdx.x / problems;
  problem.number = blockIdx.x % problems;
  int64_t end = p.R, columns = p.C;
  if (p.offsets) {
    problem.first_row = p.offsets[problem.number];
    end = p.offsets[min(problem.number + 1, p.B)];
  } else if (p.sizes) {
    end = p.sizes[2 * problem.group];
    columns = p.sizes[2 * problem.group + 1];
  }
  if (problem.first_row < 0 || end < problem.first_row || end > p.R || end - problem.first_row > p.max_rows ||
      columns < 0 || columns > p.C) {
    printf(
        "dino_kernels: rows %lld to %lld of %lld (at most %lld a problem) and %lld columns of %lld: offsets "
        "or sizes do not fit the costs\n",
        static_cast<long long>(problem.first_row), static_cast<long long>(end), static_cast<long long>(p.R),
        static_cast<long long>(p.max_rows), static_cast<long long>(columns), static_cast<long long>(p.C));
    __trap();
  }
  problem.rows = static_cast<int32_t>(end - problem.first_row);
  problem.columns = static_cast<int32_t>(columns);
  return problem;
}

// Loads per lane in flight at the same time.
template <class T>
constexpr int kLoads = sizeof(T) == 4 ? 8 : 4;

// Scans a lane's columns of a row, every 32nd one. kDense: dense rows have separate code with half as many
// instructions, for which the kernel for many rows has too few registers.
template <class T, bool kDense>
class RowScan {
 public:
  Lowest<T> lowest;
  int finite = 0;        // allowed columns
  bool invalid = false;  // some cost is NaN or -inf

  RowScan() = default;
  __device__ __forceinline__ RowScan(const Matrix<T>& matrix, int row) {
    if (kDense && matrix.column_stride == 1) {
      scan<kDense>(matrix, row);  // all loads of a round have one address and constant offsets
    } else {
      scan<0>(matrix, row);
    }
  }

 private:
  // kStride: stride of columns, or 0 if not known.
  template <int kStride>
  __device__ __forceinline__ void scan(const Matrix<T>& matrix, int row) {
    constexpr int kCount = kLoads<T>, kRound = 32 * kCount;
    const int lane = threadIdx.x % 32;
    int first = 0;
    if constexpr (kStride > 0) {
      for (; first + kRound <= matrix.columns; first += kRound) {
        T costs[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) costs[i] = matrix.template given<kStride>(row, first + lane, 32 * i);
#pragma unroll
        for (int i = 0; i < kCount; ++i) see(costs[i], first + lane + 32 * i);
      }
    }
    for (; first < matrix.columns; first += kRound) {
      T costs[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        costs[i] = kInfinity<T>;
        if (first + lane + 32 * i < matrix.columns) {
          costs[i] = matrix.template given<kStride>(row, first + lane, 32 * i);
        }
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) see(costs[i], first + lane + 32 * i);
    }
  }

  __device__ __forceinline__ void see(T cost, uint32_t column) {
    const bool allowed = fabs(cost) < kInfinity<T>;
    finite += allowed;
    invalid = invalid || !(cost > -kInfinity<T>);
    if (allowed) lowest.see(cost, column);
  }
};

// The rows with an allowed column, in ascending order. There are at most as many as the shorter side is long.
struct SolverRows {
  int32_t* index;         // in the matrix
  double* u;              // dual
  double* cheapest_cost;  // of the cheapest unmatched column, when last searched
  uint32_t* cheapest;     // that column; the lowest of equals

  __device__ __host__ SolverRows(Carver& carver, int64_t rows)
      : index(carver.take<int32_t>(rows)),
        u(carver.take<double>(rows)),
        cheapest_cost(carver.take<double>(rows)),
        cheapest(carver.take<uint32_t>(rows)) {}

  // Fills index, cheapest_cost and cheapest, one warp per row; returns the number of rows, and the largest
  // number of allowed columns in a row. Ends with a barrier.
  template <class T>
  __device__ int2 fill(const Matrix<T>& matrix, AssignmentShared& shared) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    bool invalid = false;
    int used = 0, most = 0, set = 0;
    for (int first = 0; first < matrix.rows; first += warps, set ^= 1) {
      const int row = first + warp;
      RowScan<T, false> scan;
      if (row < matrix.rows) scan = RowScan<T, false>(matrix, row);
      invalid = invalid || scan.invalid;
      const Lowest<T> lowest = lowest_of_warp(scan.lowest);
      const int finite = __reduce_add_sync(kWholeWarp, scan.finite);
      auto& scans = shared.scans[set];
      if (lane == 0) {
        scans.value[warp] = lowest.value;
        scans.index[warp] = lowest.index;
        scans.finite[warp] = finite;
      }
      __syncthreads();
      const int others = lane < warps ? scans.finite[lane] : 0;
      const unsigned usable = __ballot_sync(kWholeWarp, others > 0);
      most = max(most, __reduce_max_sync(kWholeWarp, others));
      if (lane == 0 && finite > 0) {
        const int i = used + __popc(usable & ((1u << warp) - 1));
        index[i] = row;
        cheapest_cost[i] = lowest.value;
        cheapest[i] = lowest.index;
      }
      used += __popc(usable);
    }
    if (invalid) atomicOr(&shared.status, kInvalidCost);
    __syncthreads();
    return {used, most};
  }
};

// The number of columns with an allowed row, among the `used` rows in `index` that have an allowed column. By
// all threads.
template <class T>
__device__ int count_columns(const Matrix<T>& matrix, const int32_t* index, int used) {
  int count = 0;
  for (int first = 0; first < matrix.columns; first += blockDim.x) {
    const int column = first + threadIdx.x;
    bool allowed = false;
    for (int i = 0; column < matrix.columns && i < used && !allowed; ++i) {
      allowed = matrix.at(index[i], column) < kInfinity<T>;
    }
    count += __syncthreads_count(allowed);
  }
  return count;
}

// Transposes `matrix` so that rows are the smaller side, and fills the rows, whose numbers are in `index`, by
// `fill`; returns how many there are. Every row of the smaller side needs a partner; if infinities leave too
// few, the other side counts as the smaller one.
template <class T, class Fill>
__device__ __forceinline__ int orient(Matrix<T>& matrix, const int32_t* index, Fill fill) {
  if (matrix.columns < matrix.rows) matrix = matrix.transposed();
  for (bool turned = false;; turned = true) {
    const int2 found = fill(matrix);
    // If one row has as many allowed columns as there are rows, counting is unnecessary.
    if (turned || found.y >= found.x || count_columns(matrix, index, found.x) >= found.x) return found.x;
    matrix = matrix.transposed();
  }
}

}  // namespace dino_kernels
