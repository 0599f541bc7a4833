// Where the K samples of a head read and with which weight: shared by the forward and both halves of the
// backward. One sample per lane.
//
// Raw positions and weights become pixels by x = base + raw * scale: the classic op and the fused op with 2
// or 4 reference coordinates differ only in base and scale, and in the softmax.
#pragma once

#include "../common/exp_log.h"
#include "bilinear.h"
#include "cpu_frame.h"

namespace dino_kernels::DINO_CPU_VARIANT {

// Raw numbers of the samples, in value's dtype or the compute dtype.
template <class T>
struct RawSamples {
  using A = typename Compute<T>::type;
  const void* data;
  bool as_value;
  int64_t extent;  // elements from data to the end of the tensor
  RawSamples(const CpuParams& p, const Rows& rows, int64_t row_length, bool as_value_)
      : data(rows.data),
        as_value(as_value_),
        extent((p.B - 1) * rows.batch_stride + (p.Q - 1) * rows.row_stride + row_length) {}
  // Fetches elements [i, i + count) into the caches, where they exist.
  DINO_INLINE void prefetch(int64_t i, int64_t count) const {
    const int64_t size = as_value ? sizeof(T) : sizeof(A), end = i + count < extent ? i + count : extent;
    const char* const from = static_cast<const char*>(data);
    for (int64_t at = i * size; at < end * size; at += kLineBytes) __builtin_prefetch(from + at);
  }
  // One vector from element i on. May read past the last sample into the tensor, but never past its end.
  DINO_INLINE Vector<A> load(int64_t i) const {
    const int64_t readable = extent - i;
    if (as_value) return lanes(static_cast<const T*>(data) + i, readable);
    return lanes(static_cast<const A*>(data) + i, readable);
  }
  DINO_INLINE void load_pairs(int64_t i, Vector<A>& x, Vector<A>& y) const {
    deinterleave(load(i), load(i + kLanes<A>), x, y);
  }

 private:
  template <class U>
  static DINO_INLINE Vector<A> lanes(const U* from, int64_t readable) {
    if (readable >= kLanes<A>) return widen(from);
    return load_some(from, readable > 0 ? readable : 0);
  }
};

template <class T>
DINO_INLINE void store_raw(void* data, bool as_value, int64_t i, Vector<typename Compute<T>::type> v,
                           int64_t count) {
  using A = typename Compute<T>::type;
  if (as_value) {
    T* to = static_cast<T*>(data) + i;
    count >= kLanes<A> ? narrow(to, v) : store_some(to, v, count);
  } else {
    A* to = static_cast<A*>(data) + i;
    count >= kLanes<A> ? narrow(to, v) : store_some(to, v, count);
  }
}

// Consecutive lane numbers starting at first, to compare with a count.
template <class A>
DINO_INLINE Vector<Integer<A>> lane_numbers(int64_t first) {
  Vector<Integer<A>> numbers;
  for (int i = 0; i < kLanes<A>; ++i) numbers[i] = static_cast<Integer<A>>(first + i);
  return numbers;
}

// The softmax of `count` logits from element `i` on.
template <class T, class A = typename Compute<T>::type>
DINO_INLINE void softmax(const RawSamples<T>& logits, int64_t i, int64_t count, A* probabilities) {
  constexpr A kLowest = -__builtin_inff();
  Vector<A> maxima = broadcast(kLowest);
  for (int64_t k = 0; k < count; k += kLanes<A>) {
    const auto present = lane_numbers<A>(k) < static_cast<Integer<A>>(count);
    const Vector<A> lanes = present ? logits.load(i + k) : broadcast(kLowest);
    store(probabilities + k, lanes);
    maxima = lanes > maxima ? lanes : maxima;
  }
  const Vector<A> maximum = max_of_lanes<A>(maxima);
  Vector<A> sums{};
  for (int64_t k = 0; k < count; k += kLanes<A>) {
    const Vector<A> e = exp_of_nonpositive<A>(load<Vector<A>>(probabilities + k) - maximum);
    store(probabilities + k, e);
    sums += e;
  }
  const Vector<A> inverse = A(1) / sum_of_lanes<A>(sums);
  for (int64_t k = 0; k < count; k += kLanes<A>) {
    store(probabilities + k, load<Vector<A>>(probabilities + k) * inverse);
  }
}

// The sum or the maximum of each `count` neighbouring lanes, in each of them; count is a power of two. Lanes
// are joined in the order of sum_of_lanes, so that tables of one head and of several have the same bits.
template <class A, class Join, int kBit = kLanes<A> / 2>
DINO_INLINE Vector<A> join_neighbours(Vector<A> v, int64_t count, Join join) {
  if constexpr (kBit == 0) {
    return v;
  } else {
    using Sequence = std::make_integer_sequence<int, kLanes<A>>;
    if (kBit < count) v = join(v, shuffle(v, v, exchanged<kBit>(Sequence{})));
    return join_neighbours<A, Join, kBit / 2>(v, count, join);
  }
}
template <class A>
DINO_INLINE Vector<A> sum_of_neighbours(Vector<A> v, int64_t count) {
  return join_neighbours<A>(v, count, [](Vector<A> a, Vector<A> b) { return a + b; });
}

// The softmax of each `count` neighbouring logits of a vector.
template <class A>
DINO_INLINE Vector<A> softmax_of_neighbours(Vector<A> logits, int64_t count) {
  const Vector<A> maximum =
      join_neighbours<A>(logits, count, [](Vector<A> a, Vector<A> b) { return a > b ? a : b; });
  const Vector<A> e = exp_of_nonpositive<A>(logits - maximum);
  return e * (A(1) / sum_of_neighbours<A>(e, count));
}

// The 4 corner rows of each sample, and their weights.
template <class A>
struct SampleTable {
  int64_t padded;
  char** rows;                        // [4, padded] first channel of the corner's row, or the empty row
  Integer<A>* row_numbers = nullptr;  // [4, padded] of S, or -1 for the empty row; null: not needed
  A* weights;                         // [4, padded] bilinear weight times attention
  A* attention;                       // [padded]
  A *fraction_x, *fraction_y;         // [padded]
  A *raw_x, *raw_y;                   // [padded]
  SampleTable(Scratch& scratch, int64_t padded_) : padded(padded_) {
    rows = scratch.take<char*>(4 * padded);
    weights = scratch.take<A>(4 * padded);
    attention = scratch.take<A>(padded);
    fraction_x = scratch.take<A>(padded);
    fraction_y = scratch.take<A>(padded);
    raw_x = scratch.take<A>(padded);
    raw_y = scratch.take<A>(padded);
  }
};

// An array of rows to point into: corner rows outside the level, or masked, point to `empty` instead. It is
// read as zeros (forward) or written and discarded (backward), so no value elsewhere, not even NaN, leaks.
struct RowBase {
  char* first;
  int64_t row_bytes;
  char* empty;
  const bool* mask;  // [rows] or null
};

template <class A>
DINO_INLINE void store_row_pointers(char** to, Vector<Integer<A>> row, Vector<Integer<A>> valid,
                                    const RowBase& base) {
  using Address = Vector<int64_t>;
  const Address empty = broadcast(reinterpret_cast<int64_t>(base.empty));
  const Address first = broadcast(reinterpret_cast<int64_t>(base.first));
  const Address row_bytes = broadcast(base.row_bytes);
  for (int part = 0; part < parts_of_addresses<A>; ++part) {
    const Address address = first + multiply_low(address_part<A>(row, part), row_bytes);
    store(to + part * kLanes<int64_t>, select_addresses<A>(valid, part, address, empty));
  }
}

// The corners that are valid and not masked.
template <class A>
DINO_INLINE Vector<Integer<A>> unmasked(Vector<Integer<A>> row, Vector<Integer<A>> valid, const bool* mask) {
  for (int i = 0; i < kLanes<A>; ++i) {
    if (valid[i] && mask[row[i]]) valid[i] = 0;
  }
  return valid;
}

// Fills lanes [i, i + lanes) of the table, from pixel positions and attention.
template <class A>
DINO_INLINE void set_corners(SampleTable<A>& table, const SampleLevels<A>& levels, int64_t i, Vector<A> x,
                             Vector<A> y, Vector<A> attention, const RowBase& base) {
  using Int = Vector<Integer<A>>;
  const Corners<Vector<A>> corners =
      bilinear_corners<Vector<A>>(x, y, load<Int>(levels.width + i), load<Int>(levels.height + i));
  const Int start = load<Int>(levels.start + i);
  for (int c = 0; c < 4; ++c) {
    const int64_t at = c * table.padded + i;
    const Int row = start + corners.row[c];
    const Int valid = base.mask ? unmasked<A>(row, corners.valid[c], base.mask) : corners.valid[c];
    store_row_pointers<A>(table.rows + at, row, valid, base);
    if (table.row_numbers) store(table.row_numbers + at, valid ? row : Int{} - 1);
    store(table.weights + at, corners.weight[c] * attention);
  }
  store(table.attention + i, attention);
  store(table.fraction_x + i, corners.fraction_x);
  store(table.fraction_y + i, corners.fraction_y);
}

// Builds the tables of heads from the call's raw positions and weights.
template <class T>
struct Source {
  using A = typename Compute<T>::type;
  using V = Vector<A>;
  static constexpr int kWidth = kLanes<A>;
  const CpuParams& p;
  RawSamples<T> positions, weights;
  SampleLevels<A> levels;
  Frame<A> frame;
  char* empty_row;  // [heads of a table, D]
  char* head_rows;  // [S, D], by head
  int64_t frame_query = -1;

  Source(const CpuParams& p_, Scratch& scratch)
      : p(p_),
        positions(p_, p_.positions, p_.M * p_.K * 2, p_.positions_as_value),
        weights(p_, p_.weights, p_.M * p_.K, p_.weights_as_value),
        levels(scratch, table_samples(p_)),
        frame(scratch, table_samples(p_)),
        empty_row(scratch.take<char>(p_.heads_per_table * head_bytes())),
        head_rows(scratch.take<char>(p_.by_head ? p_.S * head_bytes() : 0)) {}

  int64_t head_bytes() const { return p.D * static_cast<int64_t>(sizeof(T)); }

  void begin() {
    levels.fill(p);
    frame.begin(p, levels);
    frame_query = -1;
    for (int64_t i = 0; i < p.heads_per_table * head_bytes(); ++i) empty_row[i] = 0;
  }

  const T* grad_output(int64_t b, int64_t q, int64_t m) const {
    return static_cast<const T*>(p.grad_output.data) + b * p.grad_output.batch_stride +
           q * p.grad_output.row_stride + m * p.D;
  }

  // Calls work(start, number of tables) for ranges of tasks [begin, end) whose tables have the same rows.
  template <class Work>
  void run(int64_t begin, int64_t end, const Work& work) {
    this->begin();
    if (!p.by_head) return work(TableIndex::of_task(p, begin), (end - begin) * (p.M / p.heads_per_table));
    while (begin < end) {
      const TableIndex at = TableIndex::of_task(p, begin);
      const int64_t queries = end - begin < p.Q - at.q ? end - begin : p.Q - at.q;
      copy_head(at);
      work(at, queries);
      begin += queries;
    }
  }

  const char* head_of_value(const TableIndex& at) const {
    return static_cast<const char*>(p.value.data) +
           (at.b * p.value.batch_stride + at.m * p.D) * static_cast<int64_t>(sizeof(T));
  }

  // In value, rows of a head are M * D apart: they share few sets of the first-level cache.
  void copy_head(const TableIndex& at) const {
    const char* from = head_of_value(at);
    const int64_t stride = p.value.row_stride * static_cast<int64_t>(sizeof(T));
    const auto bytes = static_cast<uint64_t>(head_bytes());
    for (int64_t row = 0; row < p.S; ++row) {
      __builtin_memcpy(head_rows + row * head_bytes(), from + row * stride, bytes);
    }
  }

  // The table of some heads of a query, over the rows of value.
  DINO_INLINE void make_table(const TableIndex& at, SampleTable<A>& table) {
    const bool* mask = p.value_mask ? p.value_mask + at.b * p.S : nullptr;
    if (p.by_head) {
      make_table(at, RowBase{head_rows, head_bytes(), empty_row, mask}, table);
    } else {
      const int64_t stride = p.value.row_stride * static_cast<int64_t>(sizeof(T));
      make_table(at, RowBase{const_cast<char*>(head_of_value(at)), stride, empty_row, mask}, table);
    }
  }

  // The same over any array of rows. One function for every kernel and number of channels: inlined, it was
  // two thirds of the time that this library takes to compile, and no faster.
  __attribute__((noinline)) void make_table(const TableIndex& at, const RowBase& base,
                                            SampleTable<A>& table) {
    const int64_t query = at.query(p), samples = table_samples(p);
    if (query != frame_query && (p.reference_points || frame_query < 0)) frame.set(p, query);
    frame_query = query;
    const int64_t first_weight = at.b * p.weights.batch_stride + at.q * p.weights.row_stride + at.m * p.K;
    const int64_t first_position =
        at.b * p.positions.batch_stride + at.q * p.positions.row_stride + at.m * p.K * 2;
    if (p.by_head) {
      positions.prefetch(first_position + kPrefetchedQueries * p.positions.row_stride, 2 * p.K);
      weights.prefetch(first_weight + kPrefetchedQueries * p.weights.row_stride, p.K);
    }
    if (p.reference_points && p.heads_per_table == 1) {
      softmax<T>(weights, first_weight, p.K, table.attention);
    }
    for (int64_t k = 0; k < samples; k += kWidth) {
      V x, y;
      positions.load_pairs(first_position + 2 * k, x, y);
      V attention;
      if (!p.reference_points) {
        attention = weights.load(first_weight + k);
      } else if (p.heads_per_table == 1) {
        attention = load<V>(table.attention + k);
      } else {
        attention = softmax_of_neighbours<A>(weights.load(first_weight), p.K);
      }
      store(table.raw_x + k, x);
      store(table.raw_y + k, y);
      V base_x, base_y;
      frame.base(k, base_x, base_y);
      x = base_x + x * load<V>(frame.scale_x + k);
      y = base_y + y * load<V>(frame.scale_y + k);
      set_corners<A>(table, levels, k, x, y, attention, base);
    }
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
