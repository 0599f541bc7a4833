// Backward, samples: gradients of positions, weights and reference points.
//
// All of them follow from the dot products of each sample's four rows with the head's output gradient. Tables
// are built one head ahead, as in the forward.
#pragma once

#include "cpu_samples.h"

namespace dino_kernels::DINO_CPU_VARIANT {

template <class T, int kVectors>
struct BackwardSamples {
  using A = typename Compute<T>::type;
  using V = Vector<A>;
  using Row = Channels<T, kVectors>;
  static constexpr int kWidth = kLanes<A>;

  Source<T> source;
  SampleTable<A> tables[2];
  V* any_grad_head;   // where kVectors is 0
  A* grad_attention;  // [K rounded up]
  int64_t bytes;      // of scratch

  BackwardSamples(const CpuParams& p, Scratch scratch)
      : source(p, scratch),
        tables{{scratch, source.levels.padded}, {scratch, source.levels.padded}},
        any_grad_head(scratch.take<V>(Row::vectors(p.D))),
        grad_attention(scratch.take<A>(source.levels.padded)),
        bytes(scratch.used) {}

  // Queries [begin, end), counted across the batch.
  void run(int64_t begin, int64_t end) {
    const CpuParams& p = source.p;
    source.begin();
    const int64_t first = begin * p.M, last = end * p.M;
    source.make_table(first, tables[0]);
    for (int64_t h = first; h < last; ++h) {
      SampleTable<A>& ahead = tables[(h + 1 - first) % 2];
      // The frame must still be that of this head's query when its gradients are scaled.
      const bool ahead_shares_frame = h + 1 < last && h % p.M + 1 < p.M;
      if (ahead_shares_frame) source.make_table(h + 1, ahead);
      head_gradients(tables[(h - first) % 2], h);
      if (h + 1 < last && !ahead_shares_frame) source.make_table(h + 1, ahead);
    }
  }

  // Dot products of one corner's rows of kWidth samples with the head's output gradient, one sample per lane.
  static DINO_INLINE V corner_dots(char* const* rows, int64_t D, const V* grad_head) {
    V parts[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      const T* row = reinterpret_cast<const T*>(rows[i]);
      if constexpr (kVectors > 0) {
        V lanes[kVectors];
        Row::load(row, D, lanes);
        parts[i] = lanes[0] * grad_head[0];
        for (int v = 1; v < kVectors; ++v) parts[i] += lanes[v] * grad_head[v];
      } else {
        parts[i] = V{};
        for (int64_t v = 0; v * kWidth < D; ++v) {
          const int64_t left = D - v * kWidth;
          parts[i] +=
              grad_head[v] * (left >= kWidth ? widen(row + v * kWidth) : load_some(row + v * kWidth, left));
        }
      }
    }
    return transposed_sums<A, kWidth>(parts);
  }

  DINO_INLINE void head_gradients(const SampleTable<A>& table, int64_t h) {
    const CpuParams& p = source.p;
    const int64_t query = h / p.M, m = h % p.M;
    V registers[kVectors ? kVectors : 1];
    V* grad_head = kVectors ? registers : any_grad_head;
    Row::load(source.grad_output(h), p.D, grad_head);
    A* grad_reference = static_cast<A*>(p.grad_reference_points);
    if (grad_reference) {
      grad_reference += query * p.L * p.reference_coordinates;
      if (m == 0) {
        for (int64_t i = 0; i < p.L * p.reference_coordinates; ++i) grad_reference[i] = 0;
      }
    }
    V expectation{};
    for (int64_t k = 0; k < p.K; k += kWidth) {
      const V upper_left = corner_dots(table.rows + k, p.D, grad_head);
      const V upper_right = corner_dots(table.rows + table.padded + k, p.D, grad_head);
      const V lower_left = corner_dots(table.rows + 2 * table.padded + k, p.D, grad_head);
      const V lower_right = corner_dots(table.rows + 3 * table.padded + k, p.D, grad_head);
      const V attention = load<V>(table.attention + k);
      const V right = load<V>(table.fraction_x + k), below = load<V>(table.fraction_y + k);
      const V upper_slope = upper_right - upper_left, lower_slope = lower_right - lower_left;
      const V upper = upper_left + right * upper_slope, lower = lower_left + right * lower_slope;
      const V sampled = upper + below * (lower - upper);
      if (p.grad_weights) {
        store(grad_attention + k, sampled);
        const auto present = lane_numbers<A>(k) < static_cast<Integer<A>>(p.K);
        expectation += present ? attention * sampled : V{};
      }
      const V grad_x = attention * (upper_slope + below * (lower_slope - upper_slope));  // per pixel
      const V grad_y = attention * (lower - upper);
      if (p.grad_positions) {
        V low, high;
        interleave(chain(grad_x, load<V>(source.frame.scale_x + k)),
                   chain(grad_y, load<V>(source.frame.scale_y + k)), low, high);
        const int64_t left = 2 * (p.K - k), i = (h * p.K + k) * 2;
        store_raw<T>(p.grad_positions, p.positions_as_value, i, low, left);
        if (left > kWidth)
          store_raw<T>(p.grad_positions, p.positions_as_value, i + kWidth, high, left - kWidth);
      }
      if (grad_reference) add_reference_gradients(table, k, grad_x, grad_y, grad_reference);
    }
    if (p.grad_weights) {
      const V mean = sum_of_lanes<A>(expectation);
      for (int64_t k = 0; k < p.K; k += kWidth) {
        V gradient = load<V>(grad_attention + k);
        if (p.reference_points) gradient = load<V>(table.attention + k) * (gradient - mean);
        store_raw<T>(p.grad_weights, p.weights_as_value, h * p.K + k, gradient, p.K - k);
      }
    }
  }

  // Chain rule. A sample outside has no gradient, not even 0 * NaN if its position is not finite.
  static DINO_INLINE V chain(V gradient, V factor) { return gradient == A(0) ? V{} : gradient * factor; }

  DINO_INLINE void add_reference_gradients(const SampleTable<A>& table, int64_t k, V grad_x, V grad_y,
                                           A* grad_reference) const {
    const CpuParams& p = source.p;
    const V by_width = chain(grad_x, load<V>(table.raw_x + k)),
            by_height = chain(grad_y, load<V>(table.raw_y + k));
    for (int64_t l = 0; l < p.L; ++l) {
      const Level& level = p.levels[l];
      const A width = static_cast<A>(level.width), height = static_cast<A>(level.height);
      const A half = A(0.5) / static_cast<A>(level.points > 0 ? level.points : 1);
      A* gradient = grad_reference + l * p.reference_coordinates;
      const int64_t from = level.first_point > k ? level.first_point : k;
      const int64_t level_end = level.first_point + level.points;
      const int64_t to = level_end < k + kWidth ? level_end : k + kWidth;
      for (int64_t i = from; i < to; ++i) {
        gradient[0] += grad_x[i - k] * width;
        gradient[1] += grad_y[i - k] * height;
        if (p.reference_coordinates == 4) {
          gradient[2] += by_width[i - k] * width * half;
          gradient[3] += by_height[i - k] * height * half;
        }
      }
    }
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
