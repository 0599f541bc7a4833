// The one place that launches kernels: current stream, shared memory limit, launch check. Without nvcc, the
// same sources run under tests/cuda/emulation.
//
// Files with kernels include this and nothing of torch's tensors, which take longer to compile than they do.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "current_stream.h"

#if defined(__CUDACC__)
#define DINO_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define DINO_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(emulation::dynamic_shared())
#endif

namespace dino_kernels {

// The device properties that a launch configuration depends on.
struct DeviceFacts {
  int multiprocessors;
  int64_t shared_bytes;  // per block, at most
};

struct LaunchShape {
  const char* op;  // for messages
  int64_t blocks;
  int threads;
  int64_t shared_bytes;       // dynamic
  bool starts_early = false;  // may start before the previous kernel ends; see dependent_launch.cuh
};

// Set by tests and sanitizers, to select the kernels that a small or a large device would get; 0: the
// device's own number. The emulated device has one multiprocessor.
inline int assumed_multiprocessors = 0;

#if defined(__CUDACC__)

inline void check_cuda(const char* op, cudaError_t status) {
  STD_TORCH_CHECK(status == cudaSuccess, op, ": ", cudaGetErrorString(status));
}

// Facts of the device that a guard has made current.
inline DeviceFacts device_facts(const char* op, int device) {
  DeviceFacts facts{};
  int bytes = 0;
  check_cuda(op, cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check_cuda(op, cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  facts.shared_bytes = bytes;
  if (assumed_multiprocessors > 0) facts.multiprocessors = assumed_multiprocessors;
  return facts;
}

// Whether a kernel's code waits for the previous kernel. Code for older architectures does not, and a newer
// GPU runs such code if the library contains no other.
template <class... Parameters>
bool waits_by_itself(const char* op, void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes{};
  check_cuda(op, cudaFuncGetAttributes(&attributes, kernel));
  return attributes.ptxVersion >= 90;
}

template <class... Parameters>
void launch(const LaunchShape& shape, int device, void (*kernel)(Parameters...),
            const Parameters&... arguments) {
  STD_TORCH_CHECK(shape.blocks < (int64_t{1} << 31), shape.op, ": ", shape.blocks,
                  " blocks are more than a launch can have; split the batch");
  if (shape.blocks == 0) return;
  const CurrentStream current_stream = find_current_stream();
  STD_TORCH_CHECK(current_stream, shape.op, ": ", kNoCurrentStream);
  void* stream = nullptr;
  STD_TORCH_CHECK(current_stream(device, &stream) == 0, shape.op,
                  ": PyTorch returned no CUDA stream for device ", device);
  constexpr int64_t kDefaultSharedBytes = 48 << 10;
  if (shape.shared_bytes > kDefaultSharedBytes) {
    check_cuda(shape.op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              static_cast<int>(shape.shared_bytes)));
  }
  if (shape.starts_early && waits_by_itself(shape.op, kernel)) {
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &early;
    config.numAttrs = 1;
    check_cuda(shape.op, cudaLaunchKernelEx(&config, kernel, arguments...));
    return;
  }
  kernel<<<static_cast<unsigned>(shape.blocks), shape.threads, shape.shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  check_cuda(shape.op, cudaGetLastError());
}

#else

inline DeviceFacts device_facts(const char*, int) {
  return {assumed_multiprocessors > 0 ? assumed_multiprocessors : 1, 96 << 10};
}

template <class... Parameters>
void launch(const LaunchShape& shape, int, void (*kernel)(Parameters...), const Parameters&... arguments) {
  if (shape.blocks == 0) return;
  emulation::launch(static_cast<unsigned>(shape.blocks), shape.threads, shape.shared_bytes,
                    [&] { kernel(arguments...); });
}

#endif

}  // namespace dino_kernels
