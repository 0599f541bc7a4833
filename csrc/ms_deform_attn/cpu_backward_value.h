// Backward, value: adds each query's output gradient to the rows that its samples read.
//
// A task owns a slice of grad_value, (image, level group, head), and adds to it in the order of the queries:
// no atomics, and the same bits for any number of threads. Tables are built one head ahead, over the rows of
// the sums.
#pragma once

#include "cpu_samples.h"

namespace dino_kernels::DINO_CPU_VARIANT {

template <class T, int kVectors>
struct BackwardValue {
  using A = typename Compute<T>::type;
  using V = Vector<A>;
  using Row = Channels<T, kVectors>;
  static constexpr int kWidth = kLanes<A>;

  Source<T> source;
  SampleTable<A> tables[2];
  V* any_grad_head;  // where kVectors is 0
  A* sums;           // [group rows, heads together, D rounded up] in the compute dtype, unless made in place
  char* outside;     // receives what falls outside the levels
  int64_t bytes;     // of scratch

  BackwardValue(const CpuParams& p, Scratch scratch)
      : source(p, scratch),
        tables{{scratch, source.levels.padded}, {scratch, source.levels.padded}},
        any_grad_head(scratch.take<V>(Row::vectors(p.D))),
        sums(scratch.take<A>(in_place(p) ? 0 : most_rows(p) * p.heads_together * Row::vectors(p.D) * kWidth)),
        outside(scratch.take<char>(Row::vectors(p.D) * static_cast<int64_t>(sizeof(V)))),
        bytes(scratch.used) {}

  // Slices [begin, end) of B * number_of_groups * M.
  void run(int64_t begin, int64_t end) {
    const CpuParams& p = source.p;
    source.begin();
    while (begin < end) {
      const int64_t m = begin % p.M, group = begin / p.M % p.number_of_groups,
                    b = begin / p.M / p.number_of_groups;
      int64_t heads = p.M - m < end - begin ? p.M - m : end - begin;
      if (heads > p.heads_together) heads = p.heads_together;
      accumulate(p.groups[group], b, m, heads);
      begin += heads;
    }
  }

  // Requires rows of full vectors in the dtype of the sums.
  static bool in_place(const CpuParams& p) {
    return p.sums_in_place && kVectors > 0 && sizeof(T) == sizeof(A);
  }

  static int64_t most_rows(const CpuParams& p) {
    int64_t rows = 0;
    for (int64_t g = 0; g < p.number_of_groups; ++g) rows = p.groups[g].rows > rows ? p.groups[g].rows : rows;
    return rows;
  }

  // Heads [m, m + heads) of image b, the levels of a group.
  void accumulate(const LevelGroup& group, int64_t b, int64_t m, int64_t heads) {
    const CpuParams& p = source.p;
    const int64_t head_bytes = Row::vectors(p.D) * static_cast<int64_t>(sizeof(V));
    T* grad_value = static_cast<T*>(p.grad_value) + ((b * p.S + group.first_row) * p.M + m) * p.D;
    const int64_t row_bytes = in_place(p) ? p.M * p.D * static_cast<int64_t>(sizeof(T)) : heads * head_bytes;
    char* rows = in_place(p) ? reinterpret_cast<char*>(grad_value) : reinterpret_cast<char*>(sums);
    if (!in_place(p)) {
      for (int64_t i = 0; i < group.rows * row_bytes; i += sizeof(V)) store(rows + i, V{});
    }
    // Rows are numbered from the beginning of S.
    const RowBase base{rows - group.first_row * row_bytes, row_bytes, outside,
                       p.value_mask ? p.value_mask + b * p.S : nullptr};
    const int64_t items = p.Q * heads;
    const auto head_of = [&](int64_t i) { return (b * p.Q + i / heads) * p.M + m + i % heads; };
    const auto make = [&](int64_t i) {
      RowBase of_head = base;
      of_head.first += i % heads * head_bytes;
      source.make_table(head_of(i), of_head, tables[i % 2]);
    };
    if (items > 0) make(0);
    for (int64_t i = 0; i < items; ++i) {
      if (i + 1 < items) make(i + 1);
      scatter(group, tables[i % 2], head_of(i));
    }
    if (in_place(p)) return;
    for (int64_t r = 0; r < group.rows; ++r) {
      for (int64_t head = 0; head < heads; ++head) {
        Row::store(grad_value + (r * p.M + head) * p.D, p.D,
                   reinterpret_cast<const V*>(rows + r * row_bytes + head * head_bytes));
      }
    }
  }

  DINO_INLINE void scatter(const LevelGroup& group, const SampleTable<A>& table, int64_t h) {
    const CpuParams& p = source.p;
    V registers[kVectors ? kVectors : 1];
    V* grad_head = kVectors ? registers : any_grad_head;
    Row::load(source.grad_output(h), p.D, grad_head);
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
