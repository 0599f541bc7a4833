// The device of a call's tensors, and the library that a CUDA source registers its ops in. Without nvcc, it
// is that of tests/cuda/emulation.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__CUDACC__)
#define DINO_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(dino_kernels_native, CUDA, m)
#else
#define DINO_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(dino_kernels_emulated, CPU, m)
#endif

namespace dino_kernels {

// Where the CUDA library's tensors must be.
struct OnCuda {
  static constexpr const char* kHere = "a CUDA device";
#if defined(__CUDACC__)
  static bool is_here(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }
#else
  static bool is_here(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }
#endif
};

// Makes a tensor's device current for its lifetime.
class OnDevice {
 public:
#if defined(__CUDACC__)
  explicit OnDevice(const torch::stable::Tensor& tensor)
      : index(tensor.get_device_index()), guard_(tensor.get_device_index()) {}
  const int index;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
#else
  explicit OnDevice(const torch::stable::Tensor&) {}
  const int index = 0;
#endif
};

}  // namespace dino_kernels
