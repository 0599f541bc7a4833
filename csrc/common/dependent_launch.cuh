// A kernel that starts while the one before it on the stream still runs, where a launch allows it
// (LaunchShape::starts_early). From sm_90 on; before, and in the emulation, kernels follow one another
// anyway.
#pragma once

#include <cuda_runtime.h>

namespace dino_kernels {

// From here on the next kernel may start, once all blocks of this one have come here or have ended.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Until all kernels before this one have ended and what they wrote can be read. A kernel with an early start
// calls it in every thread, before it reads what they write and before it writes anything.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace dino_kernels
