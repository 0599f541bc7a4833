// The kernel of the matching cost for one instruction set: a tile of queries of one set and image against all
// its targets.
//
// Queries are the vector dimension. A tile's boxes are planes in scratch memory, next to a row of class costs
// for each label of the image, and stay in the first-level cache while the targets pass. Each logit and each
// cost is moved once.
#include "../common/scratch.h"
#include "cpu.h"
#include "cpu_class.h"

namespace dino_kernels::DINO_CPU_VARIANT {

// Planes of a tile are contiguous, so that one pointer reaches them all.
enum Plane { kCx, kCy, kW, kH, kX0, kY0, kX1, kY1, kArea, kForbidden, kLargest, kSum, kClassCost };

struct CostPlanes {
  float* first;
  int64_t bytes;

  CostPlanes(Scratch scratch, int64_t labels)
      : first(scratch.take<float>((kClassCost + labels) * kCostTile)), bytes(scratch.used) {}
  // There is one kClassCost plane per label.
  float* operator[](int64_t plane) const { return first + plane * kCostTile; }
  // A mask: the query cannot be matched.
  int32_t* forbidden() const { return reinterpret_cast<int32_t*>((*this)[kForbidden]); }
};

// Class costs of a tile, and which queries are forbidden by their logits.
template <class T>
struct ClassCosts {
  const MatchingCostParams& p;
  const CostTile& tile;
  const CostPlanes& planes;
  const T* logits;  // of the tile's first query

  ClassCosts(const MatchingCostParams& p_, const CostTile& tile_, const CostPlanes& planes_)
      : p(p_),
        tile(tile_),
        planes(planes_),
        logits(static_cast<const T*>(tile.source->logits) + tile.set * tile.source->logits_set_stride +
               tile.image_index * tile.source->logits_batch_stride +
               tile.first_query * tile.source->logits_row_stride) {}

  void fill() const {
    const CostFormula& f = p.formula;
    gather_logits();
    if (f.softmax) {
      to_softmax();
    } else if (f.gamma != 2) {
      f.class_eps > 0 ? to_focal(FocalCost<false, true>(f)) : to_focal(FocalCost<false, false>(f));
    } else if (f.class_eps > SquaredFocalCost<true>::kMostEps) {
      to_focal(FocalCost<true, true>(f));
    } else {
      f.class_eps > 0 ? to_focal(SquaredFocalCost<true>(f)) : to_focal(SquaredFocalCost<false>(f));
    }
  }

 private:
  // Number of vectors of queries; a tile's planes have room for whole vectors.
  static constexpr int kTogether = DINO_VECTOR_BYTES == 32 ? 2 : 4;  // AVX2 has 16 registers
  static_assert(kCostTile % (kTogether * kQueries) == 0);

  // A vector of queries processes all labels at once, because their logits are close together. The costs are
  // computed from them separately: reads would wait for interleaved writes to many places (README.md).
  void gather_logits() const {
    const int64_t stride = tile.source->logits_row_stride, queries = tile.queries;
    const int64_t num_labels = tile.image->num_labels;
    const int64_t* labels = tile.image->labels;
    float* to = planes[kClassCost];
    for (int64_t q = 0; q < queries; q += kQueries) {
      for (int64_t i = 0; i < num_labels; ++i) {
        store(to + i * kCostTile + q, load_strided(logits + q * stride + labels[i], stride, queries - q));
      }
    }
  }

  void to_focal(const auto cost) const {
    const int64_t queries = tile.queries;
    const int64_t* labels = tile.image->labels;
    int32_t* forbidden = planes.forbidden();
    for (int64_t i = 0; i < tile.image->num_labels; ++i) {
      float* plane = planes[kClassCost + i];
      for (int64_t q = 0; q < queries; q += kTogether * kQueries) {
        Floats costs[kTogether];
        for (int k = 0; k < kTogether; ++k) {
          prefetch(q + k * kQueries, labels[i]);
          costs[k] = load<Floats>(plane + q + k * kQueries);
          forbid(forbidden + q + k * kQueries, costs[k], i == 0);
        }
        cost(costs);
        for (int k = 0; k < kTogether; ++k) store(plane + q + k * kQueries, costs[k]);
      }
    }
  }

  void to_softmax() const {
    const int64_t queries = tile.queries;
    float *largest = planes[kLargest], *sum = planes[kSum];
    for (int64_t q = 0; q < queries; ++q) {
      softmax_of_row(logits + q * tile.source->logits_row_stride, p.C, largest[q], sum[q]);
    }
    for (int64_t i = 0; i < tile.image->num_labels; ++i) {
      float* plane = planes[kClassCost + i];
      for (int64_t q = 0; q < queries; q += kQueries) {
        const Floats scaled = exp_of_nonpositive<float>(load<Floats>(plane + q) - load<Floats>(largest + q));
        const Floats probability = scaled / load<Floats>(sum + q);
        forbid(planes.forbidden() + q, probability, i == 0);
        store(plane + q, -p.formula.class_weight * probability);
      }
    }
  }

  // Prefetches the logits that gather_logits() reads of the next tile; hardware cannot predict them.
  DINO_INLINE void prefetch(int64_t q, int64_t label) const {
    const int64_t stride = tile.source->logits_row_stride;
    if (tile.first_query + q + kCostTile + kQueries > tile.source->Q) return;
    const T* next = logits + (q + kCostTile) * stride + label;
#pragma GCC unroll 16
    for (int i = 0; i < kQueries; ++i) __builtin_prefetch(next + i * stride);
  }

  // Marks queries with a number that is not finite; `first` is the first of the tile.
  static DINO_INLINE void forbid(int32_t* forbidden, Floats number, bool first) {
    const auto before = first ? Vector<int32_t>{} : load<Vector<int32_t>>(forbidden);
    store(forbidden, before | ~is_finite<float>(number));
  }
};

// Boxes of a tile as planes, and which queries are forbidden by their boxes.
template <class T>
static void fill_boxes(const CostTile& tile, const CostPlanes& planes) {
  const PredictionSource& source = *tile.source;
  const int64_t stride = source.boxes_row_stride;
  const T* boxes = static_cast<const T*>(source.boxes) + tile.set * source.boxes_set_stride +
                   tile.image_index * source.boxes_batch_stride + tile.first_query * stride;
  for (int64_t q = 0; q < tile.queries; q += kQueries) {
    const auto coordinate = [&](int i) {
      return load_strided(boxes + q * stride + i, stride, tile.queries - q);
    };
    const Floats cx = coordinate(0), cy = coordinate(1), w = coordinate(2), h = coordinate(3);
    const auto finite =
        is_finite<float>(cx) & is_finite<float>(cy) & is_finite<float>(w) & is_finite<float>(h);
    store(planes.forbidden() + q, load<Vector<int32_t>>(planes.forbidden() + q) | ~finite);
    const Floats x0 = cx - w * 0.5f, y0 = cy - h * 0.5f, x1 = cx + w * 0.5f, y1 = cy + h * 0.5f;
    const Floats all[] = {cx, cy, w, h, x0, y0, x1, y1, (x1 - x0) * (y1 - y0)};
    for (int plane = kCx; plane <= kArea; ++plane) store(planes[plane] + q, all[plane]);
  }
}

// L1 and generalised IoU of a target with a vector of queries, weighted and added to the class cost. Held by
// value, so that all its numbers fit into registers.
struct PairCosts {
  const float* planes;
  const float* class_cost;
  CostTarget t;
  float l1_weight, giou_weight, giou_eps;

  DINO_INLINE Floats operator()(int64_t q) const {
    const auto plane = [&](Plane which) { return load<Floats>(planes + which * kCostTile + q); };
    const Floats l1 = absolute<float>(plane(kCx) - t.cx) + absolute<float>(plane(kCy) - t.cy) +
                      absolute<float>(plane(kW) - t.w) + absolute<float>(plane(kH) - t.h);
    const Floats x0 = plane(kX0), y0 = plane(kY0), x1 = plane(kX1), y1 = plane(kY1);
    const Floats tx0 = broadcast(t.x0), ty0 = broadcast(t.y0), tx1 = broadcast(t.x1), ty1 = broadcast(t.y1);
    const Floats overlap_w = max_of(min_of(x1, tx1) - max_of(x0, tx0), Floats{});
    const Floats overlap_h = max_of(min_of(y1, ty1) - max_of(y0, ty0), Floats{});
    const Floats intersection = overlap_w * overlap_h;
    const Floats hull = (max_of(x1, tx1) - min_of(x0, tx0)) * (max_of(y1, ty1) - min_of(y0, ty0));
    const Floats both = plane(kArea) + t.area - intersection;
    const Floats giou = intersection / (both + giou_eps) - (hull - both) / (hull + giou_eps);
    return load<Floats>(class_cost + q) + l1_weight * l1 - giou_weight * giou;
  }
};

static DINO_INLINE void write_row(int64_t queries, float* row, const auto cost) {
  int64_t q = 0;
  for (; q + kQueries <= queries; q += kQueries) store(row + q, cost(q));
  if (q < queries) store_first<float>(row + q, cost(q), queries - q);
}

static bool any(const int32_t* mask, int64_t count) {
  int32_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= mask[i];
  return bits != 0;
}

static void fill_infinity(float* row, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] = __builtin_inff();
}

template <class F>
DINO_INLINE void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float64:
      return f(double{});
    case DType::bfloat16:
      return f(BFloat16{});
    case DType::float16:
      return f(Half{});
    default:
      return f(float{});
  }
}

static int64_t cost_scratch_bytes(int64_t most_labels) {
  return CostPlanes(Scratch{nullptr}, most_labels).bytes;
}

static int32_t run_cost(const MatchingCostParams& p, const CostTile& tile, void* scratch) {
  const CostImage& image = *tile.image;
  const CostPlanes planes(Scratch{static_cast<char*>(scratch)}, image.num_labels);
  const bool boxes = tile.source->boxes != nullptr;
  bool any_forbidden = false;
  if (image.num_labels > 0 && tile.queries > 0) {
    with_dtype(p.logits_dtype, [&]<class T>(T) { ClassCosts<T>(p, tile, planes).fill(); });
    if (boxes) with_dtype(p.boxes_dtype, [&]<class T>(T) { fill_boxes<T>(tile, planes); });
    any_forbidden = any(planes.forbidden(), tile.queries);
  }
  for (int64_t t = 0; t < image.T; ++t) {
    const CostTarget& target = image.targets[t];
    float* row = tile.cost + t * tile.cost_row_stride + tile.first_query;
    fill_infinity(row + tile.queries, tile.padding);
    if (target.class_row < 0) {
      fill_infinity(row, tile.queries);
      continue;
    }
    const float* class_cost = planes[kClassCost + target.class_row];
    if (boxes) {
      const CostFormula& f = p.formula;
      write_row(tile.queries, row,
                PairCosts{planes.first, class_cost, target, f.l1_weight, f.giou_weight, f.giou_eps});
    } else {
      write_row(tile.queries, row, [=](int64_t q) { return load<Floats>(class_cost + q); });
    }
    if (tile.extra) {
      const float* extra = tile.extra + t * tile.extra_row_stride + tile.first_query;
      for (int64_t q = 0; q < tile.queries; ++q) row[q] += extra[q];
    }
    if (any_forbidden) {
      const int32_t* forbidden = planes.forbidden();
      for (int64_t q = 0; q < tile.queries; ++q) row[q] = forbidden[q] ? __builtin_inff() : row[q];
    }
  }
  return (any_forbidden ? kNonfinitePrediction : 0) | (image.has_invalid ? kInvalidTarget : 0);
}

extern const CostKernels matching_cost;
const CostKernels matching_cost = {cost_scratch_bytes, run_cost};

}  // namespace dino_kernels::DINO_CPU_VARIANT
