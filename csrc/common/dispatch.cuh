// From a dtype known at run time to a template parameter.
#pragma once

#include "dtype.h"
#include "vec.cuh"

namespace dino_kernels {

template <class T>
struct DTypeTag {
  using type = T;
};

// Calls `run` with the type for a dtype.
template <class Run>
void with_type(DType dtype, Run run) {
  switch (dtype) {
    case DType::float32:
      return run(DTypeTag<float>{});
    case DType::float64:
      return run(DTypeTag<double>{});
    case DType::bfloat16:
      return run(DTypeTag<BFloat16>{});
    case DType::float16:
      return run(DTypeTag<Half>{});
  }
}

}  // namespace dino_kernels
