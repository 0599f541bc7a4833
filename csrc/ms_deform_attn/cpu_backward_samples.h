// Backward, samples: gradients of positions, weights and reference points.
//
// All of them follow from the dot products of each sample's four rows with the head's output gradient. Tables
// are built one ahead, as in the forward. If grad_value is gathered later, rows and weights of the corners
// are kept for it.
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
  V* any_grad_heads;      // [heads of a table, vectors of D]
  A* grad_attention;      // [samples of a table, padded]
  int64_t* head_of_lane;  // [kWidth] where a table has several heads
  int64_t bytes;          // of scratch

  BackwardSamples(const CpuParams& p, Scratch scratch)
      : source(p, scratch),
        tables{{scratch, source.levels.padded}, {scratch, source.levels.padded}},
        any_grad_heads(scratch.take<V>(p.heads_per_table * Row::vectors(p.D))),
        grad_attention(scratch.take<A>(source.levels.padded)),
        head_of_lane(scratch.take<int64_t>(kWidth)),
        bytes(scratch.used) {}

  void run(int64_t begin, int64_t end) {
    const CpuParams& p = source.p;
    for (int64_t i = 0; i < kWidth; ++i) {
      const int64_t head = i / (p.K > 0 ? p.K : 1);
      head_of_lane[i] = head < p.heads_per_table ? head : p.heads_per_table - 1;
    }
    source.run(begin, end, [this](TableIndex at, int64_t count) { add_tables(at, count); });
  }

  // The gradients of `count` tables in a row.
  void add_tables(TableIndex at, int64_t count) {
    const CpuParams& p = source.p;
    const bool dots = p.grad_positions || p.grad_weights || p.grad_reference_points;
    TableIndex ahead = at;
    make_table(ahead, tables[0]);
    ahead.advance(p);
    for (int64_t t = 0, current = 0; t < count; ++t, current = 1 - current) {
      SampleTable<A>& next = tables[1 - current];
      // The scales must still be those of this table's query when its gradients are multiplied by them.
      const bool ahead_shares_scales =
          t + 1 < count && (p.by_head ? p.reference_coordinates != 4 : ahead.m != 0);
      if (ahead_shares_scales) make_table(ahead, next);
      if (dots) gradients(tables[current], at);
      if (t + 1 < count && !ahead_shares_scales) make_table(ahead, next);
      at = ahead;
      ahead.advance(p);
    }
  }

  DINO_INLINE void make_table(const TableIndex& at, SampleTable<A>& table) {
    const CpuParams& p = source.p;
    if (p.corner_rows) {
      const int64_t groups = p.M / p.heads_per_table;
      const int64_t first = ((at.b * groups + at.m / p.heads_per_table) * p.Q + at.q) * 4 * table.padded;
      table.row_numbers = static_cast<Integer<A>*>(p.corner_rows) + first;
      table.weights = static_cast<A*>(p.corner_weights) + first;
    }
    source.make_table(at, table);
  }

  // The dot product of one row with a head's output gradient, not yet summed over the lanes.
  static DINO_INLINE V products(const char* row, int64_t D, const V* grad_head) {
    const T* channels = reinterpret_cast<const T*>(row);
    if constexpr (kVectors > 0) {
      V lanes[kVectors];
      Row::load(channels, D, lanes);
      V sum = lanes[0] * grad_head[0];
      for (int v = 1; v < kVectors; ++v) sum += lanes[v] * grad_head[v];
      return sum;
    } else {
      V sum{};
      for (int64_t v = 0; v * kWidth < D; ++v) {
        const int64_t left = D - v * kWidth;
        sum += grad_head[v] *
               (left >= kWidth ? widen(channels + v * kWidth) : load_some(channels + v * kWidth, left));
      }
      return sum;
    }
  }

  // Dot products of the four corners' rows of samples [k, k + kWidth), one sample per lane.
  DINO_INLINE void corner_dots(const SampleTable<A>& table, int64_t k, const V* grad_heads, V* dots) const {
    const int64_t D = source.p.D, left = source.p.K - k;
    char* const* rows = table.rows + k;
    V parts[kWidth];
    if (source.p.heads_per_table > 1) {
      const int64_t vectors = Row::vectors(D), head_bytes = source.head_bytes();
      for (int c = 0; c < 4; ++c) {
        for (int i = 0; i < kWidth; ++i) {
          const int64_t head = head_of_lane[i];
          parts[i] = products(rows[c * table.padded + i] + head * head_bytes, D, grad_heads + head * vectors);
        }
        dots[c] = transposed_sums<A, kWidth>(parts);
      }
      return;
    }
    V registers[kVectors ? kVectors : 1];
    for (int v = 0; v < kVectors; ++v) registers[v] = grad_heads[v];
    const V* grad_head = kVectors ? registers : grad_heads;
    if (left <= kWidth / 2) {  // two corners of half a vector of samples
      constexpr int kHalf = kWidth / 2;
      for (int c = 0; c < 4; c += 2) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) {
          parts[i] = products(rows[(c + i / kHalf) * table.padded + i % kHalf], D, grad_head);
        }
        dots[c] = transposed_sums<A, kWidth>(parts);
        using Sequence = std::make_integer_sequence<int, kWidth>;
        dots[c + 1] = shuffle(dots[c], dots[c], exchanged<kHalf>(Sequence{}));
      }
      return;
    }
    for (int c = 0; c < 4; ++c) {
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        parts[i] = products(rows[c * table.padded + i], D, grad_head);
      }
      dots[c] = transposed_sums<A, kWidth>(parts);
    }
  }

  DINO_INLINE void gradients(const SampleTable<A>& table, const TableIndex& at) {
    const CpuParams& p = source.p;
    const int64_t query = at.query(p), m = at.m, first = at.head(p) * p.K, samples = table_samples(p);
    const T* grad_output = source.grad_output(at.b, at.q, at.m);
    for (int64_t head = 0; head < p.heads_per_table; ++head) {
      Row::load(grad_output + head * p.D, p.D, any_grad_heads + head * Row::vectors(p.D));
    }
    A* grad_reference = static_cast<A*>(p.grad_reference_points);
    if (grad_reference) {
      grad_reference += query * p.L * p.reference_coordinates;
      if (m == 0) {
        for (int64_t i = 0; i < p.L * p.reference_coordinates; ++i) grad_reference[i] = 0;
      }
    }
    V expectation{};
    for (int64_t k = 0; k < samples; k += kWidth) {
      V dots[4];
      corner_dots(table, k, any_grad_heads, dots);
      const V upper_left = dots[0], upper_right = dots[1], lower_left = dots[2], lower_right = dots[3];
      const V attention = load<V>(table.attention + k);
      const V right = load<V>(table.fraction_x + k), below = load<V>(table.fraction_y + k);
      const V upper_slope = upper_right - upper_left, lower_slope = lower_right - lower_left;
      const V upper = upper_left + right * upper_slope, lower = lower_left + right * lower_slope;
      const V sampled = upper + below * (lower - upper);
      if (p.grad_weights) {
        store(grad_attention + k, sampled);
        const auto present = lane_numbers<A>(k) < static_cast<Integer<A>>(samples);
        expectation += present ? attention * sampled : V{};
      }
      const V grad_x = attention * (upper_slope + below * (lower_slope - upper_slope));  // per pixel
      const V grad_y = attention * (lower - upper);
      if (p.grad_positions) {
        V low, high;
        interleave(chain(grad_x, load<V>(source.frame.scale_x + k)),
                   chain(grad_y, load<V>(source.frame.scale_y + k)), low, high);
        const int64_t left = 2 * (samples - k), i = (first + k) * 2;
        store_raw<T>(p.grad_positions, p.positions_as_value, i, low, left);
        if (left > kWidth)
          store_raw<T>(p.grad_positions, p.positions_as_value, i + kWidth, high, left - kWidth);
      }
      if (grad_reference) add_reference_gradients(table, k, grad_x, grad_y, grad_reference);
    }
    if (p.grad_weights) {
      const V mean =
          p.heads_per_table > 1 ? sum_of_neighbours<A>(expectation, p.K) : sum_of_lanes<A>(expectation);
      for (int64_t k = 0; k < samples; k += kWidth) {
        V gradient = load<V>(grad_attention + k);
        if (p.reference_points) gradient = load<V>(table.attention + k) * (gradient - mean);
        store_raw<T>(p.grad_weights, p.weights_as_value, first + k, gradient, samples - k);
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
    for (int64_t head = 0; head < p.heads_per_table; ++head) {
      for (int64_t l = 0; l < p.L; ++l) {
        const Level& level = p.levels[l];
        const A width = static_cast<A>(level.width), height = static_cast<A>(level.height);
        const A half = A(0.5) / static_cast<A>(level.points > 0 ? level.points : 1);
        A* gradient = grad_reference + l * p.reference_coordinates;
        const int64_t first = head * p.K + level.first_point, last = first + level.points;
        const int64_t from = first > k ? first : k, to = last < k + kWidth ? last : k + kWidth;
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
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
