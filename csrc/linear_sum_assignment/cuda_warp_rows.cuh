// At most 32 rows: read by as many warps, one each, then used by one warp, which repeatedly searches for a
// row's cheapest unmatched column.
//
// Columns are dealt to lanes: column c to lane c % 32. The cheapest column of each row and lane is kept. When
// it is matched, only that lane's columns are searched again: by the lane, or by all lanes together.
#pragma once

#include "cuda_problem.cuh"

namespace dino_kernels {

constexpr int kWarpRows = 32;
constexpr int64_t kWarpColumns = int64_t{1} << 18;  // a bit of shared memory each

struct WarpRows {
  int32_t finite[2][32];     // allowed columns of the warps' rows
  int32_t index[kWarpRows];  // in the matrix, of the rows with an allowed column, ascending
  float cheapest_cost[kWarpRows];
  uint32_t cheapest[kWarpRows];  // that column; the lowest of equals
  int32_t row_of_slot[kWarpRows];
  float lane_cost[kWarpRows][32];  // likewise of a lane's columns
  uint32_t lane_cheapest[kWarpRows][32];

  // One bit per column follows this struct.
  __device__ __forceinline__ uint32_t* matched() { return reinterpret_cast<uint32_t*>(this + 1); }

  // Whether a column is matched. By one warp, as everything below.
  __device__ __forceinline__ bool is_matched(uint32_t column) {
    return matched()[column / 32] >> column % 32 & 1;
  }
  __device__ __forceinline__ void match(uint32_t column) {
    atomicOr(&matched()[column / 32], 1u << column % 32);
  }

  // Fills the rows, one warp per row, by all threads, and clears `matched`. Returns the number of rows and
  // the largest number of allowed columns in a row; sets `invalid` if a cost is NaN or -inf. Ends with a
  // barrier.
  __device__ int2 fill(const Matrix<float>& matrix, bool& invalid) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int word = threadIdx.x; word < (matrix.columns + 31) / 32; word += blockDim.x) matched()[word] = 0;
    int used = 0, most = 0, set = 0;
    for (int first = 0; first < matrix.rows; first += warps, set ^= 1) {
      const int row = first + warp;
      RowScan<float, true> scan;
      if (row < matrix.rows) scan = RowScan<float, true>(matrix, row);
      invalid = invalid || scan.invalid;
      const Lowest<float> lowest = lowest_of_warp(scan.lowest);
      const int allowed = __reduce_add_sync(kWholeWarp, scan.finite);
      if (lane == 0) finite[set][warp] = allowed;
      __syncthreads();
      const int others = lane < warps ? finite[set][lane] : 0;
      const unsigned usable = __ballot_sync(kWholeWarp, others > 0);
      most = max(most, __reduce_max_sync(kWholeWarp, others));
      if (allowed > 0) {
        const int i = used + __popc(usable & ((1u << warp) - 1));
        lane_cost[i][lane] = scan.lowest.value;
        lane_cheapest[i][lane] = scan.lowest.index;
        if (lane == 0) {
          index[i] = row;
          cheapest_cost[i] = lowest.value;
          cheapest[i] = lowest.index;
        }
      }
      used += __popc(usable);
    }
    invalid = __syncthreads_or(invalid);
    return {used, most};
  }

  // The cheapest unmatched column of row `i`, which is row `at` of the matrix.
  __device__ Lowest<float> look_again(const Matrix<float>& matrix, int i, int at) {
    const int lane = threadIdx.x;
    Lowest<float> own{lane_cost[i][lane], lane_cheapest[i][lane]};
    const bool is_old = own.index != kNoIndex && is_matched(own.index);
    unsigned old = __ballot_sync(kWholeWarp, is_old);
    if (__popc(old) > kLanesTogether) {
      if (is_old) own = scan_lane(matrix, at);
    } else {
      for (; old; old &= old - 1) {
        const int whose = __ffs(static_cast<int>(old)) - 1;
        const Lowest<float> found = scan_together(matrix, at, whose);
        if (lane == whose) own = found;
      }
    }
    lane_cost[i][lane] = own.value;
    lane_cheapest[i][lane] = own.index;
    return lowest_of_warp(own);
  }

 private:
  // Up to this many lanes' columns are searched by all lanes together, one lane's after the other.
  static constexpr int kLanesTogether = 8;

  __device__ Lowest<float> scan_lane(const Matrix<float>& matrix, int at) {
    Lowest<float> lowest;
    constexpr int kCount = kLoads<float>;
    for (int start = threadIdx.x; start < matrix.columns; start += 32 * kCount) {
      float costs[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int column = start + 32 * i;
        costs[i] = column < matrix.columns ? matrix.at(at, column) : kInfinity<float>;
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint32_t column = start + 32 * i;
        if (costs[i] < kInfinity<float> && !is_matched(column)) lowest.see(costs[i], column);
      }
    }
    return lowest;
  }

  __device__ Lowest<float> scan_together(const Matrix<float>& matrix, int at, int whose) {
    Lowest<float> lowest;
    for (int column = whose + 32 * static_cast<int>(threadIdx.x); column < matrix.columns;
         column += 32 * 32) {
      if (!is_matched(column)) lowest.see(matrix.at(at, column), column);
    }
    return lowest_of_warp(lowest);
  }
};

}  // namespace dino_kernels
