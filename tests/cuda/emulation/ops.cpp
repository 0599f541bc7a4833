// The emulated kernels as PyTorch ops, torch.ops.dino_kernels_emulated, on CPU tensors.
#include <torch/csrc/stable/library.h>

#include "common/launch.h"
#include "hungarian_match/schemas.h"
#include "linear_sum_assignment/schemas.h"
#include "matching_cost/schemas.h"
#include "ms_deform_attn/schemas.h"

STABLE_TORCH_LIBRARY(dino_kernels_emulated, m) {
  dino_kernels::define_ms_deform_attn(m);
  dino_kernels::define_matching_cost(m);
  dino_kernels::define_linear_sum_assignment(m);
  dino_kernels::define_hungarian_match(m);
}

extern "C" __attribute__((visibility("default"))) void emulation_set_multiprocessors(int count) {
  dino_kernels::assumed_multiprocessors = count;
}
