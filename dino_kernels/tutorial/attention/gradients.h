// The gradients of one item's samples. All of them follow from four dot products a sample: d[c], of the
// output's gradient with the row of corner c. The forward's table is computed again: nothing of it was saved.
#pragma once

#include "rows.h"

// Calls add(row, weight) for each row that the item read: grad_value[row] gains weight * grad_output.
template <class T, class Add>
void item_gradients(const Call& c, int64_t b, int64_t q, int64_t m, const Table& t, Head<const T> value,
                    const float* grad, Add add) {
  const int64_t K = c.K, item = c.item(b, q, m);
  const float* frame = c.frame + (b * c.Q + q) * c.L * 4;
  const T* offsets = static_cast<const T*>(c.offsets) + item * K * 2;
  T* grad_offsets = static_cast<T*>(c.grad_offsets) + item * K * 2;
  T* grad_logits = static_cast<T*>(c.grad_logits) + item * K;
  float* grad_frame = c.grad_frame + item * c.L * 4;
  static thread_local std::vector<float> of_weight;
  of_weight.assign(K, 0);
  float mean = 0;  // sum over k of softmax * of_weight
  for (int64_t l = 0, k = 0; l < c.L; ++l, frame += 4, grad_frame += 4) {
    for (const int64_t end = k + c.levels[l].points; k < end; ++k) {
      float d[4] = {};
      bool read = false;
      for (int corner = 0; corner < 4; ++corner) {
        const int64_t row = t.row[corner * K + k];
        if (row < 0) continue;
        read = true;
        const T* from = value[row];
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < c.D; ++i) dot += grad[i] * float(from[i]);
        d[corner] = dot;
        of_weight[k] += t.weight[corner * K + k] * dot;
        add(row, t.softmax[k] * t.weight[corner * K + k]);
      }
      mean += t.softmax[k] * of_weight[k];
      const float px = t.softmax[k] * ((1 - t.y[k]) * (d[1] - d[0]) + t.y[k] * (d[3] - d[2]));
      const float py = t.softmax[k] * ((1 - t.x[k]) * (d[2] - d[0]) + t.x[k] * (d[3] - d[1]));
      grad_offsets[2 * k] = T(read ? px * frame[2] : 0);
      grad_offsets[2 * k + 1] = T(read ? py * frame[3] : 0);
      if (!read) continue;  // the offset may be NaN
      grad_frame[0] += px;
      grad_frame[1] += py;
      grad_frame[2] += px * float(offsets[2 * k]);
      grad_frame[3] += py * float(offsets[2 * k + 1]);
    }
  }
  for (int64_t k = 0; k < K; ++k) grad_logits[k] = T(t.softmax[k] * (of_weight[k] - mean));
}
