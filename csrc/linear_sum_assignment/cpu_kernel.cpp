// The solver for one instruction set: reads a problem, solves it in SciPy's order or in ours, and writes the
// requested results.
#include "../matching_cost/params.h"
#include "cpu_lowest.h"
#include "cpu_scipy.h"

namespace dino_kernels::DINO_CPU_VARIANT {

// A problem's share of the scratch memory.
template <class T>
struct AssignmentMemory {
  MatrixReader<T> reader;
  Scratch solver;  // the remaining memory

  AssignmentMemory(const AssignmentProblem& p, Scratch scratch) : reader(p, scratch), solver(scratch) {}
};

template <class T>
struct AssignmentWriter {
  const AssignmentProblem& p;
  bool transposed;

  // Returns the number of pairs.
  template <class Solver>
  int64_t write(const Solver& solver) const {
    const int64_t rows = transposed ? p.columns : p.rows;
    int64_t pairs = 0;
    for (int64_t i = 0; i < p.rows; ++i) p.assigned[i] = -1;
    for (int64_t i = 0; i < rows; ++i) {
      const int32_t column = solver.column_of[i];
      if (column < 0) continue;
      ++pairs;
      p.assigned[transposed ? column : i] = transposed ? i : column;
    }
    if (p.objective) write_objective();
    double* row_duals = transposed ? p.column_duals : p.row_duals;
    double* column_duals = transposed ? p.row_duals : p.column_duals;
    const double sign = p.maximize ? -1.0 : 1.0;
    if (row_duals) {
      for (int64_t i = 0; i < rows; ++i) row_duals[i] = sign * solver.u[i] + 0.0;
    }
    if (column_duals) {
      for (int64_t c = 0; c < p.rows + p.columns - rows; ++c) column_duals[c] = 0;
      solver.write_column_duals(column_duals, sign);
    }
    return pairs;
  }

  void write_objective() const {
    double sum = 0;
    for (int64_t i = 0; i < p.rows; ++i) {
      if (p.assigned[i] < 0) continue;
      sum += static_cast<double>(
          static_cast<const T*>(p.cost)[i * p.row_stride + p.assigned[i] * p.column_stride]);
    }
    *p.objective = sum;
  }
};

template <class T>
static int64_t assignment_scratch_bytes(int64_t rows, int64_t columns, bool as_scipy) {
  AssignmentProblem p{};
  p.rows = rows;
  p.columns = columns;
  AssignmentMemory<T> memory(p, Scratch{nullptr});
  const int64_t larger = rows > columns ? rows : columns, smaller = rows > columns ? columns : rows;
  if (as_scipy) {
    ScipySolver<T>(larger, larger, memory.solver);
  } else {
    LowestSolver<T>(larger, larger, smaller, memory.solver);
  }
  return memory.solver.used;
}

template <class T>
static int32_t solve_assignment(const AssignmentProblem& p, void* scratch) {
  AssignmentMemory<T> memory(p, Scratch{static_cast<char*>(scratch)});
  MatrixReader<T>& reader = memory.reader;
  const Matrix<T> matrix = reader.read();
  const int64_t smaller = p.rows < p.columns ? p.rows : p.columns;
  const AssignmentWriter<T> writer{p, reader.transposed};
  int64_t pairs;
  if (p.as_scipy) {
    ScipySolver<T> solver(matrix.rows, matrix.columns, memory.solver);
    solver.solve(matrix);
    pairs = writer.write(solver);
  } else {
    LowestSolver<T> solver(matrix.rows, matrix.columns, smaller, memory.solver);
    solver.solve(matrix, reader.cheapest);
    pairs = writer.write(solver);
  }
  return (reader.has_invalid ? kInvalidCost : 0) | (pairs < smaller ? kIncomplete : 0);
}

extern const AssignmentKernels linear_sum_assignment;
const AssignmentKernels linear_sum_assignment = {
    [](int64_t rows, int64_t columns, bool cost_float64, bool as_scipy) {
      return cost_float64 ? assignment_scratch_bytes<double>(rows, columns, as_scipy)
                          : assignment_scratch_bytes<float>(rows, columns, as_scipy);
    },
    [](const AssignmentProblem& p, void* scratch) {
      return p.cost_float64 ? solve_assignment<double>(p, scratch) : solve_assignment<float>(p, scratch);
    }};

}  // namespace dino_kernels::DINO_CPU_VARIANT
