// Schema of the native matching cost. The bodies are in cpu.cpp and cuda.cu.
#pragma once

#include <string>

namespace dino_kernels {

// Arguments shared by matching_cost and hungarian_match.
inline const std::string kCostSchema =
    "Tensor[] logits, Tensor[] boxes, Tensor labels, Tensor? target_boxes, Tensor offsets, "
    "Tensor? extra_cost, int max_targets, str class_cost, float[] formula";

// Returns the cost [G, N, Q] and status bits [G, B, n] int32; the n entries of a problem must be combined.
template <class Library>
void define_matching_cost(Library& m) {
  m.def(("matching_cost(" + kCostSchema + ") -> (Tensor, Tensor)").c_str());
}

}  // namespace dino_kernels
