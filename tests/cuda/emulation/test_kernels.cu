// Small kernels with known results, and some that are wrong: what tests/cuda/test_emulation.py runs.
//
// Each becomes a C function run_<name>(launch, in, out, n), which returns what went wrong, or null.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <exception>
#include <string>

#include "common/atomics.cuh"
#include "common/mma.cuh"

struct Launch {
  unsigned grid[3], block[3];
  size_t shared;
};

template <class Kernel>
const char* run(const Launch& l, const Kernel& kernel) {
  static thread_local std::string message;
  try {
    emulation::launch({l.grid[0], l.grid[1], l.grid[2]}, {l.block[0], l.block[1], l.block[2]}, l.shared,
                      kernel);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

#define KERNEL(name, In, Out)                                                                             \
  __global__ void name(const In* in, Out* out, int n);                                                    \
  extern "C" __attribute__((visibility("default"))) const char* run_##name(const Launch& l, const In* in, \
                                                                           Out* out, int n) {             \
    return run(l, [=] { name(in, out, n); });                                                             \
  }                                                                                                       \
  __global__ void name([[maybe_unused]] const In* in, [[maybe_unused]] Out* out, [[maybe_unused]] int n)

#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(emulation::dynamic_shared())

constexpr uint32_t kAll = 0xffffffffu;

// Sums.

KERNEL(block_sum_in_dynamic_shared_memory, int, int) {
  DYNAMIC_SHARED(int, sums);
  const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  sums[t] = i < n ? in[i] : 0;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) sums[t] += sums[t + half];
    __syncthreads();
  }
  if (t == 0) out[blockIdx.x] = sums[0];
}

KERNEL(block_sum_in_static_shared_memory, int, int) {
  __shared__ int of_warp[32];
  const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  int sum = i < n ? in[i] : 0;
  for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(kAll, sum, bit);
  if (t % 32 == 0) of_warp[t / 32] = sum;
  __syncthreads();
  const int warps = blockDim.x / 32;
  if (t == 0) {
    for (int w = 1; w < warps; ++w) sum += of_warp[w];
    out[blockIdx.x] = sum;
  }
}

// Warps. `n` is the width of a shuffle; one row of `out` for each operation.

KERNEL(shuffles, int, int) {
  const int t = threadIdx.x, count = blockDim.x, x = in[t];
  out[0 * count + t] = __shfl_sync(kAll, x, t * 7 + 3, n);
  out[1 * count + t] = __shfl_xor_sync(kAll, x, 5, n);
  out[2 * count + t] = __shfl_down_sync(kAll, x, 3, n);
  out[3 * count + t] = __shfl_up_sync(kAll, x, 3, n);
}

KERNEL(shuffles_of_8_bytes, double, double) { out[threadIdx.x] = __shfl_xor_sync(kAll, in[threadIdx.x], 1); }

// Lanes of a remainder by n go apart, and work together in masks of their own.
KERNEL(partial_masks, int, int) {
  const int t = threadIdx.x, count = blockDim.x, x = in[t];
  uint32_t mask = 0;
  for (int lane = t % 32 % n; lane < 32; lane += n) mask |= 1u << lane;
  for (int i = 0; i < t % n; ++i) __syncwarp(mask);  // some meet more often than others
  out[0 * count + t] = __reduce_add_sync(mask, x);
  out[1 * count + t] = __reduce_min_sync(mask, x);
  out[2 * count + t] = __reduce_max_sync(mask, x);
  out[3 * count + t] = static_cast<int>(__ballot_sync(mask, x > 0));
  out[4 * count + t] = __any_sync(mask, x > 0);
  out[5 * count + t] = __all_sync(mask, x > 0);
  out[6 * count + t] = static_cast<int>(__match_any_sync(mask, x));
}

// Threads from n on return at once. The others do not wait for them.
KERNEL(early_exits, int, int) {
  const int t = threadIdx.x, count = blockDim.x;
  if (t >= n) return;
  out[0 * count + t] = __syncthreads_count(in[t] > 0);
  out[1 * count + t] = __syncthreads_or(in[t] > 0);
  out[2 * count + t] = __syncthreads_and(in[t] > 0);
  out[3 * count + t] = static_cast<int>(__ballot_sync(kAll, 1));
}

// Atomics: histogram, a sum of floats by compare and swap, a list by exchange, and the rest.

KERNEL(histogram, int, int) { atomicAdd(out + in[blockIdx.x * blockDim.x + threadIdx.x], 1); }

KERNEL(largest_by_compare_and_swap, float, float) {
  int* const bits = reinterpret_cast<int*>(out);
  const float x = in[blockIdx.x * blockDim.x + threadIdx.x];
  int seen = *bits;
  while (__int_as_float(seen) < x) {
    const int before = atomicCAS(bits, seen, __float_as_int(x));
    if (before == seen) break;
    seen = before;
  }
}

KERNEL(linked_list, int, int) {  // out[0]: the head; out[1 + i]: what follows i
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[1 + i] = atomicExch(out, i);
}

KERNEL(other_atomics, int, int) {
  const int x = in[threadIdx.x];
  atomicMin(out + 0, x);
  atomicMax(out + 1, x);
  atomicAnd(out + 2, x);
  atomicOr(out + 3, x);
  atomicXor(out + 4, x);
  atomicSub(out + 5, x);
}

// From in[t] to out[t], then to a sum in shared memory; and four at a time.
KERNEL(add_floats_globally, float, float) { atomicAdd(out + threadIdx.x, in[threadIdx.x]); }
KERNEL(add_floats_in_shared_memory, float, float) {
  DYNAMIC_SHARED(float, sums);
  sums[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  atomicAdd(sums + threadIdx.x, in[threadIdx.x]);
  __syncthreads();
  out[threadIdx.x] = sums[threadIdx.x];
}
KERNEL(add_doubles, double, double) { atomicAdd(out + threadIdx.x, in[threadIdx.x]); }
template <bool kAtOnce>
void add_fours(const float* in, float* out, int n) {  // n: rows, to which threads add in turn
  const float* const x = in + 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  dino_kernels::add_four<kAtOnce>(out + 4 * (threadIdx.x % n), x[0], x[1], x[2], x[3]);
}
KERNEL(add_fours_at_once, float, float) { add_fours<true>(in, out, n); }
KERNEL(add_fours_one_by_one, float, float) { add_fours<false>(in, out, n); }
KERNEL(add_four_where_none_may, float, float) {
  DYNAMIC_SHARED(float, shared);
  if (n < 0) dino_kernels::add_integer(reinterpret_cast<long long*>(shared), 1);
  const float4 numbers = {1, 2, 3, 4};
  atomicAdd(reinterpret_cast<float4*>(n ? out + n : shared), numbers);
}

// in: the integers of one sum, then the scale; out: the sum in floating point.
KERNEL(sums_from_fixed_point_float32, long long, float) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n)
    out[i] = dino_kernels::from_fixed(in + 2 * i, __uint_as_float(static_cast<uint32_t>(in[2 * i + 1])), 0);
}
KERNEL(sums_from_fixed_point_float64, long long, double) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const long long* const x = in + 4 * i;
  out[i] = dino_kernels::from_fixed(x, __longlong_as_double(x[2]), __longlong_as_double(x[3]));
}

KERNEL(order_of_turns, int, int) { out[atomicAdd(out + n, 1)] = blockIdx.x * blockDim.x + threadIdx.x; }

// Numbers.

KERNEL(half_to_float, uint16_t, float) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = __half2float(__half{in[i]});
}
KERNEL(float_to_half, float, uint16_t) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = __float2half_rn(in[i]).bits;
}
KERNEL(bfloat16_to_float, uint16_t, float) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = __bfloat162float(__nv_bfloat16{in[i]});
}
KERNEL(float_to_bfloat16, float, uint16_t) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = __float2bfloat16_rn(in[i]).bits;
}

KERNEL(pairs_through_16_bits, float, float) {  // as bfloat16, as half
  const float2 x = {in[2 * threadIdx.x], in[2 * threadIdx.x + 1]};
  reinterpret_cast<float2*>(out)[threadIdx.x] = __bfloat1622float2(__float22bfloat162_rn(x));
  reinterpret_cast<float2*>(out)[blockDim.x + threadIdx.x] = __half22float2(__float22half2_rn(x));
}

// in: x, y, then what to do with them.
KERNEL(choose_bytes, uint32_t, uint32_t) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = __byte_perm(in[0], in[1], in[2 + i]);
}
KERNEL(shift_through_two_words, uint32_t, uint32_t) {
  out[threadIdx.x] = __funnelshift_l(in[0], in[1], in[2 + threadIdx.x]);
  out[blockDim.x + threadIdx.x] = __funnelshift_r(in[0], in[1], in[2 + threadIdx.x]);
}

KERNEL(round_down_to_integers, double, long long) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    out[2 * i] = dino_kernels::Number<float>::floor(static_cast<float>(in[i]));
    out[2 * i + 1] = dino_kernels::Number<double>::floor(in[i]);
  }
}

KERNEL(integers_of_floats, float, int) {  // down, to the nearest, towards zero
  out[3 * threadIdx.x] = __float2int_rd(in[threadIdx.x]);
  out[3 * threadIdx.x + 1] = __float2int_rn(in[threadIdx.x]);
  out[3 * threadIdx.x + 2] = __float2int_rz(in[threadIdx.x]);
}

template <class... T>
void layouts(int* out) {
  ((*out++ = sizeof(T), *out++ = alignof(T)), ...);
}
KERNEL(vector_layouts, int, int) {
  layouts<char2, char3, char4, uchar2, uchar4, short2, short3, short4, ushort2, ushort4, int2, int3, int4,
          uint2, uint4, float2, float3, float4, longlong2, longlong4, ulonglong2, double2, double3, double4,
          __half2, __nv_bfloat162>(out);
}

KERNEL(places, int, int) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] += static_cast<int>(block * 1000 + thread);
}

// Tensor cores. in: registers a0 to a3, b0, b1 of each lane, then four floats of d; out: d afterwards.

template <class T>
void multiply(const uint32_t* in, uint32_t* out) {
  const int count = blockDim.x, t = threadIdx.x;
  float d[4];
  memcpy(d, in + 6 * count + 4 * t, sizeof(d));
  const uint32_t* r = in + 6 * t;
  for (int i = 0; i < t % 3; ++i) __threadfence();  // lanes arrive at different times
  dino_kernels::mma_16x8x16<T>(d, r[0], r[1], r[2], r[3], r[4], r[5]);
  float none[4] = {};
  dino_kernels::mma_16x8x16<T>(none, 0, 0, 0, 0, 0, 0);  // others may still be at the product before
  memcpy(out + 4 * t, d, sizeof(d));
}
KERNEL(mma_bfloat16, uint32_t, uint32_t) { multiply<dino_kernels::BFloat16>(in, out); }
KERNEL(mma_half, uint32_t, uint32_t) { multiply<dino_kernels::Half>(in, out); }

// With registers a0, a1 and b0 alone.
template <class T>
void multiply_depth_8(const uint32_t* in, uint32_t* out) {
  const int count = blockDim.x, t = threadIdx.x;
  float d[4];
  memcpy(d, in + 6 * count + 4 * t, sizeof(d));
  for (int i = 0; i < t % 3; ++i) __threadfence();
  dino_kernels::mma_16x8x8<T>(d, in[6 * t], in[6 * t + 1], in[6 * t + 4]);
  float none[4] = {};
  dino_kernels::mma_16x8x8<T>(none, 0, 0, 0);
  memcpy(out + 4 * t, d, sizeof(d));
}
KERNEL(mma_depth_8_bfloat16, uint32_t, uint32_t) { multiply_depth_8<dino_kernels::BFloat16>(in, out); }
KERNEL(mma_depth_8_half, uint32_t, uint32_t) { multiply_depth_8<dino_kernels::Half>(in, out); }

KERNEL(mma_of_some_lanes, int, int) {
  float d[4] = {};
  if (static_cast<int>(threadIdx.x) < n) dino_kernels::mma_16x8x16<dino_kernels::Half>(d, 0, 0, 0, 0, 0, 0);
}

// in: which of the 32 rows of 16 bytes each lane brings, then the rows; out: r[0] to r[3] of each lane.
template <bool kTransposed, bool kBarrier>
void load_matrices(const uint32_t* in, uint32_t* out) {
  DYNAMIC_SHARED(uint4, rows);
  const int t = threadIdx.x;
  rows[t] = reinterpret_cast<const uint4*>(in + 32)[t];
  if (kBarrier) __syncwarp();
  uint32_t r[4];
  if (kTransposed) {
    dino_kernels::load_transposed_x4(r, rows + in[t]);
  } else {
    dino_kernels::load_matrix_x4(r, rows + in[t]);
  }
  if (kBarrier) __syncwarp();
  rows[t] = make_uint4(0, 0, 0, 0);  // the next that its owner does
  memcpy(out + 4 * t, r, sizeof(r));
}
KERNEL(ldmatrix, uint32_t, uint32_t) { load_matrices<false, true>(in, out); }
KERNEL(ldmatrix_transposed, uint32_t, uint32_t) { load_matrices<true, true>(in, out); }
KERNEL(ldmatrix_without_syncwarp, uint32_t, uint32_t) { load_matrices<false, false>(in, out); }
KERNEL(ldmatrix_of_unaligned_rows, int, int) {
  DYNAMIC_SHARED(char, rows);
  uint32_t r[4];
  dino_kernels::load_matrix_x4(r, rows + 8 * threadIdx.x);
}

// Wrong kernels.

// Right if threads run in order: then in[t - 1] has been written.
template <bool kBarrier>
void left_neighbour(const int* in, int* out) {
  DYNAMIC_SHARED(int, shared);
  const int t = threadIdx.x;
  shared[t] = in[t];
  if (kBarrier) __syncthreads();
  out[t] = t > 0 ? shared[t - 1] : 0;
}
KERNEL(with_syncthreads, int, int) { left_neighbour<true>(in, out); }
KERNEL(without_syncthreads, int, int) { left_neighbour<false>(in, out); }

template <bool kBarrier>
void left_lane(const int* in, int* out) {
  DYNAMIC_SHARED(int, shared);
  const int t = threadIdx.x;
  shared[t] = in[t];
  if (kBarrier) __syncwarp();
  out[t] = t % 32 > 0 ? shared[t - 1] : 0;
}
KERNEL(with_syncwarp, int, int) { left_lane<true>(in, out); }
KERNEL(without_syncwarp, int, int) { left_lane<false>(in, out); }

KERNEL(sum_of_earlier_blocks, int, int) {
  out[blockIdx.x] = in[blockIdx.x] + (blockIdx.x > 0 ? out[blockIdx.x - 1] : 0);
}

KERNEL(add_without_atomics, int, int) {
  const int before = *out;
  __threadfence();
  *out = before + 1;
}

KERNEL(divergent_barrier, int, int) {
  if (threadIdx.x < 10) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}
KERNEL(different_barriers, int, int) {
  if (threadIdx.x < 10) {
    __syncthreads();
  } else {
    __syncthreads_or(1);
  }
}
KERNEL(different_warp_operations, int, int) {
  if (threadIdx.x < 10) {
    __syncwarp();
  } else {
    __shfl_sync(kAll, 1, 0);
  }
}
KERNEL(foreign_mask, int, int) { __syncwarp(0x0000ffffu); }
KERNEL(uninitialised_shared_memory, float, float) {
  DYNAMIC_SHARED(float, shared);
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
  __syncthreads();
  shared[threadIdx.x] = 1;  // the next block does not see it
}
KERNEL(device_assertion, int, int) {
  if (in[blockIdx.x * blockDim.x + threadIdx.x] < 0) __trap();
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}
KERNEL(write_past_shared_memory, int, int) {
  DYNAMIC_SHARED(int, shared);
  shared[threadIdx.x + n] = 1;
}
