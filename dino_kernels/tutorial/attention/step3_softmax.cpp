// Step 3: one pass over the raw offsets and logits writes rows and weights, ready for the sum.
#include "table.h"

extern "C" void forward(const Call& c) {
  Table table(c);
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t q = 0; q < c.Q; ++q) {
      for (int64_t m = 0; m < c.M; ++m) {
        table.fill<float>(c, b, q, m);
        int32_t* rows = c.rows + c.item(b, q, m) * 4 * c.K;
        float* weights = c.weights + c.item(b, q, m) * 4 * c.K;
        for (int64_t corner = 0; corner < 4 * c.K; corner += c.K) {
          for (int64_t k = 0; k < c.K; ++k) {
            const int32_t row = table.row[corner + k];
            rows[corner + k] = (b * (c.S + 1) + (row < 0 ? c.S : row)) * c.M + m;  // row S is zeros
            weights[corner + k] = table.weight[corner + k] * table.softmax[k];
          }
        }
      }
    }
  }
}
