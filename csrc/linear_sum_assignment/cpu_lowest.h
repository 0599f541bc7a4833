// `solve_lowest` of reference.py, to the bit, in less time.
//
// An unmatched column has dual 0 and can only end a path. So a path search examines two things per visited
// row: the matched columns ("slots", in the order in which they were matched), whose costs are contiguous in
// a copy of the row's, and its cheapest unmatched column, the head of a short list: a matched column stays
// matched.
#pragma once

#include "cpu_matrix.h"

namespace dino_kernels::DINO_CPU_VARIANT {

DINO_INLINE Vector<double> load_doubles(const double* from) { return load<Vector<double>>(from); }
DINO_INLINE Vector<double> load_doubles(const float* from) {
#if defined(__AVX512F__)
  return (Vector<double>)_mm512_maskz_cvtps_pd(0xff, load<__m256>(from));
#elif defined(__AVX2__)
  return (Vector<double>)_mm256_cvtps_pd(load<__m128>(from));
#else
  Vector<double> v;
  for (int i = 0; i < kLanes<double>; ++i) v[i] = from[i];
  return v;
#endif
}

// A visited row's cheapest columns, unmatched when they were collected. They are not sorted: most lists are
// read once or twice.
template <class T>
struct Candidates {
  static constexpr int kCapacity = 48;
  T cost[kCapacity];
  int32_t column[kCapacity];  // ascending
  int32_t head, count;        // head: the cheapest that is still unmatched, the lowest of equals; count: none
};

template <class T>
struct LowestSolver {
  static constexpr int kWidth = kLanes<double>;
  struct Sink {
    double distance;
    int32_t column, row;  // row: the one before
  };

  int64_t capacity;  // of slots
  // [rows]
  double* u;
  int32_t *column_of, *slot_of_row, *visited;  // -1: none; visited: index into the arrays below
  int32_t* free_rows;
  // [columns]
  int32_t* slot_of_column;  // -1: unmatched
  T* matched;               // +infinity, or -infinity for an unmatched column
  // [slots]
  int32_t *slot_column, *slot_row;
  double *v, *open_v, *waiting;  // open_v: -infinity if done, which no cost brings closer
  int64_t* previous;             // row
  int32_t* done;
  double* done_distance;
  // [visited rows]
  int32_t* copied;  // slots
  Candidates<T>* candidates;
  T* slot_cost;  // [slots] each

  Matrix<T> m{};
  int64_t slots = 0, visited_rows = 0;

  // For matrices of at most this size. At most `slots_` rows have an allowed pair.
  LowestSolver(int64_t rows, int64_t columns, int64_t slots_, Scratch& scratch)
      : capacity(round_up(slots_, kWidth)) {
    u = scratch.take<double>(rows);
    for (int32_t** each : {&column_of, &slot_of_row, &visited, &free_rows})
      *each = scratch.take<int32_t>(rows);
    slot_of_column = scratch.take<int32_t>(columns);
    matched = scratch.take<T>(columns);
    for (int32_t** each : {&slot_column, &slot_row, &done, &copied}) *each = scratch.take<int32_t>(capacity);
    for (double** each : {&v, &open_v, &waiting, &done_distance}) *each = scratch.take<double>(capacity);
    previous = scratch.take<int64_t>(capacity);
    candidates = scratch.take<Candidates<T>>(capacity);
    slot_cost = scratch.take<T>(capacity * capacity);
  }

  void solve(const Matrix<T>& matrix, const int32_t* cheapest) {
    m = matrix;
    const int64_t conflicts = take_cheapest(cheapest);
    if (conflicts > 0) {
      for (int64_t c = 0; c < m.columns; ++c)
        matched[c] = slot_of_column[c] < 0 ? -kInfinity<T> : kInfinity<T>;
      for (int64_t s = slots; s < capacity; ++s) open_v[s] = -kInfinity<double>;
      for (int64_t i = 0; i < m.rows; ++i) visited[i] = -1;
      for (int64_t i = 0; i < conflicts; ++i) augment(free_rows[i]);
    }
    for (int64_t i = 0; i < m.rows; ++i) column_of[i] = slot_of_row[i] < 0 ? -1 : slot_column[slot_of_row[i]];
  }

  // Dual of each column.
  void write_column_duals(double* to, double sign) const {
    for (int64_t s = 0; s < slots; ++s) to[slot_column[s]] = sign * v[s] + 0.0;
  }

 private:
  // Every row claims its cheapest column, and the first to claim a column gets it. Returns the number of the
  // other rows.
  int64_t take_cheapest(const int32_t* cheapest) {
    int64_t conflicts = 0;
    for (int64_t c = 0; c < m.columns; ++c) slot_of_column[c] = -1;
    for (int64_t i = 0; i < m.rows; ++i) {
      const int32_t column = cheapest[i];
      slot_of_row[i] = -1;
      u[i] = 0;
      if (column < 0) continue;
      u[i] = m.row(i)[column];
      if (slot_of_column[column] < 0) {
        add_slot(column);
        slot_of_row[i] = slot_of_column[column];
        slot_row[slot_of_row[i]] = static_cast<int32_t>(i);
      } else {
        free_rows[conflicts++] = static_cast<int32_t>(i);
      }
    }
    return conflicts;
  }

  void add_slot(int32_t column) {
    slot_of_column[column] = static_cast<int32_t>(slots);
    slot_column[slots] = column;
    v[slots++] = 0;
  }

  // Index of a row's candidates and copied costs, which are brought up to date.
  int64_t visit(int64_t row) {
    if (visited[row] < 0) {
      visited[row] = static_cast<int32_t>(visited_rows++);
      copied[visited[row]] = 0;
      candidates[visited[row]].head = candidates[visited[row]].count = 0;
    }
    const int64_t place = visited[row];
    T* costs = slot_cost + place * capacity;
    for (int64_t s = copied[place]; s < slots; ++s) costs[s] = m.row(row)[slot_column[s]];
    copied[place] = static_cast<int32_t>(slots);
    return place;
  }

  // A row's cheapest unmatched column, the head of the returned list; it has no head if there is none.
  const Candidates<T>& cheapest_unmatched(int64_t row, int64_t place) {
    Candidates<T>& list = candidates[place];
    if (list.head < list.count && slot_of_column[list.column[list.head]] < 0) return list;
    find_head(list);
    if (list.head == list.count) {
      collect(m.row(row), list);
      find_head(list);
    }
    return list;
  }

  void find_head(Candidates<T>& list) const {
    T least = kInfinity<T>;
    list.head = list.count;
    for (int32_t i = 0; i < list.count; ++i) {
      const T cost = slot_of_column[list.column[i]] < 0 ? list.cost[i] : kInfinity<T>;
      list.head = cost < least ? i : list.head;
      least = cost < least ? cost : least;
    }
  }

  // The unmatched columns up to a cost that a few of them have; if they are too many, as with ties, as many
  // of the least cost as fit.
  void collect(const T* row, Candidates<T>& list) const {
    using V = Vector<T>;
    const auto cost_at = [&](int64_t c) {
      const int64_t left = m.columns - c;
      const V blocked =
          left >= kLanes<T> ? load<V>(matched + c) : load_first(matched + c, left, kInfinity<T>);
      const V cost = left >= kLanes<T> ? load<V>(row + c) : load_first(row + c, left, kInfinity<T>);
      return cost > blocked ? cost : blocked;
    };
    V least = broadcast(kInfinity<T>);
    for (int64_t c = 0; c < m.columns; c += kLanes<T>) {
      const V cost = cost_at(c);
      least = cost < least ? cost : least;
    }
    // Each lane has the least cost of its columns, those congruent modulo the number of lanes. About 8
    // columns do not exceed the greatest of these minima, taken over at most 4 groups.
    const V of_groups = min_of_groups<T, 4>(least);
    const T all = min_of_lanes<T>(least)[0];
    T bound = max_of_lanes<T>(of_groups)[0];
    if (bound == kInfinity<T>) bound = kGreatest<T>;
    int32_t count = 0;
    list.count = 0;
    if (all == kInfinity<T>) return;
    for (int64_t c = 0; c < m.columns; c += kLanes<T>) {
      const V cost = cost_at(c);
      uint32_t bits = bits_of(cost <= bound);
      for (; bits != 0; bits &= bits - 1) {
        if (count == Candidates<T>::kCapacity) {
          if (bound == all) break;
          bound = all;
          c = -kLanes<T>;
          count = 0;
          break;
        }
        const auto column = static_cast<int32_t>(c + __builtin_ctz(bits));
        list.cost[count] = row[column];
        list.column[count++] = column;
      }
    }
    list.count = count;
  }

  // Distances through a row. Returns the nearest slot that is not done, the earliest of equals.
  DINO_INLINE int64_t relax(int64_t row, int64_t place, double offset) {
    using V = Vector<double>;
    using Index = Vector<int64_t>;
    const T* costs = slot_cost + place * capacity;
    V least = broadcast(kInfinity<double>);
    Index nearest{}, index;
    for (int i = 0; i < kWidth; ++i) index[i] = i;
    for (int64_t s = 0; s < slots; s += kWidth) {
      const V reach = (load_doubles(costs + s) - load<V>(open_v + s)) + offset;
      const V before = load<V>(waiting + s);
      const Index closer = reach < before;
      const V now = closer ? reach : before;
      store(waiting + s, now);
      store(previous + s, closer ? Index{} + row : load<Index>(previous + s));
      const Index nearer = now < least;
      least = nearer ? now : least;
      nearest = nearer ? index : nearest;
      index += kWidth;
    }
    const V distance = min_of_lanes<double>(least);
    int64_t slot = INT64_MAX;
    for (uint32_t bits = bits_of(least == distance); bits != 0; bits &= bits - 1) {
      const int64_t candidate = nearest[__builtin_ctz(bits)];
      slot = candidate < slot ? candidate : slot;
    }
    return slot;
  }

  // Matches one more row along a shortest path, if there is one.
  void augment(int32_t start) {
    for (int64_t s = 0; s < slots; ++s) open_v[s] = v[s];
    for (int64_t s = 0; s < round_up(slots, kWidth); ++s) waiting[s] = kInfinity<double>;
    Sink sink{kInfinity<double>, -1, -1};
    int64_t num_done = 0;
    int32_t row = start;
    double base = 0;
    while (true) {
      const int64_t place = visit(row);
      const double offset = base - u[row];
      const Candidates<T>& list = cheapest_unmatched(row, place);
      if (list.head < list.count) {
        const double distance = static_cast<double>(list.cost[list.head]) + offset;
        const int32_t column = list.column[list.head];
        if (distance < sink.distance ||
            (distance == sink.distance && distance < kInfinity<double> && column < sink.column)) {
          sink = {distance, column, row};
        }
      }
      const int64_t slot = relax(row, place, offset);
      if (sink.distance <= waiting[slot]) break;
      base = waiting[slot];
      done[num_done] = static_cast<int32_t>(slot);
      done_distance[num_done++] = base;
      waiting[slot] = kInfinity<double>;
      open_v[slot] = -kInfinity<double>;
      row = slot_row[slot];
    }
    if (sink.distance == kInfinity<double>) return;
    u[start] += sink.distance;
    for (int64_t i = 0; i < num_done; ++i) {
      v[done[i]] += done_distance[i] - sink.distance;
      u[slot_row[done[i]]] += sink.distance - done_distance[i];
    }
    match_along_path(start, sink);
  }

  void match_along_path(int32_t start, const Sink& sink) {
    matched[sink.column] = kInfinity<T>;
    add_slot(sink.column);
    auto slot = static_cast<int32_t>(slots - 1);
    int32_t row = sink.row;
    while (true) {
      const int32_t before = slot_of_row[row];
      slot_of_row[row] = slot;
      slot_row[slot] = row;
      if (row == start) return;
      slot = before;
      row = static_cast<int32_t>(previous[slot]);
    }
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
