// Step 5: the backward without atomics. Heads are the outer loop: only the task of a head writes to the
// head's rows.
#include "gradients.h"

extern "C" void backward(const Call& c) {
  Table table(c);
  for (int64_t i = 0; i < c.B * c.M; ++i) {  // with threads, each would take some of these heads
    const int64_t task = c.turn(i, c.B * c.M), b = task / c.M, m = task % c.M;
    const int64_t head = (b * c.S * c.M + m) * c.D;
    const Head<const float> value{static_cast<const float*>(c.value) + head, c.M * c.D};
    const Head<float> grad_value{static_cast<float*>(c.grad_value) + head, c.M * c.D};
    // Always in this order: the same bits, whatever the number of threads.
    for (int64_t q = 0; q < c.Q; ++q) {
      table.fill<float>(c, b, q, m);
      const float* grad = static_cast<const float*>(c.grad_output) + c.item(b, q, m) * c.D;
      item_gradients(c, b, q, m, table, value, grad, [&](int64_t row, float weight) {
        float* to = grad_value[row];
#pragma omp simd
        for (int64_t d = 0; d < c.D; ++d) to[d] += weight * grad[d];
      });
    }
  }
}
