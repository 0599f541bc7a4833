// Step 4: rows are summed where they lie. The backward takes queries in any order, so it must add atomically.
#include <atomic>

#include "gradients.h"

extern "C" void forward(const Call& c) {
  Table table(c);
  RowSum<float> sum(c);
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t q = 0; q < c.Q; ++q) {
      for (int64_t m = 0; m < c.M; ++m) {
        table.fill<float>(c, b, q, m);
        const Head<const float> value{static_cast<const float*>(c.value) + (b * c.S * c.M + m) * c.D,
                                      c.M * c.D};
        sum.write(c, table, value, static_cast<float*>(c.output) + c.item(b, q, m) * c.D);
      }
    }
  }
}

extern "C" void backward(const Call& c) {
  Table table(c);
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t i = 0; i < c.Q; ++i) {  // with threads, each would take some of these queries
      const int64_t q = c.turn(i, c.Q);
      for (int64_t m = 0; m < c.M; ++m) {
        table.fill<float>(c, b, q, m);
        const int64_t head = (b * c.S * c.M + m) * c.D;
        const Head<const float> value{static_cast<const float*>(c.value) + head, c.M * c.D};
        const Head<float> grad_value{static_cast<float*>(c.grad_value) + head, c.M * c.D};
        const float* grad = static_cast<const float*>(c.grad_output) + c.item(b, q, m) * c.D;
        item_gradients(c, b, q, m, table, value, grad, [&](int64_t row, float weight) {
          // Two queries may add to the same number at the same time. One number at a time: no vector add is
          // atomic.
          for (int64_t d = 0; d < c.D; ++d) {
            std::atomic_ref(grad_value[row][d]).fetch_add(weight * grad[d], std::memory_order_relaxed);
          }
        });
      }
    }
  }
}
