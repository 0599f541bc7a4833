// What the samples of a table have in common with those of other queries or heads: the order of the tables,
// levels, and the origin and unit of positions.
#pragma once

#include "../common/channels.h"
#include "../common/scratch.h"
#include "cpu.h"

namespace dino_kernels::DINO_CPU_VARIANT {

// By head, the numbers of a query are M heads after those of the query before: further than a processor
// fetches by itself.
constexpr int64_t kPrefetchedQueries = 8, kLineBytes = 64;

// A table holds the samples of p.heads_per_table neighbouring heads, sample by sample, head by head.
DINO_INLINE int64_t table_samples(const CpuParams& p) { return p.heads_per_table * p.K; }

// The image, query and first head of a table.
struct TableIndex {
  int64_t b, q, m;
  TableIndex(int64_t b_, int64_t q_, int64_t m_) : b(b_), q(q_), m(m_) {}
  TableIndex(const CpuParams& p, int64_t query) : TableIndex(query / p.Q, query % p.Q, 0) {}
  int64_t query(const CpuParams& p) const { return b * p.Q + q; }
  int64_t head(const CpuParams& p) const { return query(p) * p.M + m; }
  // The start of a task.
  static TableIndex of_task(const CpuParams& p, int64_t task) {
    return p.by_head ? TableIndex(task / p.Q / p.M, task % p.Q, task / p.Q % p.M) : TableIndex(p, task);
  }
  // The next table of the same range of tasks; by head, of the same head. Divisions would take as long as the
  // table of a few samples.
  DINO_INLINE void advance(const CpuParams& p) {
    if (p.by_head) {
      ++q;
      return;
    }
    m += p.heads_per_table;
    if (m < p.M) return;
    m = 0;
    if (++q < p.Q) return;
    q = 0;
    ++b;
  }
};

// Constant over all queries: the level of each sample. Lanes after the last sample have an empty level, so
// none of their corners is valid.
template <class A>
struct SampleLevels {
  int64_t padded;
  Integer<A>*width, *height, *start;
  SampleLevels(Scratch& scratch, int64_t samples) : padded(round_up(samples, kLanes<A>)) {
    width = scratch.take<Integer<A>>(padded);
    height = scratch.take<Integer<A>>(padded);
    start = scratch.take<Integer<A>>(padded);
  }
  void fill(const CpuParams& p) {
    for (int64_t i = 0; i < padded; ++i) width[i] = height[i] = start[i] = 0;
    for (int64_t l = 0; l < p.L; ++l) {
      const Level& level = p.levels[l];
      for (int64_t head = 0; head < p.heads_per_table; ++head) {
        const int64_t first = head * p.K + level.first_point;
        for (int64_t k = first; k < first + level.points; ++k) {
          width[k] = level.width;
          height[k] = level.height;
          start[k] = static_cast<Integer<A>>(level.start);
        }
      }
    }
  }
};

// base and scale of each sample of a table, for one query.
template <class A>
struct Frame {
  using V = Vector<A>;
  using Int = Vector<Integer<A>>;
  A *base_x, *base_y, *scale_x, *scale_y;
  // If the query's reference points have 2 coordinates and fit one vector, base is a permutation of that:
  // writing it sample by sample would take a sixth of an encoder's forward. Scales are 1 then.
  bool permuted = false;
  V points;            // of the query
  Integer<A>* places;  // of each sample's x in points
  A *width, *height;   // of each sample's level
  Frame(Scratch& scratch, int64_t samples) {
    const int64_t padded = round_up(samples, kLanes<A>);
    for (A** array : {&base_x, &base_y, &scale_x, &scale_y, &width, &height})
      *array = scratch.take<A>(padded);
    places = scratch.take<Integer<A>>(padded);
  }

  // Before the first query.
  void begin(const CpuParams& p, const SampleLevels<A>& levels) {
    permuted = p.reference_points && p.reference_coordinates == 2 && 2 * p.L <= kLanes<A>;
    if (!permuted) return;
    for (int64_t k = 0; k < levels.padded; ++k) {
      places[k] = 0;
      width[k] = static_cast<A>(levels.width[k]);
      height[k] = static_cast<A>(levels.height[k]);
      scale_x[k] = scale_y[k] = A(1);
    }
    for (int64_t l = 0; l < p.L; ++l) {
      for (int64_t head = 0; head < p.heads_per_table; ++head) {
        const int64_t first = head * p.K + p.levels[l].first_point;
        for (int64_t k = first; k < first + p.levels[l].points; ++k) {
          places[k] = static_cast<Integer<A>>(2 * l);
        }
      }
    }
  }

  DINO_INLINE void set(const CpuParams& p, int64_t query) {
    if (permuted) {
      const A* from = static_cast<const A*>(p.reference_points) + query * p.L * 2;
      const int64_t readable = (p.B * p.Q - query) * p.L * 2;
      points = readable >= kLanes<A> ? load<V>(from) : load_some(from, readable);
    } else {
      set_samples(p, query);
    }
  }

  DINO_INLINE void base(int64_t k, V& x, V& y) const {
    if (permuted) {
      const Int place = load<Int>(places + k);
      x = permute(points, place) * load<V>(width + k) - A(0.5);
      y = permute(points, place + 1) * load<V>(height + k) - A(0.5);
    } else {
      x = load<V>(base_x + k);
      y = load<V>(base_y + k);
    }
  }

 private:
  void set_samples(const CpuParams& p, int64_t query) {
    const A* reference = static_cast<const A*>(p.reference_points);
    const int64_t coordinates = p.reference_coordinates;
    for (int64_t l = 0; l < p.L; ++l) {
      const Level& level = p.levels[l];
      const A level_width = static_cast<A>(level.width), level_height = static_cast<A>(level.height);
      A bx = A(-0.5), by = A(-0.5), sx = level_width, sy = level_height;
      if (reference) {
        const A* point = reference + (query * p.L + l) * coordinates;
        bx = point[0] * level_width - A(0.5);
        by = point[1] * level_height - A(0.5);
        sx = sy = A(1);
        if (coordinates == 4) {
          const A half = A(0.5) / static_cast<A>(level.points > 0 ? level.points : 1);
          sx = point[2] * half * level_width;
          sy = point[3] * half * level_height;
        }
      }
      for (int64_t head = 0; head < p.heads_per_table; ++head) {
        const int64_t first = head * p.K + level.first_point;
        for (int64_t k = first; k < first + level.points; ++k) {
          base_x[k] = bx;
          base_y[k] = by;
          scale_x[k] = sx;
          scale_y[k] = sy;
        }
      }
    }
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
