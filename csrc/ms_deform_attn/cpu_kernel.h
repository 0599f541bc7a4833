// The CPU kernels of ms_deform_attn and fused_ms_deform_attn: forward, and the two halves of the backward.
//
// Each head of each query has a table of its 4 K corner rows, made with one sample a lane. Tables are made
// one head ahead: the addresses of the next head's rows are then known while this head's are summed, and an
// out-of-order processor fetches them early. (Prefetch instructions on top of that cost more than they saved;
// see README.md of the op.) Rows are summed with one channel a lane, in float32 (float64 for float64).
//
// The gradient of value is accumulated by tasks that each own a (image, head, level group) slice, in the
// order of the queries: no atomics, and the same bits with any number of threads.
#pragma once

#include "cpu.h"
#include "cpu_samples.h"

namespace dino_kernels::DINO_CPU_VARIANT {

// All D channels of a row as vectors. kVectors > 0: D is that many full vectors; 0: any D, last one partial.
template <class T, int kVectors>
struct Channels {
  using A = typename Compute<T>::type;
  static DINO_INLINE int64_t vectors(int64_t D) {
    return kVectors ? kVectors : round_up(D, kLanes<A>) / kLanes<A>;
  }
  static DINO_INLINE void load(const T* row, int64_t D, Vector<A>* lanes) {
    if constexpr (kVectors > 0) {
      Block<T, kVectors>::load(row, lanes);
    } else {
      int64_t d = 0;
      for (; d + kLanes<A> <= D; d += kLanes<A>) lanes[d / kLanes<A>] = widen(row + d);
      if (d < D) lanes[d / kLanes<A>] = load_some(row + d, D - d);
    }
  }
  static DINO_INLINE void store(T* row, int64_t D, const Vector<A>* lanes) {
    if constexpr (kVectors > 0) {
      Block<T, kVectors>::store(row, lanes);
    } else {
      int64_t d = 0;
      for (; d + kLanes<A> <= D; d += kLanes<A>) narrow(row + d, lanes[d / kLanes<A>]);
      if (d < D) store_some(row + d, lanes[d / kLanes<A>], D - d);
    }
  }
};

template <class T, int kVectors>
struct Kernel {
  using A = typename Compute<T>::type;
  using V = Vector<A>;
  using Row = Channels<T, kVectors>;
  static constexpr int kWidth = kLanes<A>;
  // Dot products of a chunk of samples are kept in registers where there are that many.
  static constexpr int kRegisterVectors = kVectors ? kVectors : 1;

  // ---- One head's table, from raw positions and weights.
  struct Source {
    const MSDeformAttnParams& p;
    RawSamples<T> positions, weights;
    SampleLevels<A> levels;
    Frame<A> frame;
    char* empty_row;
    int64_t frame_query = -1;

    Source(const MSDeformAttnParams& p_, Scratch& scratch)
        : p(p_),
          positions(p_, p_.positions, p_.M * p_.K * 2, p_.positions_as_value),
          weights(p_, p_.weights, p_.M * p_.K, p_.weights_as_value),
          levels(scratch, p_.K),
          frame(scratch, p_.K),
          empty_row(scratch.take<char>(p_.D * sizeof(T))) {}

    void begin() {
      levels.fill(p);
      frame_query = -1;
      for (int64_t i = 0; i < p.D * static_cast<int64_t>(sizeof(T)); ++i) empty_row[i] = 0;
    }

    const T* grad_output(int64_t h) const {
      const int64_t query = h / p.M;
      return static_cast<const T*>(p.grad_output.data) + query / p.Q * p.grad_output.batch_stride +
             query % p.Q * p.grad_output.row_stride + h % p.M * p.D;
    }

    // The table of head h = query * M + m, counting queries through the batch, over the rows of value.
    DINO_INLINE void make_table(int64_t h, SampleTable<A>& table) {
      const int64_t m = h % p.M, b = h / p.M / p.Q;
      char* head = static_cast<char*>(const_cast<void*>(p.value.data)) +
                   (b * p.value.batch_stride + m * p.D) * static_cast<int64_t>(sizeof(T));
      const RowBase base{head, p.value.row_stride * static_cast<int64_t>(sizeof(T)), empty_row,
                         p.value_mask ? p.value_mask + b * p.S : nullptr};
      make_table(h, base, table);
    }

    // The same over any array of rows.
    DINO_INLINE void make_table(int64_t h, const RowBase& base, SampleTable<A>& table) {
      const int64_t query = h / p.M, m = h % p.M, b = query / p.Q, q = query % p.Q;
      if (query != frame_query && (p.reference_points || frame_query < 0)) frame.set(p, query);
      frame_query = query;
      const int64_t first_weight = b * p.weights.batch_stride + q * p.weights.row_stride + m * p.K;
      const int64_t first_position = b * p.positions.batch_stride + q * p.positions.row_stride + m * p.K * 2;
      if (p.reference_points) softmax<T>(weights, first_weight, p.K, table.attention);
      for (int64_t k = 0; k < p.K; k += kWidth) {
        V x, y;
        positions.load_pairs(first_position + 2 * k, x, y);
        const V attention = p.reference_points ? load<V>(table.attention + k) : weights.load(first_weight + k);
        store(table.raw_x + k, x);
        store(table.raw_y + k, y);
        x = load<V>(frame.base_x + k) + x * load<V>(frame.scale_x + k);
        y = load<V>(frame.base_y + k) + y * load<V>(frame.scale_y + k);
        set_corners<A>(table, levels, k, x, y, attention, base);
      }
    }
  };

  // ---- Forward.
  struct ForwardScratch {
    Source source;
    SampleTable<A> tables[2];
    V* sum;
    ForwardScratch(const MSDeformAttnParams& p, Scratch scratch)
        : source(p, scratch),
          tables{{scratch, source.levels.padded}, {scratch, source.levels.padded}},
          sum(scratch.take<V>(Row::vectors(p.D))),
          bytes(scratch.used) {}
    int64_t bytes;
  };

  static DINO_INLINE void weighted_sum(const SampleTable<A>& table, int64_t K, int64_t D, V* sum) {
    if constexpr (kVectors > 0) {
      // Enough independent sums to hide the latency of a multiply-add.
      constexpr int kSums = kVectors >= 8 ? 1 : kVectors >= 4 ? 2 : 4;
      V sums[kSums][kVectors] = {};
      for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          V lanes[kVectors];
          Row::load(reinterpret_cast<const T*>(table.rows[c * table.padded + k]), D, lanes);
          const V weight = broadcast(table.weights[c * table.padded + k]);
          for (int i = 0; i < kVectors; ++i) sums[c % kSums][i] += weight * lanes[i];
        }
      }
      for (int i = 0; i < kVectors; ++i) {
        sum[i] = sums[0][i];
        for (int s = 1; s < kSums; ++s) sum[i] += sums[s][i];
      }
    } else {
      for (int64_t i = 0; i < Row::vectors(D); ++i) sum[i] = V{};
      for (int64_t k = 0; k < K; ++k) {
        for (int c = 0; c < 4; ++c) {
          const T* row = reinterpret_cast<const T*>(table.rows[c * table.padded + k]);
          const V weight = broadcast(table.weights[c * table.padded + k]);
          for (int64_t i = 0; i * kWidth < D; ++i) {
            const int64_t left = D - i * kWidth;
            sum[i] += weight * (left >= kWidth ? widen(row + i * kWidth) : load_some(row + i * kWidth, left));
          }
        }
      }
    }
  }

  static void forward(const MSDeformAttnParams& p, int64_t begin, int64_t end, void* memory) {
    ForwardScratch s(p, Scratch{static_cast<char*>(memory)});
    s.source.begin();
    T* output = static_cast<T*>(p.output);
    const int64_t first = begin * p.M, last = end * p.M;
    s.source.make_table(first, s.tables[0]);
    for (int64_t h = first; h < last; ++h) {
      if (h + 1 < last) s.source.make_table(h + 1, s.tables[(h + 1 - first) % 2]);
      const SampleTable<A>& table = s.tables[(h - first) % 2];
      if constexpr (kVectors > 0) {
        V sum[kRegisterVectors];
        weighted_sum(table, p.K, p.D, sum);
        Row::store(output + h * p.D, p.D, sum);
      } else {
        weighted_sum(table, p.K, p.D, s.sum);
        Row::store(output + h * p.D, p.D, s.sum);
      }
    }
  }

  // ---- Backward, the samples' half: gradients of positions, weights and reference points.
  struct SamplesScratch {
    Source source;
    SampleTable<A> tables[2];
    V* grad_head;
    A* grad_attention;
    SamplesScratch(const MSDeformAttnParams& p, Scratch scratch)
        : source(p, scratch),
          tables{{scratch, source.levels.padded}, {scratch, source.levels.padded}},
          grad_head(scratch.take<V>(Row::vectors(p.D))),
          grad_attention(scratch.take<A>(source.levels.padded)),
          bytes(scratch.used) {}
    int64_t bytes;
  };

  // Dot products of one corner's rows of kWidth samples with the head's output gradient, one sample a lane.
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
          parts[i] += grad_head[v] * (left >= kWidth ? widen(row + v * kWidth) : load_some(row + v * kWidth, left));
        }
      }
    }
    return transposed_sums<A, kWidth>(parts);
  }

  static void backward_samples(const MSDeformAttnParams& p, int64_t begin, int64_t end, void* memory) {
    SamplesScratch s(p, Scratch{static_cast<char*>(memory)});
    s.source.begin();
    const int64_t first = begin * p.M, last = end * p.M;
    s.source.make_table(first, s.tables[0]);
    for (int64_t h = first; h < last; ++h) {
      SampleTable<A>& ahead = s.tables[(h + 1 - first) % 2];
      // The frame must still be this head's query's when its gradients are scaled.
      const bool ahead_shares_frame = h + 1 < last && h % p.M + 1 < p.M;
      if (ahead_shares_frame) s.source.make_table(h + 1, ahead);
      head_gradients(s, s.tables[(h - first) % 2], h);
      if (h + 1 < last && !ahead_shares_frame) s.source.make_table(h + 1, ahead);
    }
  }

  static DINO_INLINE void head_gradients(SamplesScratch& s, const SampleTable<A>& table, int64_t h) {
    const MSDeformAttnParams& p = s.source.p;
    const int64_t query = h / p.M, m = h % p.M;
    V registers[kRegisterVectors];
    V* grad_head = kVectors ? registers : s.grad_head;
    Row::load(s.source.grad_output(h), p.D, grad_head);
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
        store(s.grad_attention + k, sampled);
        const auto present = lane_numbers<A>(k) < static_cast<Integer<A>>(p.K);
        expectation += present ? attention * sampled : V{};
      }
      const V grad_x = attention * (upper_slope + below * (lower_slope - upper_slope));  // per pixel
      const V grad_y = attention * (lower - upper);
      if (p.grad_positions) {
        V low, high;
        interleave(chain(grad_x, load<V>(s.source.frame.scale_x + k)),
                   chain(grad_y, load<V>(s.source.frame.scale_y + k)), low, high);
        const int64_t left = 2 * (p.K - k), i = (h * p.K + k) * 2;
        store_raw<T>(p.grad_positions, p.positions_as_value, i, low, left);
        if (left > kWidth) store_raw<T>(p.grad_positions, p.positions_as_value, i + kWidth, high, left - kWidth);
      }
      if (grad_reference) add_reference_gradients(s, table, k, grad_x, grad_y, grad_reference);
    }
    if (p.grad_weights) {
      const V mean = sum_of_lanes<A>(expectation);
      for (int64_t k = 0; k < p.K; k += kWidth) {
        V gradient = load<V>(s.grad_attention + k);
        if (p.reference_points) gradient = load<V>(table.attention + k) * (gradient - mean);
        store_raw<T>(p.grad_weights, p.weights_as_value, h * p.K + k, gradient, p.K - k);
      }
    }
  }

  // Chain rule. A sample outside has no gradient, not even 0 * NaN where its position is not finite.
  static DINO_INLINE V chain(V gradient, V factor) { return gradient == A(0) ? V{} : gradient * factor; }

  static DINO_INLINE void add_reference_gradients(const SamplesScratch& s, const SampleTable<A>& table, int64_t k,
                                                  V grad_x, V grad_y, A* grad_reference) {
    const MSDeformAttnParams& p = s.source.p;
    const V by_width = chain(grad_x, load<V>(table.raw_x + k)), by_height = chain(grad_y, load<V>(table.raw_y + k));
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

  // ---- Backward, value's half: each query's output gradient is added to the rows that its samples read.
  struct ValueScratch {
    Source source;
    SampleTable<A> tables[2];
    V* grad_head;
    A* rows;        // [group rows, heads together, D rounded up] sums in the compute dtype, unless made in place
    char* outside;  // takes what falls outside of the levels
    ValueScratch(const MSDeformAttnParams& p, Scratch scratch)
        : source(p, scratch),
          tables{{scratch, source.levels.padded}, {scratch, source.levels.padded}},
          grad_head(scratch.take<V>(Row::vectors(p.D))),
          rows(scratch.take<A>(in_place(p) ? 0 : most_rows(p) * p.heads_together * Row::vectors(p.D) * kWidth)),
          outside(scratch.take<char>(Row::vectors(p.D) * static_cast<int64_t>(sizeof(V)))),
          bytes(scratch.used) {}
    int64_t bytes;

   private:
    static int64_t most_rows(const MSDeformAttnParams& p) {
      int64_t rows = 0;
      for (int64_t g = 0; g < p.number_of_groups; ++g) rows = p.groups[g].rows > rows ? p.groups[g].rows : rows;
      return rows;
    }
  };
  // Sums can be made in grad_value itself where it has their dtype and rows of full vectors.
  static DINO_INLINE bool in_place(const MSDeformAttnParams& p) {
    return p.few_samples && kVectors > 0 && sizeof(T) == sizeof(A);
  }

  static DINO_INLINE void scatter(ValueScratch& s, const LevelGroup& group, const SampleTable<A>& table, int64_t h) {
    const MSDeformAttnParams& p = s.source.p;
    V registers[kRegisterVectors];
    V* grad_head = kVectors ? registers : s.grad_head;
    Row::load(s.source.grad_output(h), p.D, grad_head);
    for (int64_t k = group.first_point; k < group.first_point + group.points; ++k) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        char* row = table.rows[c * table.padded + k];
        const V weight = broadcast(table.weights[c * table.padded + k]);
        for (int64_t v = 0; v < Row::vectors(p.D); ++v) {
          char* lanes = row + v * static_cast<int64_t>(sizeof(V));
          store(lanes, load<V>(lanes) + weight * grad_head[v]);
        }
      }
    }
  }

  // Heads [m, m + heads) of image b, the levels of a group.
  static void accumulate_value(ValueScratch& s, const LevelGroup& group, int64_t b, int64_t m, int64_t heads) {
    const MSDeformAttnParams& p = s.source.p;
    const int64_t head_bytes = Row::vectors(p.D) * static_cast<int64_t>(sizeof(V));
    T* grad_value = static_cast<T*>(p.grad_value) + ((b * p.S + group.first_row) * p.M + m) * p.D;
    const int64_t row_bytes = in_place(p) ? p.M * p.D * static_cast<int64_t>(sizeof(T)) : heads * head_bytes;
    char* rows = in_place(p) ? reinterpret_cast<char*>(grad_value) : reinterpret_cast<char*>(s.rows);
    for (int64_t r = 0; r < group.rows; ++r) {
      for (int64_t i = 0; i < heads * head_bytes; i += sizeof(V)) store(rows + r * row_bytes + i, V{});
    }
    // Rows count from the beginning of S.
    const RowBase base{rows - group.first_row * row_bytes, row_bytes, s.outside,
                       p.value_mask ? p.value_mask + b * p.S : nullptr};
    const int64_t items = p.Q * heads;
    const auto head_of = [&](int64_t i) { return (b * p.Q + i / heads) * p.M + m + i % heads; };
    const auto make = [&](int64_t i) {
      RowBase of_head = base;
      of_head.first += i % heads * head_bytes;
      s.source.make_table(head_of(i), of_head, s.tables[i % 2]);
    };
    if (items > 0) make(0);
    for (int64_t i = 0; i < items; ++i) {
      if (i + 1 < items) make(i + 1);
      scatter(s, group, s.tables[i % 2], head_of(i));
    }
    if (in_place(p)) return;
    for (int64_t r = 0; r < group.rows; ++r) {
      for (int64_t head = 0; head < heads; ++head) {
        Row::store(grad_value + (r * p.M + head) * p.D, p.D,
                   reinterpret_cast<const V*>(rows + r * row_bytes + head * head_bytes));
      }
    }
  }

  static void backward_value(const MSDeformAttnParams& p, int64_t begin, int64_t end, void* memory) {
    ValueScratch s(p, Scratch{static_cast<char*>(memory)});
    s.source.begin();
    while (begin < end) {
      const int64_t m = begin % p.M, g = begin / p.M % p.number_of_groups, b = begin / p.M / p.number_of_groups;
      int64_t heads = p.M - m < end - begin ? p.M - m : end - begin;
      if (heads > p.heads_together) heads = p.heads_together;
      accumulate_value(s, p.groups[g], b, m, heads);
      begin += heads;
    }
  }
};

// Calls f with the Kernel for the call's dtype and number of channels.
template <class F>
DINO_INLINE auto with_kernel(const MSDeformAttnParams& p, F f) {
  const auto with_dtype = [&]<class T>(T) {
    constexpr int kWidth = kLanes<typename Compute<T>::type>;
    switch (p.D % kWidth ? 0 : p.D / kWidth) {
      case 1: return f(Kernel<T, 1>{});
      case 2: return f(Kernel<T, 2>{});
      case 4: return f(Kernel<T, 4>{});
      case 8: return f(Kernel<T, 8>{});
      default: return f(Kernel<T, 0>{});
    }
  };
  switch (p.dtype) {
    case DType::float64: return with_dtype(double{});
    case DType::bfloat16: return with_dtype(BFloat16{});
    case DType::float16: return with_dtype(Half{});
    default: return with_dtype(float{});
  }
}

static int64_t forward_scratch(const MSDeformAttnParams& p) {
  return with_kernel(p, [&]<class K>(K) {
    const int64_t forward = typename K::ForwardScratch(p, Scratch{nullptr}).bytes;
    const int64_t samples = typename K::SamplesScratch(p, Scratch{nullptr}).bytes;
    return forward > samples ? forward : samples;
  });
}
static int64_t backward_value_scratch(const MSDeformAttnParams& p) {
  return with_kernel(p, [&]<class K>(K) { return typename K::ValueScratch(p, Scratch{nullptr}).bytes; });
}
static void forward(const MSDeformAttnParams& p, int64_t begin, int64_t end, void* scratch) {
  with_kernel(p, [&]<class K>(K) { K::forward(p, begin, end, scratch); });
}
static void backward_samples(const MSDeformAttnParams& p, int64_t begin, int64_t end, void* scratch) {
  with_kernel(p, [&]<class K>(K) { K::backward_samples(p, begin, end, scratch); });
}
static void backward_value(const MSDeformAttnParams& p, int64_t begin, int64_t end, void* scratch) {
  with_kernel(p, [&]<class K>(K) { K::backward_value(p, begin, end, scratch); });
}

extern const CpuKernels ms_deform_attn;
const CpuKernels ms_deform_attn = {DINO_VECTOR_BYTES, forward_scratch,        forward,
                                   backward_samples,  backward_value_scratch, backward_value};

}  // namespace dino_kernels::DINO_CPU_VARIANT
