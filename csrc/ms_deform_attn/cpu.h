// The CPU kernels, compiled once per instruction set.
#pragma once

#include "params.h"

namespace dino_kernels {

// One instruction set's kernels. Each works on a range of tasks, alone in its scratch memory.
struct CpuKernels {
  int64_t vector_bytes;
  int64_t (*forward_scratch)(const MSDeformAttnParams&);  // bytes, 64-byte aligned
  // Tasks: the B * Q queries.
  void (*forward)(const MSDeformAttnParams&, int64_t begin, int64_t end, void* scratch);
  // Gradients of positions, weights and reference points, and softmax_statistics. Tasks: the B * Q queries.
  void (*backward_samples)(const MSDeformAttnParams&, int64_t begin, int64_t end, void* scratch);
  int64_t (*backward_value_scratch)(const MSDeformAttnParams&);
  // Gradient of value. Tasks: the B * number_of_groups * M (image, level group, head) slices of it.
  void (*backward_value)(const MSDeformAttnParams&, int64_t begin, int64_t end, void* scratch);
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
