// Host-side checks of tensors, shared by the entry points of every op.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "dtype.h"

namespace dino_kernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      STD_TORCH_CHECK(false, op, ": ", name, " must be float32, float64, bfloat16 or float16");
  }
}

// Where the CPU library's tensors must be; see OnCuda in device.h.
struct OnCpu {
  static constexpr const char* kHere = "the CPU";
  static bool is_here(const Tensor& tensor) { return tensor.is_cpu(); }
};

// A `Call` is one library's half of an op: its name, and where its tensors must be.
template <class Call>
void check_place(const Call& call, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(Call::is_here(tensor), call.op, ": ", name, " must be on ", Call::kHere);
}

// The data of a contiguous tensor of `count` elements; null if it is empty.
template <class T, class Call>
const T* contiguous_data(const Call& call, const char* name, const Tensor& tensor, ScalarType dtype,
                         int64_t count) {
  check_place(call, name, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == dtype && tensor.is_contiguous() && tensor.numel() == count, call.op,
                  ": ", name, " must be contiguous, of its documented dtype, with ", count, " numbers");
  return count > 0 ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

}  // namespace dino_kernels
