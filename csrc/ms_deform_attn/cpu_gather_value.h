// Backward, value, of a call with few samples per row, as in a decoder: sums, for each row, the output
// gradients of the samples that read it.
//
// The corners that backward_samples kept are sorted by row, in the order of the queries. Each row of
// grad_value is then written once, also those of zeros, and nothing is read there. A task owns a slice,
// (image, head, rows): the same bits for any number of threads.
#pragma once

#include "cpu_samples.h"

namespace dino_kernels::DINO_CPU_VARIANT {

template <class T, int kVectors>
struct GatherValue {
  using A = typename Compute<T>::type;
  using V = Vector<A>;
  using Row = Channels<T, kVectors>;
  struct Corner {
    int32_t query;
    A weight;
  };

  const CpuParams& p;
  int32_t* ends;    // [rows of a part + 1] where the corners of each row end; the last are not of this part
  Corner* corners;  // [Q * K * 4]
  V* any_rows;      // [2, vectors of D] where kVectors is 0
  int64_t bytes;    // of scratch

  GatherValue(const CpuParams& p_, Scratch scratch)
      : p(p_),
        ends(scratch.take<int32_t>(rows_of_part(p_) + 1)),
        corners(scratch.take<Corner>(p_.Q * p_.K * 4)),
        any_rows(scratch.take<V>(2 * Row::vectors(p_.D))),
        bytes(scratch.used) {}

  static int64_t rows_of_part(const CpuParams& p) { return (p.S + p.parts - 1) / p.parts; }

  // Slices [begin, end) of B * M * parts.
  void run(int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      const int64_t head = begin / p.parts, b = head / p.M, m = head % p.M;
      const int64_t first = begin % p.parts * rows_of_part(p), left = p.S - first;
      const int64_t rows = left < rows_of_part(p) ? left : rows_of_part(p);
      if (rows <= 0) continue;  // more parts than rows
      sort(b, m, first, rows);
      gather(b, m, first, rows);
    }
  }

  // Calls f(query, index among the call's corners) for the corners of a head, in the order in which
  // ScatterValue adds them: the choice between the two changes no bit.
  template <class F>
  DINO_INLINE void for_corners(int64_t b, int64_t m, F f) const {
    const int64_t heads = p.heads_per_table, padded = round_up(table_samples(p), kLanes<A>);
    int64_t first = (b * (p.M / heads) + m / heads) * p.Q * 4 * padded + m % heads * p.K;
    for (int64_t q = 0; q < p.Q; ++q, first += 4 * padded) {
      for (int64_t k = 0; k < p.K; ++k) {
        for (int64_t c = 0; c < 4; ++c) f(q, first + c * padded + k);
      }
    }
  }

  void sort(int64_t b, int64_t m, int64_t first, int64_t rows) {
    const Integer<A>* numbers = static_cast<const Integer<A>*>(p.corner_rows);
    const A* weights = static_cast<const A*>(p.corner_weights);
    const auto row_of = [&](int64_t i) {
      const auto row = static_cast<uint64_t>(numbers[i] - first);
      return row < static_cast<uint64_t>(rows) ? static_cast<int64_t>(row) : rows;
    };
    for (int64_t row = 0; row <= rows; ++row) ends[row] = 0;
    for_corners(b, m, [&](int64_t, int64_t i) { ++ends[row_of(i)]; });
    int32_t corners_before = 0;
    for (int64_t row = 0; row <= rows; ++row) {
      const int32_t count = ends[row];
      ends[row] = corners_before;
      corners_before += count;
    }
    for_corners(b, m, [&](int64_t q, int64_t i) {
      corners[ends[row_of(i)]++] = {static_cast<int32_t>(q), weights[i]};
    });
  }

  void gather(int64_t b, int64_t m, int64_t first, int64_t rows) {
    const T* grad_output =
        static_cast<const T*>(p.grad_output.data) + b * p.grad_output.batch_stride + m * p.D;
    T* grad_value = static_cast<T*>(p.grad_value) + ((b * p.S + first) * p.M + m) * p.D;
    const int64_t vectors = Row::vectors(p.D), stride = p.grad_output.row_stride;
    V registers[2][kVectors ? kVectors : 1];
    V* sum = kVectors ? registers[0] : any_rows;
    V* gradient = kVectors ? registers[1] : any_rows + vectors;
    const Corner* corner = corners;
    for (int64_t row = 0; row < rows; ++row, grad_value += p.M * p.D) {
      for (int64_t v = 0; v < vectors; ++v) sum[v] = V{};
      for (const Corner* end = corners + ends[row]; corner < end; ++corner) {
        Row::load(grad_output + corner->query * stride, p.D, gradient);
        const V weight = broadcast(corner->weight);
        for (int64_t v = 0; v < vectors; ++v) sum[v] += weight * gradient[v];
      }
      store_row(grad_value, sum);
    }
    finish_streams();
  }

  DINO_INLINE void store_row(T* to, const V* sum) const {
    constexpr uintptr_t kCacheLine = 64;
    if constexpr (kVectors > 0 && sizeof(T) == sizeof(A) && kVectors * sizeof(V) % kCacheLine == 0) {
      if (reinterpret_cast<uintptr_t>(to) % kCacheLine == 0) {
        for (int v = 0; v < kVectors; ++v) stream(to + v * kLanes<A>, sum[v]);
        return;
      }
    }
    Row::store(to, p.D, sum);
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
