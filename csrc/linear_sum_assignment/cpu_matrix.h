// A problem's costs in the form for the solvers: rows are the smaller side and dense, no cost is NaN or
// -infinity, and +infinity forbids a pair.
#pragma once

#include "../common/scratch.h"
#include "cpu.h"

namespace dino_kernels::DINO_CPU_VARIANT {

template <class T>
struct Matrix {
  const T* cost;
  int64_t rows, columns, stride;
  const T* row(int64_t i) const { return cost + i * stride; }
};

template <class T>
constexpr T kInfinity = static_cast<T>(__builtin_inf());
template <class T>
constexpr T kGreatest = sizeof(T) == 8 ? T(__DBL_MAX__) : T(__FLT_MAX__);  // finite

// The lowest column with cost `value`, which occurs in the row.
template <class T>
DINO_INLINE int32_t first_equal(const T* row, int64_t columns, T value) {
  int64_t c = 0;
  for (; c + kLanes<T> <= columns; c += kLanes<T>) {
    const uint32_t equal = bits_of(load<Vector<T>>(row + c) == value);
    if (equal != 0) return static_cast<int32_t>(c + __builtin_ctz(equal));
  }
  while (row[c] != value) ++c;
  return static_cast<int32_t>(c);
}

// The cheapest column of each row, the lowest of equals; -1 if a row has only infinities. Returns false, with
// undefined results, if kAllFinite was assumed wrongly.
template <bool kAllFinite, class T>
static bool find_cheapest(const Matrix<T>& m, int32_t* cheapest) {
  using V = Vector<T>;
  for (int64_t i = 0; i < m.rows; ++i) {
    const T* row = m.row(i);
    V least[2] = {broadcast(row[0]), broadcast(row[0])}, not_finite[2] = {};
    const auto take = [&](int part, V cost) {
      least[part] = cost < least[part] ? cost : least[part];
      if constexpr (kAllFinite) not_finite[part] += cost * T(0);  // NaN from then on
    };
    int64_t c = 0;
    for (; c + 2 * kLanes<T> <= m.columns; c += 2 * kLanes<T>) {
      take(0, load<V>(row + c));
      take(1, load<V>(row + c + kLanes<T>));
    }
    for (; c < m.columns; c += kLanes<T>) {
      const int64_t left = m.columns - c;
      take(0, left >= kLanes<T> ? load<V>(row + c) : load_first(row + c, left, row[0]));
    }
    if (kAllFinite && sum_of_lanes<T>(not_finite[0] + not_finite[1])[0] != T(0)) return false;
    const T value = min_of_lanes<T>(least[0] < least[1] ? least[0] : least[1])[0];
    cheapest[i] = value < kInfinity<T> ? first_equal(row, m.columns, value) : -1;
  }
  return true;
}

template <class T>
struct MatrixReader {
  const AssignmentProblem& p;
  int32_t* cheapest;  // [larger side] cheapest column of each row, -1 if none is allowed
  int32_t* used;      // [larger side]
  T* copy;            // [rows, columns]
  bool transposed = false;
  bool has_invalid = false;

  MatrixReader(const AssignmentProblem& problem, Scratch& scratch) : p(problem) {
    const int64_t larger_side = p.rows > p.columns ? p.rows : p.columns;
    cheapest = scratch.take<int32_t>(larger_side);
    used = scratch.take<int32_t>(larger_side);
    copy = scratch.take<T>(p.rows * p.columns);
  }

  // The smaller side becomes the rows; if infinities leave fewer of the other side, that side does.
  Matrix<T> read() {
    transposed = p.columns < p.rows;
    Matrix<T> m = transposed ? view<true>() : view<false>();
    if (m.rows == 0 || find_cheapest<true>(m, cheapest)) return m;
    if (m.cost != copy) m = copied();
    if (has_more_used_rows(m)) {
      transposed = !transposed;
      m = copied();
    }
    find_cheapest<false>(m, cheapest);
    return m;
  }

 private:
  template <bool kTransposed>
  Matrix<T> view() {
    const int64_t dense = kTransposed ? p.row_stride : p.column_stride;
    if (dense != 1 || p.maximize) return copied();
    if constexpr (kTransposed) return {static_cast<const T*>(p.cost), p.columns, p.rows, p.column_stride};
    return {static_cast<const T*>(p.cost), p.rows, p.columns, p.row_stride};
  }

  // In blocks, so that reads and writes stay in few cache lines, whichever side is dense.
  Matrix<T> copied() {
    const Matrix<T> m = transposed ? Matrix<T>{copy, p.columns, p.rows, p.rows}
                                   : Matrix<T>{copy, p.rows, p.columns, p.columns};
    const int64_t row_stride = transposed ? p.column_stride : p.row_stride;
    const int64_t column_stride = transposed ? p.row_stride : p.column_stride;
    const T sign = p.maximize ? T(-1) : T(1);
    const T* from = static_cast<const T*>(p.cost);
    constexpr int64_t kBlock = 16;
    for (int64_t c = 0; c < m.columns; c += kBlock) {
      const int64_t end = c + kBlock < m.columns ? c + kBlock : m.columns;
      for (int64_t i = 0; i < m.rows; ++i) {
        for (int64_t j = c; j < end; ++j) {
          const T cost = sign * from[i * row_stride + j * column_stride];
          const bool usable = cost > -kInfinity<T>;
          has_invalid |= !usable;
          copy[i * m.stride + j] = usable ? cost : kInfinity<T>;
        }
      }
    }
    return m;
  }

  bool has_more_used_rows(const Matrix<T>& m) {
    int64_t used_rows = 0, used_columns = 0;
    for (int64_t c = 0; c < m.columns; ++c) used[c] = 0;
    for (int64_t i = 0; i < m.rows && used_columns < m.rows; ++i) {
      bool any = false;
      for (int64_t c = 0; c < m.columns; ++c) {
        const bool allowed = m.row(i)[c] < kInfinity<T>;
        any |= allowed;
        used_columns += allowed && !used[c];
        used[c] |= allowed;
      }
      used_rows += any;
    }
    return used_rows > used_columns;
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
