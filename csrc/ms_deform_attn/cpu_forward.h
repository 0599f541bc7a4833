// Forward: the weighted sum of a head's 4 K rows.
//
// One channel per lane. Tables are built one head ahead: the addresses of the next head's rows are then known
// while this head's are summed, and an out-of-order processor fetches them early. (Additional prefetch
// instructions cost more than they saved; see the op's README.md.) Heads with few samples share a table.
#pragma once

#include "cpu_samples.h"

namespace dino_kernels::DINO_CPU_VARIANT {

template <class T, int kVectors>
struct Forward {
  using A = typename Compute<T>::type;
  using V = Vector<A>;
  using Row = Channels<T, kVectors>;
  static constexpr int kWidth = kLanes<A>;

  Source<T> source;
  SampleTable<A> tables[2];
  V* sum;
  int64_t bytes;  // of scratch

  Forward(const CpuParams& p, Scratch scratch)
      : source(p, scratch),
        tables{{scratch, source.levels.padded}, {scratch, source.levels.padded}},
        sum(scratch.take<V>(Row::vectors(p.D))),
        bytes(scratch.used) {}

  void run(int64_t begin, int64_t end) {
    source.run(begin, end, [this](TableIndex at, int64_t count) { sum_tables(at, count); });
  }

  // The outputs of `count` tables in a row.
  void sum_tables(TableIndex at, int64_t count) {
    const CpuParams& p = source.p;
    T* output = static_cast<T*>(p.output);
    TableIndex ahead = at;
    source.make_table(ahead, tables[0]);
    ahead.advance(p);
    for (int64_t t = 0, current = 0; t < count; ++t, current = 1 - current) {
      if (t + 1 < count) source.make_table(ahead, tables[1 - current]);
      if (p.by_head && at.q + kPrefetchedQueries < p.Q) {
        const T* const later = output + (at.head(p) + kPrefetchedQueries * p.M) * p.D;
        for (int64_t i = 0; i < p.D; i += kLineBytes / sizeof(T)) __builtin_prefetch(later + i, 1);
      }
      for (int64_t head = 0; head < p.heads_per_table; ++head) {
        weighted_sum(tables[current], head, output + (at.head(p) + head) * p.D);
      }
      at = ahead;
      ahead.advance(p);
    }
  }

  DINO_INLINE void weighted_sum(const SampleTable<A>& table, int64_t head, T* output) {
    const int64_t K = source.p.K, D = source.p.D, first = head * D;
    char* const* rows = table.rows + head * K;
    const A* weights = table.weights + head * K;
    if constexpr (kVectors > 0) {
      // Enough independent sums to hide the latency of a multiply-add.
      constexpr int kSums = kVectors >= 8 ? 1 : kVectors >= 4 ? 2 : 4;
      V sums[kSums][kVectors] = {};
      for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          V lanes[kVectors];
          Row::load(reinterpret_cast<const T*>(rows[c * table.padded + k]) + first, D, lanes);
          const V weight = broadcast(weights[c * table.padded + k]);
          for (int i = 0; i < kVectors; ++i) sums[c % kSums][i] += weight * lanes[i];
        }
      }
      for (int s = 1; s < kSums; ++s) {
        for (int i = 0; i < kVectors; ++i) sums[0][i] += sums[s][i];
      }
      Row::store(output, D, sums[0]);
    } else {
      for (int64_t i = 0; i < Row::vectors(D); ++i) sum[i] = V{};
      for (int64_t k = 0; k < K; ++k) {
        for (int c = 0; c < 4; ++c) {
          const T* row = reinterpret_cast<const T*>(rows[c * table.padded + k]) + first;
          const V weight = broadcast(weights[c * table.padded + k]);
          for (int64_t i = 0; i * kWidth < D; ++i) {
            const int64_t left = D - i * kWidth;
            sum[i] += weight * (left >= kWidth ? widen(row + i * kWidth) : load_some(row + i * kWidth, left));
          }
        }
      }
      Row::store(output, D, sum);
    }
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
