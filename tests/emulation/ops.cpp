// The emulated kernels as PyTorch ops, torch.ops.dino_kernels_emulated, on CPU tensors.
#include <torch/csrc/stable/library.h>

#include "../../csrc/common/launch.h"
#include "../../csrc/ms_deform_attn/schemas.h"

STABLE_TORCH_LIBRARY(dino_kernels_emulated, m) { dino_kernels::define_ms_deform_attn(m); }

extern "C" __attribute__((visibility("default"))) void emulation_set_multiprocessors(int count) {
  dino_kernels::emulated_multiprocessors = count;
}
