// Forward: the weighted sum of a head's 4 K rows.
//
// One channel per lane. Tables are built one head ahead: the addresses of the next head's rows are then known
// while this head's are summed, and an out-of-order processor fetches them early. (Additional prefetch
// instructions cost more than they saved; see the op's README.md.)
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

  // Queries [begin, end), counted across the batch.
  void run(int64_t begin, int64_t end) {
    const CpuParams& p = source.p;
    source.begin();
    T* output = static_cast<T*>(p.output);
    const int64_t first = begin * p.M, last = end * p.M;
    source.make_table(first, tables[0]);
    for (int64_t h = first; h < last; ++h) {
      if (h + 1 < last) source.make_table(h + 1, tables[(h + 1 - first) % 2]);
      weighted_sum(tables[(h - first) % 2], p.K, p.D, output + h * p.D);
    }
  }

  DINO_INLINE void weighted_sum(const SampleTable<A>& table, int64_t K, int64_t D, T* output) {
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
      for (int s = 1; s < kSums; ++s) {
        for (int i = 0; i < kVectors; ++i) sums[0][i] += sums[s][i];
      }
      Row::store(output, D, sums[0]);
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
      Row::store(output, D, sum);
    }
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
