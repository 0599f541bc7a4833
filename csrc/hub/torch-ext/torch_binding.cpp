// Schemas of the kernel's ops, in the namespace of this build; cpu.cpp and cuda.cu register their kernels
// there.
#include <torch/csrc/stable/library.h>

#include "../csrc/ms_deform_attn/schemas.h"
#include "registration.h"

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) { dino_kernels::define_ms_deform_attn(ops); }

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
