// Host-side checks of tensors, shared by the entry points of every op.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

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

// A contiguous tensor without data on the device of `like`. new_empty() of a stable tensor takes several
// times longer, because it passes the dispatcher.
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  int64_t strides[8];
  int64_t stride = 1;
  STD_TORCH_CHECK(shape.size() <= 8, "new_tensor: too many dimensions");
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape.begin()[i], 1);
  }
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(),
                                                         strides, static_cast<int32_t>(dtype), device_type,
                                                         device_index, &made));
  return Tensor(made);
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
