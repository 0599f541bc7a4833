// A kernel that starts while the previous one on the stream still runs, if a launch allows it
// (LaunchShape::starts_early). Requires sm_90; on older GPUs and in the emulation, kernels run one after
// another.
#pragma once

#include <cuda_runtime.h>

namespace dino_kernels {

// From here on the next kernel may start, once all blocks of this one have reached this call or ended.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until all previous kernels have ended and their writes are visible. A kernel with an early start
// calls it in every thread, before it reads these results and before it writes anything.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace dino_kernels
