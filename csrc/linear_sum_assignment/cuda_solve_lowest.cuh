// The assignment defined by `solve_lowest` of dino_kernels/ops/linear_sum_assignment/reference.py, computed
// by a block.
//
// If all rows have different cheapest columns, that is the assignment. Every other row is added along a
// shortest path; each of its steps takes one or two barriers. Threads share the matched columns, and the
// columns of a row whose cheapest unmatched one must be searched again. Sums are float64, in the reference's
// order.
#pragma once

#include "cuda_problem.cuh"

namespace dino_kernels {

template <class T>
class LowestSolver {
 public:
  __host__ __device__ LowestSolver(Carver& carver, int64_t rows, int64_t columns)
      : rows(carver, rows),
        slot_of_(carver.take<int32_t>(rows)),
        slot_column_(carver.take<uint32_t>(rows)),
        slot_row_(carver.take<int32_t>(rows)),
        slot_v_(carver.take<double>(rows)),
        distance_(carver.take<double>(rows)),
        previous_(carver.take<int32_t>(rows)),
        done_(carver.take<bool>(rows)),
        matched_(carver.take<bool>(columns)) {}

  const SolverRows rows;

  // Returns the number of matched rows. By all threads; ends with a barrier.
  __device__ int solve(const Matrix<T>& matrix, int used, AssignmentShared& shared, BlockLowest& lowest) {
    const int thread = threadIdx.x;
    for (int i = thread; i < used; i += blockDim.x) rows.u[i] = rows.cheapest_cost[i];
    for (int column = thread; column < matrix.columns; column += blockDim.x) matched_[column] = false;
    __syncthreads();
    if (thread < 32) match_cheapest(used, shared);
    __syncthreads();
    slots_ = shared.slots;
    for (int start = 0; start < used && slots_ < used; ++start) {
      if (slot_of_[start] < 0) augment(matrix, start, lowest);
    }
    return slots_;
  }

  __device__ int64_t column_of(int i) const {
    return slot_of_[i] < 0 ? -1 : int64_t{slot_column_[slot_of_[i]]};
  }

  // `write(column, dual)` for every dual that may be other than 0.
  template <class Write>
  __device__ void for_column_duals(const Matrix<T>&, Write write) const {
    for (int slot = threadIdx.x; slot < slots_; slot += blockDim.x) write(slot_column_[slot], slot_v_[slot]);
  }

 private:
  // Slots are matched columns, in the order in which they were matched.
  int32_t* slot_of_;  // of a row, -1 if none
  uint32_t* slot_column_;
  int32_t* slot_row_;  // its partner
  double* slot_v_;     // dual; that of an unmatched column is 0
  double* distance_;   // of a slot in the current search
  int32_t* previous_;  // row from which a slot is reached
  bool* done_;
  bool* matched_;  // columns
  int slots_ = 0;

  // The first row to claim its cheapest column gets it. By one warp.
  __device__ void match_cheapest(int used, AssignmentShared& shared) const {
    const int lane = threadIdx.x;
    int slots = 0;
    for (int first = 0; first < used; first += 32) {
      const int i = first + lane;
      const uint32_t column = i < used ? rows.cheapest[i] : kNoIndex;
      const bool wanted_here_first =
          __ffs(static_cast<int>(__match_any_sync(kWholeWarp, column))) - 1 == lane;
      const bool gets_it = i < used && wanted_here_first && !matched_[column];
      const unsigned winners = __ballot_sync(kWholeWarp, gets_it);
      const int slot = slots + __popc(winners & ((1u << lane) - 1));
      if (gets_it) {
        slot_column_[slot] = column;
        slot_row_[slot] = i;
        slot_v_[slot] = 0;
        matched_[column] = true;
      }
      if (i < used) slot_of_[i] = gets_it ? slot : -1;
      slots += __popc(winners);
      __syncwarp();
    }
    if (lane == 0) shared.slots = slots;
  }

  __device__ Lowest<double> cheapest_unmatched(const Matrix<T>& matrix, int i, BlockLowest& lowest) const {
    Lowest<T> own;
    for (int column = threadIdx.x; column < matrix.columns; column += blockDim.x) {
      if (!matched_[column]) own.see(matrix.at(rows.index[i], column), column);
    }
    return lowest({static_cast<double>(own.value), own.index});
  }

  // All threads execute the same steps with the same numbers; each slot belongs to one thread.
  __device__ void augment(const Matrix<T>& matrix, int start, BlockLowest& lowest) {
    const int thread = threadIdx.x;
    for (int slot = thread; slot < slots_; slot += blockDim.x) {
      distance_[slot] = kInfinity<double>;
      done_[slot] = false;
    }
    Lowest<double> best;
    int before_sink = -1, row = start;
    double base = 0;
    for (int step = 0; step <= slots_; ++step) {
      const double offset = base - rows.u[row];
      Lowest<double> exit{rows.cheapest_cost[row], rows.cheapest[row]};
      if (exit.index != kNoIndex && matched_[exit.index]) {
        exit = cheapest_unmatched(matrix, row, lowest);
        if (thread == 0) {
          rows.cheapest_cost[row] = exit.value;
          rows.cheapest[row] = exit.index;
        }
      }
      const double sum = exit.value + offset;
      if (sum < best.value || (sum == best.value && sum < kInfinity<double> && exit.index < best.index)) {
        best = {sum, exit.index};
        before_sink = row;
      }
      Lowest<double> nearest;
      for (int slot = thread; slot < slots_; slot += blockDim.x) {
        if (done_[slot]) continue;
        const double cost = matrix.at(rows.index[row], slot_column_[slot]);
        const double reach = (cost - slot_v_[slot]) + offset;
        if (reach < distance_[slot]) {
          distance_[slot] = reach;
          previous_[slot] = row;
        }
        nearest.see(distance_[slot], slot);
      }
      nearest = lowest(nearest);
      if (best.value <= nearest.value) break;
      const int slot = nearest.index;
      if (slot % blockDim.x == threadIdx.x) done_[slot] = true;
      row = slot_row_[slot];
      base = nearest.value;
    }
    if (best.value == kInfinity<double>) return;
    for (int slot = thread; slot < slots_; slot += blockDim.x) {
      if (!done_[slot]) continue;
      slot_v_[slot] += distance_[slot] - best.value;
      rows.u[slot_row_[slot]] += best.value - distance_[slot];
    }
    if (thread == 0) rows.u[start] += best.value;
    __syncthreads();
    if (thread == 0) add_path(start, before_sink, best.index);
    ++slots_;
    __syncthreads();
  }

  // Each row on the path takes its predecessor column. By one thread.
  __device__ void add_path(int start, int row, uint32_t sink) const {
    slot_column_[slots_] = sink;
    slot_v_[slots_] = 0;
    matched_[sink] = true;
    int slot = slots_;
    for (int step = 0; step <= slots_; ++step) {
      const int left = slot_of_[row];
      slot_row_[slot] = row;
      slot_of_[row] = slot;
      if (row == start) return;
      slot = left;
      row = previous_[slot];
    }
  }
};

}  // namespace dino_kernels
