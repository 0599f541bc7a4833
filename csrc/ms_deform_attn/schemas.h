// Schemas of the native deformable attention ops. The bodies are in cpu.cpp and cuda.cu.
#pragma once

#include <string>

namespace dino_kernels {

template <class Library>
void define_ms_deform_attn(Library& m) {
  const std::string levels =
      "Tensor? spatial_shapes, int[] level_sizes, Tensor? level_start_index, int[] num_points, ";
  const std::string classic =
      "Tensor value, " + levels + "Tensor sampling_locations, Tensor attention_weights";
  const std::string fused = "Tensor value, " + levels +
                            "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
                            "Tensor? value_mask";
  const std::string backward = ", bool[] wanted, Tensor? sum_bound) -> (Tensor, Tensor, Tensor";
  m.def(("ms_deform_attn_forward(" + classic + ") -> Tensor").c_str());
  m.def(("ms_deform_attn_backward(Tensor grad_output, " + classic + backward + ")").c_str());
  m.def(("fused_ms_deform_attn_forward(" + fused + ") -> Tensor").c_str());
  m.def(("fused_ms_deform_attn_backward(Tensor grad_output, " + fused + backward + ", Tensor)").c_str());
}

}  // namespace dino_kernels
