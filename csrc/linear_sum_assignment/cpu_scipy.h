// `solve_as_scipy` of reference.py, to the bit: Crouse's algorithm with SciPy's order of columns.
#pragma once

#include "cpu_matrix.h"

namespace dino_kernels::DINO_CPU_VARIANT {

template <class T>
struct ScipySolver {
  // [rows]
  double* u;
  int32_t *column_of, *visited_rows;
  // [columns]
  double *v, *distance;
  int32_t *row_of, *previous, *remaining, *visited_columns;

  Matrix<T> m{};

  ScipySolver(int64_t rows, int64_t columns, Scratch& scratch) {
    u = scratch.take<double>(rows);
    column_of = scratch.take<int32_t>(rows);
    visited_rows = scratch.take<int32_t>(rows + 1);
    for (double** each : {&v, &distance}) *each = scratch.take<double>(columns);
    for (int32_t** each : {&row_of, &previous, &remaining, &visited_columns})
      *each = scratch.take<int32_t>(columns);
  }

  void solve(const Matrix<T>& matrix) {
    m = matrix;
    for (int64_t i = 0; i < m.rows; ++i) {
      u[i] = 0;
      column_of[i] = -1;
    }
    for (int64_t c = 0; c < m.columns; ++c) {
      v[c] = 0;
      row_of[c] = -1;
    }
    for (int64_t i = 0; i < m.rows; ++i) augment(static_cast<int32_t>(i));
  }

  void write_column_duals(double* to, double sign) const {
    for (int64_t c = 0; c < m.columns; ++c) to[c] = sign * v[c] + 0.0;
  }

 private:
  void augment(int32_t start) {
    for (int64_t c = 0; c < m.columns; ++c) {
      distance[c] = kInfinity<double>;
      remaining[c] = static_cast<int32_t>(m.columns - 1 - c);
    }
    int64_t num_remaining = m.columns, num_rows = 0, num_columns = 0;
    int32_t row = start, sink = -1;
    double base = 0;
    while (sink < 0 && num_remaining > 0) {
      visited_rows[num_rows++] = row;
      const T* costs = m.row(row);
      double least = kInfinity<double>;
      int64_t index = -1;
      for (int64_t i = 0; i < num_remaining; ++i) {
        const int32_t c = remaining[i];
        const double reach = ((base + static_cast<double>(costs[c])) - u[row]) - v[c];
        if (reach < distance[c]) {
          distance[c] = reach;
          previous[c] = row;
        }
        // Of equals the last unmatched column, or the first if all are matched.
        if (distance[c] < least || (distance[c] == least && row_of[c] < 0)) {
          least = distance[c];
          index = i;
        }
      }
      if (least == kInfinity<double>) return;
      base = least;
      const int32_t column = remaining[index];
      visited_columns[num_columns++] = column;
      if (row_of[column] < 0) {
        sink = column;
      } else {
        row = row_of[column];
      }
      remaining[index] = remaining[--num_remaining];
    }
    if (sink < 0) return;
    u[start] += base;
    for (int64_t i = 1; i < num_rows; ++i) u[visited_rows[i]] += base - distance[column_of[visited_rows[i]]];
    for (int64_t i = 0; i < num_columns; ++i) v[visited_columns[i]] -= base - distance[visited_columns[i]];
    match_along_path(start, sink);
  }

  void match_along_path(int32_t start, int32_t column) {
    while (true) {
      const int32_t row = previous[column], before = column_of[row];
      row_of[column] = row;
      column_of[row] = column;
      if (row == start) return;
      column = before;
    }
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
