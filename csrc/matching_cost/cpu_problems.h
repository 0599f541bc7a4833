// The G * B problems of a batch in the CPU kernel's form: data shared by all sets is computed once per call.
#pragma once

#include <vector>

#include "cpu.h"

namespace dino_kernels {

class CostProblems {
 public:
  // `op` is the name for errors.
  CostProblems(const char* op, const MatchingCostParams& p);

  const MatchingCostParams& p;
  std::vector<CostImage> images;  // [B]
  int64_t most_targets = 0;       // of an image

  int64_t scratch_bytes() const;

  // Computes the existing columns of [kCostTile * tile, kCostTile * (tile + 1)) of one problem's cost [T, Q],
  // and returns bits of its status.
  int32_t run(int64_t set, int64_t image, int64_t tile, float* cost, int64_t row_stride, void* scratch) const;
  int64_t tiles() const;  // of a problem, at least one

 private:
  struct Set {
    const PredictionSource* source;
    int64_t index;  // in the source
  };

  void add_image(const char* op, int64_t image, std::vector<int32_t>& row_of_label);

  std::vector<CostTarget> targets_;  // [N]
  std::vector<int64_t> labels_;      // of all images
  std::vector<Set> sets_;            // [G]
  int64_t most_labels_ = 0;          // of an image
};

}  // namespace dino_kernels
