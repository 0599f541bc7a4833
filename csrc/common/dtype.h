// The floating-point types of tensors.
#pragma once

#include <cstdint>

namespace dino_kernels {

enum class DType : int32_t { float32, float64, bfloat16, float16 };

}  // namespace dino_kernels
