#include "cpu_problems.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace dino_kernels {
namespace {

const CostKernels& kernels() {
  constexpr const CostKernels* kVariants[] = DINO_CPU_VARIANTS(matching_cost);
  return *kVariants[widest_variant()];
}

bool is_valid_box(const float* box) {
  return std::all_of(box, box + 4, [](float x) { return std::isfinite(x); }) && box[2] >= 0 && box[3] >= 0;
}

CostTarget target_of(const float* box) {
  CostTarget t{};
  t.cx = box[0], t.cy = box[1], t.w = box[2], t.h = box[3];
  t.x0 = t.cx - t.w / 2, t.y0 = t.cy - t.h / 2;
  t.x1 = t.cx + t.w / 2, t.y1 = t.cy + t.h / 2;
  t.area = (t.x1 - t.x0) * (t.y1 - t.y0);
  return t;
}

}  // namespace

CostProblems::CostProblems(const char* op, const MatchingCostParams& params)
    : p(params), images(p.B), targets_(p.N) {
  labels_.reserve(p.N);  // the images point into it
  std::vector<int32_t> row_of_label(p.C, -1);
  for (int64_t image = 0; image < p.B; ++image) add_image(op, image, row_of_label);
  for (int64_t i = 0; i < p.num_sources; ++i) {
    for (int64_t set = 0; set < p.sources[i].sets; ++set) sets_.push_back({&p.sources[i], set});
  }
}

void CostProblems::add_image(const char* op, int64_t image_index, std::vector<int32_t>& row_of_label) {
  const int64_t start = p.offsets[image_index], end = p.offsets[image_index + 1];
  STD_TORCH_CHECK(0 <= start && start <= end && end <= p.N, op,
                  ": offsets must ascend from 0 to at most N = ", p.N, ", got ", start, " and ", end,
                  " for image ", image_index);
  CostImage& image = images[image_index];
  image = {targets_.data() + start, end - start, labels_.data() + labels_.size(), 0, false};
  for (int64_t n = start; n < end; ++n) {
    const float* box = p.target_boxes ? p.target_boxes + 4 * n : nullptr;
    if (box) targets_[n] = target_of(box);
    targets_[n].class_row = -1;
    const int64_t label = p.labels[n];
    if (label < 0 || label >= p.C || (box && !is_valid_box(box))) {
      image.has_invalid = true;
      continue;
    }
    if (row_of_label[label] < 0) {
      row_of_label[label] = static_cast<int32_t>(image.num_labels++);
      labels_.push_back(label);
    }
    targets_[n].class_row = row_of_label[label];
  }
  for (int64_t i = 0; i < image.num_labels; ++i) row_of_label[image.labels[i]] = -1;
  most_labels_ = std::max(most_labels_, image.num_labels);
  most_targets = std::max(most_targets, image.T);
}

int64_t CostProblems::scratch_bytes() const { return kernels().scratch_bytes(most_labels_); }

int64_t CostProblems::tiles() const { return std::max<int64_t>(1, (p.Q + kCostTile - 1) / kCostTile); }

int32_t CostProblems::run(int64_t set, int64_t image, int64_t tile, float* cost, int64_t row_stride,
                          void* scratch) const {
  const PredictionSource& source = *sets_[set].source;
  const int64_t first = tile * kCostTile, columns = std::min(kCostTile, p.Q - first);
  const int64_t queries = std::clamp<int64_t>(source.Q - first, 0, columns);
  const float* extra = nullptr;
  if (p.extra_cost) extra = p.extra_cost + set * p.extra_set_stride + p.offsets[image] * p.Q;
  return kernels().run(p,
                       {&source, sets_[set].index, image, &images[image], first, queries, columns - queries,
                        extra, p.Q, cost, row_stride},
                       scratch);
}

}  // namespace dino_kernels
