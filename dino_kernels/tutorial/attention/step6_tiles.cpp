// Step 6: one head at a time, its rows copied together, queries in tiles of 8 x 8 pixels. Sums of grad_value
// too are kept together until the head is done. Step 7 compiles this file again, with 16-bit storage.
#include <algorithm>

#include "gradients.h"

#ifndef STORED
#define STORED float
#endif
using T = STORED;

// The rows of a head, one after the other: D numbers apart instead of M * D.
static Head<const T> copy_rows(const Call& c, int64_t b, int64_t m, std::vector<T>& copy) {
  const T* from = static_cast<const T*>(c.value) + (b * c.S * c.M + m) * c.D;
  for (int64_t row = 0; row < c.S; ++row) std::copy_n(from + row * c.M * c.D, c.D, copy.data() + row * c.D);
  return {copy.data(), c.D};
}

// What is read once a query is now M heads apart, further than a processor fetches by itself.
static void fetch_early(const Call& c, int64_t b, int64_t i, int64_t m, const void* output) {
  if (i + 8 >= c.Q) return;
  const int64_t item = c.item(b, c.order[i + 8], m), line = 64 / sizeof(T);
  for (int64_t n = 0; n < 2 * c.K; n += line)
    __builtin_prefetch(static_cast<const T*>(c.offsets) + item * c.K * 2 + n);
  for (int64_t n = 0; n < c.K; n += line)
    __builtin_prefetch(static_cast<const T*>(c.logits) + item * c.K + n);
  for (int64_t n = 0; n < c.D; n += line) __builtin_prefetch(static_cast<const T*>(output) + item * c.D + n);
}

extern "C" void forward(const Call& c) {
  Table table(c);
  RowSum<T> sum(c);
  std::vector<T> copy(c.S * c.D);
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t m = 0; m < c.M; ++m) {
      const Head<const T> value = copy_rows(c, b, m, copy);
      for (int64_t i = 0; i < c.Q; ++i) {
        fetch_early(c, b, i, m, c.output);
        table.fill<T>(c, b, c.order[i], m);
        sum.write(c, table, value, static_cast<T*>(c.output) + c.item(b, c.order[i], m) * c.D);
      }
    }
  }
}

extern "C" void backward(const Call& c) {
  Table table(c);
  std::vector<T> copy(c.S * c.D);
  std::vector<float> grad(c.D), sums(c.S * c.D);
  for (int64_t i = 0; i < c.B * c.M; ++i) {
    const int64_t task = c.turn(i, c.B * c.M), b = task / c.M, m = task % c.M;
    const Head<const T> value = copy_rows(c, b, m, copy);
    std::fill(sums.begin(), sums.end(), 0.f);
    for (int64_t j = 0; j < c.Q; ++j) {
      fetch_early(c, b, j, m, c.grad_output);
      table.fill<T>(c, b, c.order[j], m);
      const T* from = static_cast<const T*>(c.grad_output) + c.item(b, c.order[j], m) * c.D;
      for (int64_t d = 0; d < c.D; ++d) grad[d] = float(from[d]);
      item_gradients(c, b, c.order[j], m, table, value, grad.data(), [&](int64_t row, float weight) {
        float* to = sums.data() + row * c.D;
#pragma omp simd
        for (int64_t d = 0; d < c.D; ++d) to[d] += weight * grad[d];
      });
    }
    T* to = static_cast<T*>(c.grad_value) + (b * c.S * c.M + m) * c.D;
    for (int64_t row = 0; row < c.S; ++row) {
      for (int64_t d = 0; d < c.D; ++d) to[row * c.M * c.D + d] = T(sums[row * c.D + d]);
    }
  }
}
