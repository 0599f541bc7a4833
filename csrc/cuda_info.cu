// What the CUDA library was compiled for and what the machine offers, for `dino_kernels._native` to compare
// at load. Plain C functions: they are called before it is known whether any CUDA op can run, and initialise
// no device.

#include <cuda_runtime_api.h>

#define DINO_KERNELS_TEXT(...) #__VA_ARGS__
#define DINO_KERNELS_EXPAND(...) DINO_KERNELS_TEXT(__VA_ARGS__)
#define DINO_KERNELS_EXPORT extern "C" __attribute__((visibility("default")))

// The CUDA runtime linked into this library: 13000 is 13.0.
DINO_KERNELS_EXPORT int dino_kernels_cuda_runtime_version() { return CUDART_VERSION; }

// The newest CUDA the machine's driver supports, in the same form; 0 without a driver.
DINO_KERNELS_EXPORT int dino_kernels_cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

// The architectures compiled, such as "800,900".
DINO_KERNELS_EXPORT const char* dino_kernels_cuda_architectures() {
  return DINO_KERNELS_EXPAND(__CUDA_ARCH_LIST__);
}
