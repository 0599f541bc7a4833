// The CPU kernels, compiled once per instruction set.
#pragma once

#include "../common/cpu_capability.h"
#include "params.h"

namespace dino_kernels {

// One kernel: it processes a range of tasks, with exclusive scratch memory.
struct CpuKernel {
  int64_t (*scratch_bytes)(const CpuParams&);  // 64-byte aligned
  void (*run)(const CpuParams&, int64_t begin, int64_t end, void* scratch);
};

// The kernels of one instruction set.
struct CpuKernels {
  int64_t vector_bytes;
  CpuKernel forward;  // tasks: the B * Q queries
  CpuKernel
      backward_samples;      // tasks: the B * Q queries; gradients of positions, weights and reference points
  CpuKernel backward_value;  // tasks: the B * number_of_groups * M slices of grad_value
};

DINO_DECLARE_CPU_VARIANTS(CpuKernels, ms_deform_attn)

}  // namespace dino_kernels
