// The interface between cuda.cu and the kernels, which are compiled once per dtype of value.
#pragma once

#include "../common/launch.h"
#include "cuda_params.h"

namespace dino_kernels {

// One call on one device.
struct CudaLaunch {
  const char* op;
  int device;
  DeviceFacts facts;
};

// Compiled once per T, in cuda_launch.cu.
template <class T>
void launch_forward(const CudaParams& p, const CudaLaunch& where);
template <class T>
void launch_backward(const CudaParams& p, const CudaLaunch& where);
template <class T>
void launch_finish(const CudaParams& p, const CudaLaunch& where);

}  // namespace dino_kernels
