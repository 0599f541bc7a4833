// What the CUDA library was compiled for and what the machine offers, for `dino_kernels.ops._core.libraries`
// to compare on loading. Plain C functions: they are called before it is known whether any CUDA op can run,
// and initialise no device.

#include <cuda_runtime_api.h>

#include "common/current_stream.h"
#include "common/launch.h"

#define DINO_KERNELS_TEXT(...) #__VA_ARGS__
#define DINO_KERNELS_EXPAND(...) DINO_KERNELS_TEXT(__VA_ARGS__)
#define DINO_KERNELS_EXPORT extern "C" __attribute__((visibility("default")))

// The CUDA runtime linked into this library: 13000 is 13.0.
DINO_KERNELS_EXPORT int dino_kernels_cuda_runtime_version() { return CUDART_VERSION; }

// The newest CUDA that the machine's driver supports, in the same form; 0 without a driver.
DINO_KERNELS_EXPORT int dino_kernels_cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

// The architectures compiled, such as "800,900".
DINO_KERNELS_EXPORT const char* dino_kernels_cuda_architectures() {
  return DINO_KERNELS_EXPAND(__CUDA_ARCH_LIST__);
}

// Whether PyTorch's current stream is available; launches need it.
DINO_KERNELS_EXPORT int dino_kernels_cuda_has_current_stream() {
  return dino_kernels::find_current_stream() != nullptr;
}

// Selects kernels as for a device of `count` multiprocessors from now on; 0: of its own number.
DINO_KERNELS_EXPORT void dino_kernels_cuda_assume_multiprocessors(int count) {
  dino_kernels::assumed_multiprocessors = count;
}
