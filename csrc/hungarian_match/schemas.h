// Schema of the native matching. The bodies are in cpu.cpp and cuda.cu.
#pragma once

#include "../matching_cost/schemas.h"

namespace dino_kernels {

// Returns the results of linear_sum_assignment, with targets as rows and queries as columns.
template <class Library>
void define_hungarian_match(Library& m) {
  const std::string results = " -> (Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def(("hungarian_match(" + kCostSchema + ", str ties, bool full)" + results).c_str());
}

}  // namespace dino_kernels
