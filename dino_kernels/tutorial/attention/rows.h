// Step 4: the sum of an item's rows, each read where it lies and added to sums in registers.
#pragma once

#include "table.h"

// The rows of one head of an image: row r begins at first + r * stride.
template <class T>
struct Head {
  T* first;
  int64_t stride;
  T* operator[](int64_t row) const { return first + row * stride; }
};

template <class T>
class RowSum {
 public:
  explicit RowSum(const Call& c) : rows(4 * c.K), weights(4 * c.K), zeros(c.D) {}

  // Writes the D channels of an item.
  void write(const Call& c, const Table& table, Head<const T> value, T* output) {
    // Corners outside read zeros: a branch in the loop below would be mispredicted at every border.
    for (int64_t i = 0; i < 4 * c.K; ++i) rows[i] = table.row[i] < 0 ? zeros.data() : value[table.row[i]];
    for (int64_t corner = 0; corner < 4 * c.K; corner += c.K) {
      for (int64_t k = 0; k < c.K; ++k) weights[corner + k] = table.weight[corner + k] * table.softmax[k];
    }
    int64_t channel = 0;
    for (; channel + 32 <= c.D; channel += 32) sum<32>(c, channel, output);
    for (; channel + 8 <= c.D; channel += 8) sum<8>(c, channel, output);
    for (; channel < c.D; ++channel) sum<1>(c, channel, output);
  }

 private:
  std::vector<const T*> rows;  // [4, K]
  std::vector<float> weights;  // [4, K]
  std::vector<T> zeros;        // [D]

  // N is a constant, so `even` and `odd` are registers: 2 or 4 vectors each for 32 channels. Two sums,
  // because an addition takes several cycles and the next one to the same sum waits for it.
  template <int N>
  void sum(const Call& c, int64_t channel, T* output) const {
    float even[N] = {}, odd[N] = {};
    for (int64_t i = 0; i < 4 * c.K; i += 2) {
      const T *first = rows[i] + channel, *second = rows[i + 1] + channel;
      for (int n = 0; n < N; ++n) even[n] += weights[i] * float(first[n]);
      for (int n = 0; n < N; ++n) odd[n] += weights[i + 1] * float(second[n]);
    }
    for (int n = 0; n < N; ++n) output[channel + n] = T(even[n] + odd[n]);
  }
};
