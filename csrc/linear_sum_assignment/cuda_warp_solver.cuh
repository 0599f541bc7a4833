// The assignment of LowestSolver for at most 32 rows, by one warp without a block barrier: a lane is a row
// and also a slot, with its state in registers.
#pragma once

#include "cuda_warp_rows.cuh"

namespace dino_kernels {

class WarpSolver {
 public:
  // Solves for `used` rows. By one warp, whose lanes have the same arguments.
  __device__ WarpSolver(const Matrix<float>& matrix, WarpRows& rows, int used)
      : matrix_(matrix), rows_(rows), lane_(static_cast<int>(threadIdx.x)), used_(used) {
    if (lane_ < used) {
      index = rows.index[lane_];
      cheapest_ = {rows.cheapest_cost[lane_], rows.cheapest[lane_]};
      u = cheapest_.value;
    }
  }

  // Of the lane's row: where it is in the matrix, its dual, its column.
  int index = 0;
  double u = 0;
  __device__ uint32_t column() const {
    const uint32_t matched = __shfl_sync(kWholeWarp, slot_column, max(slot_of_, 0));
    return slot_of_ < 0 ? kNoIndex : matched;
  }

  // Of the lane's slot: a matched column, in the order in which they were matched, and its dual.
  int slots = 0;
  uint32_t slot_column = kNoIndex;
  double slot_v = 0;

  __device__ void solve() {
    match_cheapest();
    unsigned left = __ballot_sync(kWholeWarp, lane_ < used_ && slot_of_ < 0);
    for (; left; left &= left - 1) augment(__ffs(static_cast<int>(left)) - 1);
  }

 private:
  const Matrix<float>& matrix_;
  WarpRows& rows_;
  const int lane_, used_;
  int slot_of_ = -1;        // of the row
  Lowest<float> cheapest_;  // cheapest unmatched column of the row, when last searched
  int partner_ = 0;         // row of the slot
  int previous_ = 0;        // row from which the slot is reached
  double distance_ = 0;     // of the slot in the current search

  // The first row to claim its cheapest column gets it.
  __device__ void match_cheapest() {
    const uint32_t column = lane_ < used_ ? cheapest_.index : kNoIndex;
    const bool asks_first = __ffs(static_cast<int>(__match_any_sync(kWholeWarp, column))) - 1 == lane_;
    const unsigned winners = __ballot_sync(kWholeWarp, lane_ < used_ && asks_first);
    slots = __popc(winners);
    if (winners >> lane_ & 1) {
      slot_of_ = __popc(winners & ((1u << lane_) - 1));
      rows_.row_of_slot[slot_of_] = lane_;
      rows_.match(column);
    }
    __syncwarp();
    partner_ = lane_ < slots ? rows_.row_of_slot[lane_] : 0;
    slot_column = __shfl_sync(kWholeWarp, column, partner_);
  }

  // All lanes execute the same steps with the same numbers.
  __device__ void augment(int start) {
    distance_ = kInfinity<double>;
    unsigned open = __ballot_sync(kWholeWarp, lane_ < slots);
    const unsigned all = open;
    Lowest<double> best;
    int before_sink = -1, row = start;
    double base = 0;
    for (int step = 0; step <= slots; ++step) {
      const int at = __shfl_sync(kWholeWarp, index, row);
      const bool is_open = open >> lane_ & 1;
      const float cost = is_open ? matrix_.at(at, static_cast<int32_t>(slot_column)) : kInfinity<float>;
      const double offset = base - __shfl_sync(kWholeWarp, u, row);
      const Lowest<float> exit = cheapest_unmatched(row, at);
      const double sum = static_cast<double>(exit.value) + offset;
      if (sum < best.value || (sum == best.value && sum < kInfinity<double> && exit.index < best.index)) {
        best = {sum, exit.index};
        before_sink = row;
      }
      const double reach = (static_cast<double>(cost) - slot_v) + offset;
      if (is_open && reach < distance_) {
        distance_ = reach;
        previous_ = row;
      }
      const int nearest = lowest_lane(is_open ? distance_ : kInfinity<double>);
      base = __shfl_sync(kWholeWarp, distance_, nearest);
      row = __shfl_sync(kWholeWarp, partner_, nearest);
      if (!(open >> nearest & 1) || best.value <= base) break;
      open &= ~(1u << nearest);
    }
    if (best.value == kInfinity<double>) return;
    const unsigned done = all & ~open;
    // A row changes with its slot.
    const double passed = __shfl_sync(kWholeWarp, distance_, max(slot_of_, 0));
    if (slot_of_ >= 0 && (done >> slot_of_ & 1)) u += best.value - passed;
    if (lane_ == start) u += best.value;
    if (done >> lane_ & 1) slot_v += distance_ - best.value;
    add_path(start, before_sink, best.index);
  }

  // A row's cheapest unmatched column.
  __device__ Lowest<float> cheapest_unmatched(int row, int at) {
    Lowest<float> exit{__shfl_sync(kWholeWarp, cheapest_.value, row),
                       __shfl_sync(kWholeWarp, cheapest_.index, row)};
    if (exit.index == kNoIndex || !rows_.is_matched(exit.index)) return exit;
    exit = rows_.look_again(matrix_, row, at);
    if (lane_ == row) cheapest_ = exit;
    return exit;
  }

  // Each row on the path takes its predecessor column.
  __device__ void add_path(int start, int row, uint32_t sink) {
    if (lane_ == slots) {
      slot_column = sink;
      slot_v = 0;
      rows_.match(sink);
    }
    __syncwarp();  // the shuffles below synchronise too, but do not order memory
    int slot = slots++;
    for (int step = 0; step <= slots; ++step) {
      const int left = __shfl_sync(kWholeWarp, slot_of_, row);
      if (lane_ == slot) partner_ = row;
      if (lane_ == row) slot_of_ = slot;
      if (row == start) return;
      slot = left;
      row = __shfl_sync(kWholeWarp, previous_, slot);
    }
  }
};

}  // namespace dino_kernels
