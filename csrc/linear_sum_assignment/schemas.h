// Schema of the native assignment. The bodies are in cpu.cpp and cuda.cu.
#pragma once

namespace dino_kernels {

// Returns columns, status, objective, row and column duals; the last three are empty unless `full`.
template <class Library>
void define_linear_sum_assignment(Library& m) {
  m.def(
      "linear_sum_assignment(Tensor cost, Tensor? offsets, Tensor? sizes, Tensor? notes, int max_rows, "
      "bool maximize, str ties, bool full) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace dino_kernels
