// The gradient of value: four rows per sample gain weight * grad_output. The rows are added one by one in
// global memory: in floating point, as vectors; or in fixed point, where sums are independent of their order,
// hence deterministic. cuda_tile_sums.cuh first combines the contributions of a tile of queries to the same
// rows.
//
// Sums are float32 or wider; `finish_kernel` converts them to value's dtype if it differs.
#pragma once

#include "../common/atomics.cuh"
#include "cuda_samples.cuh"

namespace dino_kernels {

// Where the sums of a row are, and how to add to them. kFixed: possibly in fixed point.
template <class A, bool kFixed>
struct Sums {
  static constexpr int kIntegers = sizeof(A) / 4;  // of one sum in fixed point

  bool fixed;
  int bytes;           // of one sum
  uint32_t stride;     // bytes from row to row
  int member_channel;  // the first that this lane of a group adds to
  char* first;         // of row 0 of the head, from that channel on
  A scale, fine_scale;

  // `together`: the number of neighbouring numbers that a lane adds at once in floating point.
  __device__ Sums(const CudaParams& p, int64_t b, int64_t m, int member, int together)
      : fixed(kFixed && p.bound != nullptr),
        bytes(fixed ? kIntegers * 8 : sizeof(A)),
        stride(static_cast<uint32_t>(p.M * p.D) * bytes),
        member_channel(fixed ? member : member * together),
        first(kept_whole(static_cast<char*>(p.sums) + ((b * p.S * p.M + m) * p.D + member_channel) * bytes)) {
    if (fixed) set_scale(p);
  }

  // No sum exceeds 2^(ilogb(bound) + 1 + headroom); its integer stays below 2^61. A bound that is not finite
  // makes every added number NaN.
  __device__ void set_scale(const CudaParams& p) {
    const A bound = *static_cast<const A*>(p.bound);
    // Nothing finer than the smallest normal number needs to be resolved.
    const int finest = sizeof(A) == 4 ? 126 : 1022;
    scale = bound == A(0)           ? A(1)
            : bound - bound == A(0) ? ldexp(A(1), min(finest, 60 - ilogb(bound) - p.sum_headroom))
                                    : static_cast<A>(NAN);
    fine_scale = ldexp(A(1), 62 - p.sum_headroom);
  }

  // Channels come in portions of V * `group`. A lane of a group adds to V of them: not to those it reads, but
  // such that the lanes together fill sectors of 32 bytes with each instruction. Calls each(i, channel, n): n
  // numbers from i on, 4 or 1, belong to the channels from member_channel + `channel` on, counted from the
  // first of the portion.
  template <int V, class Each>
  __device__ __forceinline__ void for_channels(int group, Each each) const {
    constexpr int kTogether = V % 4 == 0 ? 4 : 1;
    if (kTogether == 1 || (kFixed && fixed)) {
#pragma unroll
      for (int i = 0; i < V; ++i) each(i, i * group, std::integral_constant<int, 1>{});
    } else {
#pragma unroll
      for (int i = 0; i < V; i += kTogether) each(i, i * group, std::integral_constant<int, kTogether>{});
    }
  }

  // The output gradients of those channels, of `left` channels in the portion.
  template <class T, int V>
  __device__ __forceinline__ void load(const T* grad_output, int group, int left, A (&grad)[V]) const {
    for_channels<V>(group, [&](int i, int channel, auto together) {
      A numbers[together()] = {};
      channel += member_channel;
      if (channel < left) load_numbers<T, together()>(grad_output + channel, numbers);
#pragma unroll
      for (int j = 0; j < together(); ++j) grad[i + j] = numbers[j];
    });
  }

  // Adds to four sums of a row, `ahead` of the lane's first channel, in floating point.
  __device__ __forceinline__ void add_numbers(int32_t row, int ahead, const A (&numbers)[4]) const {
    char* const to = row_address(first, static_cast<uint32_t>(row), stride) + ahead * bytes;
    add_floats<4>(reinterpret_cast<A*>(to), numbers);
  }

  // row += weight * grad, from channel `ahead` on.
  template <int V>
  __device__ __forceinline__ void add(int32_t row, int ahead, int group, int left, A weight,
                                      const A (&grad)[V]) const {
    char* const to = row_address(first, static_cast<uint32_t>(row), stride) + ahead * bytes;
    for_channels<V>(group, [&](int i, int channel, auto together) {
      if (member_channel + channel >= left) return;
      char* const at = to + channel * bytes;
      if (kFixed && fixed) {
        add_fixed(reinterpret_cast<long long*>(at), weight * grad[i], scale, fine_scale);
      } else {
        A numbers[together()];
#pragma unroll
        for (int j = 0; j < together(); ++j) numbers[j] = weight * grad[i + j];
        add_floats<together()>(reinterpret_cast<A*>(at), numbers);
      }
    });
  }
};

// Converts sums to grad_value's dtype, four at a time: from the compute dtype, or from fixed point.
constexpr int kFinishThreads = 256;
template <class T>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const __grid_constant__ CudaParams p) {
  using A = typename Compute<T>::type;
  constexpr int kTogether = 4;
  const int64_t count = p.B * p.S * p.M * p.D, step = int64_t{gridDim.x} * kFinishThreads * kTogether;
  const Sums<A, true> sums(p, 0, 0, 0, 1);
  const auto one = [&](int64_t i) {
    const auto* integers = static_cast<const long long*>(p.sums) + i * sums.kIntegers;
    return sums.fixed ? from_fixed(integers, sums.scale, sums.fine_scale) : static_cast<const A*>(p.sums)[i];
  };
  T* const to = static_cast<T*>(p.grad_value);
  for (int64_t i = (int64_t{blockIdx.x} * kFinishThreads + threadIdx.x) * kTogether; i < count; i += step) {
    A numbers[kTogether];
    if (i + kTogether > count) {
      for (int64_t rest = i; rest < count; ++rest) to[rest] = narrow<T>(one(rest));
    } else {
      if (sums.fixed || sizeof(T) != 2) {  // only 16-bit values have separate float32 sums
        for (int v = 0; v < kTogether; ++v) numbers[v] = one(i + v);
      } else if constexpr (sizeof(T) == 2) {
        load_numbers<float, kTogether>(static_cast<const float*>(p.sums) + i, numbers);
      }
      store_numbers<T, kTogether>(to + i, numbers);
    }
  }
}

}  // namespace dino_kernels
