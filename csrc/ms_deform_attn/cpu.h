// The CPU kernels, compiled once per instruction set.
#pragma once

#include "params.h"

namespace dino_kernels {

// One kernel: it works on a range of tasks, alone in its scratch memory.
struct CpuKernel {
  int64_t (*scratch_bytes)(const CpuParams&);  // 64-byte aligned
  void (*run)(const CpuParams&, int64_t begin, int64_t end, void* scratch);
};

// One instruction set's kernels.
struct CpuKernels {
  int64_t vector_bytes;
  CpuKernel forward;  // tasks: the B * Q queries
  CpuKernel
      backward_samples;      // tasks: the B * Q queries; gradients of positions, weights and reference points
  CpuKernel backward_value;  // tasks: the B * number_of_groups * M slices of grad_value
};

namespace plain {
extern const CpuKernels ms_deform_attn;
}
#if defined(DINO_KERNELS_X86)
namespace avx2 {
extern const CpuKernels ms_deform_attn;
}
namespace avx512 {
extern const CpuKernels ms_deform_attn;
}
#endif

// The widest instruction set that this processor has: "avx512", "avx2" or "plain".
const char* cpu_capability();

}  // namespace dino_kernels
