// Schemas of the native deformable attention ops, of which each serves both ops of this package: with
// reference points, positions and weights are raw offsets and logits. The bodies are in cpu.cpp and cuda.cu.
#pragma once

#include <string>

namespace dino_kernels {

template <class Library>
void define_ms_deform_attn(Library& m) {
  const std::string inputs =
      "Tensor value, Tensor? spatial_shapes, int[] level_sizes, Tensor? level_start_index, int[] num_points, "
      "Tensor positions, Tensor weights, Tensor? reference_points, Tensor? value_mask";
  m.def(("ms_deform_attn_forward(" + inputs + ") -> Tensor").c_str());
  m.def(("ms_deform_attn_backward(Tensor grad_output, " + inputs +
         ", bool[] wanted, Tensor? sum_bound) -> (Tensor, Tensor, Tensor, Tensor)")
            .c_str());
}

}  // namespace dino_kernels
