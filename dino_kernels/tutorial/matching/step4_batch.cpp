// Step 4: all sets and images in one call. A problem is step 3, line by line.
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Problem {
  const float* cost;
  int64_t rows, columns, row_step, column_step;  // no more rows than columns; steps in numbers
  double *u, *v;                                 // [rows], [columns]
  std::vector<int64_t> column_of, row_of;

  double at(int64_t i, int64_t j) const { return cost[i * row_step + j * column_step]; }

  void solve() {
    column_of.assign(rows, -1);
    row_of.assign(columns, -1);
    for (int64_t j = 0; j < columns; ++j) v[j] = 0;
    for (int64_t i = 0; i < rows; ++i) {
      int64_t nearest = 0;
      for (int64_t j = 1; j < columns; ++j) nearest = at(i, j) < at(i, nearest) ? j : nearest;
      u[i] = at(i, nearest);
      if (row_of[nearest] < 0) row_of[column_of[i] = nearest] = i;
    }
    for (int64_t i = 0; i < rows; ++i) column_of[i] < 0 ? augment(i) : void();
  }

  void augment(int64_t start) {
    std::vector<double> distance(columns, kInfinity);
    std::vector<int64_t> via(columns, -1), settled;
    std::vector<bool> is_settled(columns);
    int64_t i = start, j = -1;
    for (double base = 0;;) {
      for (int64_t k = 0; k < columns; ++k) {
        const double through = base + (at(i, k) - u[i] - v[k]);
        if (!is_settled[k] && through < distance[k]) distance[k] = through, via[k] = i;
      }
      j = -1;
      for (int64_t k = 0; k < columns; ++k)
        j = !is_settled[k] && (j < 0 || distance[k] < distance[j]) ? k : j;
      base = distance[j];
      if (row_of[j] < 0) break;
      is_settled[j] = true;
      settled.push_back(j);
      i = row_of[j];
    }
    u[start] += distance[j];
    for (int64_t k : settled) {
      u[row_of[k]] += distance[j] - distance[k];
      v[k] -= distance[j] - distance[k];
    }
    do {
      row_of[j] = i = via[j];
      std::swap(j, column_of[i]);
    } while (i != start);
  }
};

// Rows offsets[b] to offsets[b + 1] of cost [G, N, Q] are image b's. Writes query_idx, u [G, N]; v [G, B, Q].
extern "C" void match(const float* cost, const int64_t* offsets, int64_t G, int64_t B, int64_t N, int64_t Q,
                      int64_t* query_idx, double* u, double* v) {
  for (int64_t problem = 0; problem < G * B; ++problem) {  // with threads, each would take some of these
    const int64_t b = problem % B, first = problem / B * N + offsets[b], T = offsets[b + 1] - offsets[b];
    double *of_targets = u + first, *of_queries = v + problem * Q;
    const bool wide = T <= Q;  // rows are the targets
    Problem p = wide ? Problem{cost + first * Q, T, Q, Q, 1, of_targets, of_queries, {}, {}}
                     : Problem{cost + first * Q, Q, T, 1, Q, of_queries, of_targets, {}, {}};
    p.solve();
    for (int64_t t = 0; t < T; ++t) query_idx[first + t] = wide ? p.column_of[t] : p.row_of[t];
  }
}
