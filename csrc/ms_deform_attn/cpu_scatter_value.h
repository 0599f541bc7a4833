// Backward, value, of a call with many samples per row, as in an encoder: adds each query's output gradient
// to the rows that its samples read.
//
// A task owns a slice of grad_value, (image, level group, head), and adds to it in the order of the queries:
// no atomics, and the same bits for any number of threads. Tables are built one head ahead, over the rows of
// the sums.
#pragma once

#include "cpu_samples.h"

namespace dino_kernels::DINO_CPU_VARIANT {

template <class T, int kVectors>
struct ScatterValue {
  using A = typename Compute<T>::type;
  using V = Vector<A>;
  using Row = Channels<T, kVectors>;
  static constexpr int kWidth = kLanes<A>;

  Source<T> source;
  SampleTable<A> tables[2];
  V* any_grad_head;  // where kVectors is 0
  A* sums;           // [group rows, D rounded up] in the compute dtype
  char* outside;     // receives what falls outside the levels
  int64_t bytes;     // of scratch

  ScatterValue(const CpuParams& p, Scratch scratch)
      : source(p, scratch),
        tables{{scratch, source.levels.padded}, {scratch, source.levels.padded}},
        any_grad_head(scratch.take<V>(Row::vectors(p.D))),
        sums(scratch.take<A>(most_rows(p) * Row::vectors(p.D) * kWidth)),
        outside(scratch.take<char>(Row::vectors(p.D) * static_cast<int64_t>(sizeof(V)))),
        bytes(scratch.used) {}

  // Slices [begin, end) of B * number_of_groups * M.
  void run(int64_t begin, int64_t end) {
    const CpuParams& p = source.p;
    source.begin();
    for (; begin < end; ++begin) {
      const int64_t slice = begin / p.M;
      accumulate(p.groups[slice % p.number_of_groups], slice / p.number_of_groups, begin % p.M);
    }
  }

  static int64_t most_rows(const CpuParams& p) {
    int64_t rows = 0;
    for (int64_t g = 0; g < p.number_of_groups; ++g) rows = p.groups[g].rows > rows ? p.groups[g].rows : rows;
    return rows;
  }

  // Head m of image b, the levels of a group.
  void accumulate(const LevelGroup& group, int64_t b, int64_t m) {
    const CpuParams& p = source.p;
    const int64_t row_bytes = Row::vectors(p.D) * static_cast<int64_t>(sizeof(V));
    char* rows = reinterpret_cast<char*>(sums);
    for (int64_t i = 0; i < group.rows * row_bytes; i += sizeof(V)) store(rows + i, V{});
    // Rows are numbered from the beginning of S.
    const RowBase base{rows - group.first_row * row_bytes, row_bytes, outside,
                       p.value_mask ? p.value_mask + b * p.S : nullptr};
    TableIndex at(b, 0, m);
    if (p.Q > 0) source.make_table(at, base, tables[0]);
    for (int64_t q = 0; q < p.Q; ++q) {
      at.q = q + 1;
      if (at.q < p.Q) source.make_table(at, base, tables[at.q % 2]);
      scatter(group, tables[q % 2], source.grad_output(b, q, m));
    }
    T* grad_value = static_cast<T*>(p.grad_value) + ((b * p.S + group.first_row) * p.M + m) * p.D;
    for (int64_t r = 0; r < group.rows; ++r) {
      Row::store(grad_value + r * p.M * p.D, p.D, reinterpret_cast<const V*>(rows + r * row_bytes));
    }
  }

  DINO_INLINE void scatter(const LevelGroup& group, const SampleTable<A>& table, const T* grad_output) {
    const CpuParams& p = source.p;
    V registers[kVectors ? kVectors : 1];
    V* grad_head = kVectors ? registers : any_grad_head;
    Row::load(grad_output, p.D, grad_head);
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
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
