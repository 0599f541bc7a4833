// Step 3: softmax and geometry of one item (image, query, head) in one pass. No tensor of weights or
// locations exists.
#pragma once

#include <bit>
#include <cmath>
#include <vector>

#include "call.h"

// e to the power of x <= 0, to two roundings: 2^n e^r with |r| <= ln(2) / 2. A call of std::exp is not
// vectorised.
inline float exp_of_negative(float x) {
  x = x < -87.f ? -87.f : x;  // keeps NaN
  const float n = std::floor(x * 1.44269504f + 0.5f), r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const float p = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r / 720)))));
  return p * std::bit_cast<float>((int32_t(n) + 127) << 23);
}

// What summing an item needs, 4 corners of K samples: numbers that stay in the first-level cache.
struct Table {
  std::vector<int32_t> row;                          // [4, K] of S; -1: outside the level, or padding
  std::vector<float> weight;                         // [4, K] bilinear weight of the corner
  std::vector<float> softmax, x, y;                  // [K]; x, y: of the way to the right and lower corner
  std::vector<int32_t> level, width, height, start;  // [K] of each sample, the same for all items

  explicit Table(const Call& c) : row(4 * c.K), weight(4 * c.K), softmax(c.K), x(c.K), y(c.K) {
    for (int64_t l = 0; l < c.L; ++l) {
      level.insert(level.end(), c.levels[l].points, l);
      width.insert(width.end(), c.levels[l].points, c.levels[l].width);
      height.insert(height.end(), c.levels[l].points, c.levels[l].height);
      start.insert(start.end(), c.levels[l].points, c.levels[l].start);
    }
  }

  template <class T>
  void fill(const Call& c, int64_t b, int64_t q, int64_t m) {
    const int64_t K = c.K, item = c.item(b, q, m);
    const T* logits = static_cast<const T*>(c.logits) + item * K;
    const T* offsets = static_cast<const T*>(c.offsets) + item * K * 2;
    float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t k = 0; k < K; ++k) largest = float(logits[k]) > largest ? float(logits[k]) : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < K; ++k) sum += softmax[k] = exp_of_negative(float(logits[k]) - largest);
    for (int64_t k = 0; k < K; ++k) {
      const float* frame = c.frame + ((b * c.Q + q) * c.L + level[k]) * 4;
      softmax[k] /= sum;
      x[k] = frame[0] + frame[2] * float(offsets[2 * k]);
      y[k] = frame[1] + frame[3] * float(offsets[2 * k + 1]);
    }
    corners(K, width.data(), height.data(), start.data(), x.data(), y.data(), row.data(), weight.data());
    if (!c.mask) return;
    for (int32_t& r : row) r = r >= 0 && c.mask[b * c.S + r] ? -1 : r;
  }

  // Without branches, and with pointers that are not members: the compiler takes 8 or 16 samples at a time.
  static void corners(int64_t K, const int32_t* width, const int32_t* height, const int32_t* start, float* x,
                      float* y, int32_t* row, float* weight) {
    int32_t *r0 = row, *r1 = row + K, *r2 = row + 2 * K, *r3 = row + 3 * K;
    float *w0 = weight, *w1 = weight + K, *w2 = weight + 2 * K, *w3 = weight + 3 * K;
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) {
      const float W = width[k], H = height[k];
      float px = x[k] >= -1 ? x[k] : -2, py = y[k] >= -1 ? y[k] : -2;  // -2, for NaN too: all corners outside
      px = px < W ? px : -2, py = py < H ? py : -2;
      const float left = std::floor(px), upper = std::floor(py), fx = px - left, fy = py - upper;
      const int32_t upper_left = start[k] + int32_t(upper) * width[k] + int32_t(left);
      // Unsigned: -1 and -2 become large numbers, which are outside like those from W on.
      const uint32_t x0 = int32_t(left), y0 = int32_t(upper), x1 = x0 + 1, y1 = y0 + 1, w = W, h = H;
      r0[k] = x0 < w ? y0 < h ? upper_left : -1 : -1;
      r1[k] = x1 < w ? y0 < h ? upper_left + 1 : -1 : -1;
      r2[k] = x0 < w ? y1 < h ? upper_left + width[k] : -1 : -1;
      r3[k] = x1 < w ? y1 < h ? upper_left + width[k] + 1 : -1 : -1;
      w0[k] = (1 - fy) * (1 - fx), w1[k] = (1 - fy) * fx, w2[k] = fy * (1 - fx), w3[k] = fy * fx;
      x[k] = fx, y[k] = fy;
    }
  }
};
