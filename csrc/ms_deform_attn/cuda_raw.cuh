// Positions and weights as passed: in value's dtype or in the compute dtype.
#pragma once

#include "../common/vec.cuh"
#include "params.h"

namespace dino_kernels {

// A number in value's dtype or the compute dtype.
template <class T>
__device__ __forceinline__ typename Compute<T>::type load_raw(const void* from, bool as_value) {
  using A = typename Compute<T>::type;
  if (as_value) {
    A number[1];
    load_numbers<T, 1>(static_cast<const T*>(from), number);
    return number[0];
  }
  return __ldg(static_cast<const A*>(from));
}

template <class U, class A>
__device__ __forceinline__ void load_two(const void* from, A& x, A& y) {
  A pair[2];
  load_numbers<U, 2>(static_cast<const U*>(from), pair);
  x = pair[0];
  y = pair[1];
}

// Two numbers, loaded together if they are `aligned`.
template <class T, class A>
__device__ __forceinline__ void load_raw_pair(const void* from, bool as_value, bool aligned, A& x, A& y) {
  if (!aligned) {
    x = load_raw<T>(from, as_value);
    y = load_raw<T>(static_cast<const char*>(from) + (as_value ? sizeof(T) : sizeof(A)), as_value);
  } else if (as_value) {
    load_two<T>(from, x, y);
  } else {
    load_two<A>(from, x, y);
  }
}

// Numbers in value's dtype or the compute dtype, from one item's first on.
template <class T>
struct RawNumbers {
  using A = typename Compute<T>::type;
  const char* first;
  bool as_value;

  __device__ RawNumbers(const Rows& rows, bool as_value_, int64_t b, int64_t q, int64_t column)
      : first(static_cast<const char*>(rows.data) +
              (b * rows.batch_stride + q * rows.row_stride + column) *
                  static_cast<int64_t>(as_value_ ? sizeof(T) : sizeof(A))),
        as_value(as_value_) {}
  __device__ __forceinline__ const char* at(int i) const {
    return first + i * static_cast<int>(as_value ? sizeof(T) : sizeof(A));
  }
  __device__ __forceinline__ A load(int i) const { return load_raw<T>(at(i), as_value); }
};

template <class T, class A>
__device__ __forceinline__ void store_raw(void* to, bool as_value, int64_t i, A number) {
  if (as_value) {
    static_cast<T*>(to)[i] = narrow<T>(number);
  } else {
    static_cast<A*>(to)[i] = number;
  }
}

}  // namespace dino_kernels
