// Schemas of the native matching and of DETR's lists. The bodies are in cpu.cpp and cuda.cu, and in
// lists.cpp.
#pragma once

#include "../matching_cost/schemas.h"

namespace dino_kernels {

// Returns the results of linear_sum_assignment, with targets as rows and queries as columns.
template <class Library>
void define_hungarian_match(Library& m) {
  const std::string results = " -> (Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def(("hungarian_match(" + kCostSchema + ", str ties, bool full)" + results).c_str());
  m.def(
      "pack_targets(Tensor[] labels, Tensor[] boxes, float low, float high) -> (Tensor, Tensor, Tensor, int, "
      "int)");
  m.def("matched_pairs(Tensor query_idx, Tensor offsets) -> Tensor[]");
}

}  // namespace dino_kernels
