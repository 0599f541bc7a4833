// One kernel for each of the lines that only a GPU's compiler sees, and for what nvcc makes of the shared
// ones: tests/cuda/test_device_only_lines.py reads what they become.
#include "common/approximate.cuh"
#include "common/atomics.cuh"
#include "common/block.cuh"
#include "common/mma.cuh"
#include "common/number.h"

using namespace dino_kernels;

// Operands are words 0 to 5 of `in`, d is words 0 to 3 of `out`.
template <class T>
__device__ void multiply(const uint32_t* __restrict__ in, float* __restrict__ out) {
  float d[4] = {out[0], out[1], out[2], out[3]};
  mma_16x8x16<T>(d, in[0], in[1], in[2], in[3], in[4], in[5]);
  for (int i = 0; i < 4; ++i) out[i] = d[i];
}
extern "C" __global__ void mma_bfloat16(const uint32_t* __restrict__ in, float* __restrict__ out) {
  multiply<BFloat16>(in, out);
}
extern "C" __global__ void mma_half(const uint32_t* __restrict__ in, float* __restrict__ out) {
  multiply<Half>(in, out);
}

// With operands a0, a1 and b0 in words 0 to 2.
template <class T>
__device__ void multiply_depth_8(const uint32_t* __restrict__ in, float* __restrict__ out) {
  float d[4] = {out[0], out[1], out[2], out[3]};
  mma_16x8x8<T>(d, in[0], in[1], in[2]);
  for (int i = 0; i < 4; ++i) out[i] = d[i];
}
extern "C" __global__ void mma_depth_8_bfloat16(const uint32_t* __restrict__ in, float* __restrict__ out) {
  multiply_depth_8<BFloat16>(in, out);
}
extern "C" __global__ void mma_depth_8_half(const uint32_t* __restrict__ in, float* __restrict__ out) {
  multiply_depth_8<Half>(in, out);
}

template <bool kTransposed>
__device__ void load(uint32_t* out) {
  __shared__ uint4 rows[32];
  rows[threadIdx.x] = make_uint4(1, 2, 3, threadIdx.x);
  __syncwarp();
  uint32_t r[4];
  if (kTransposed) {
    load_transposed_x4(r, rows + threadIdx.x);
  } else {
    load_matrix_x4(r, rows + threadIdx.x);
  }
  for (int i = 0; i < 4; ++i) out[i] = r[i];
}
extern "C" __global__ void ldmatrix(uint32_t* out) { load<false>(out); }
extern "C" __global__ void ldmatrix_transposed(uint32_t* out) { load<true>(out); }

extern "C" __global__ void add_four_floats(float* out, float a) { add_four(out, a, a + 1, a + 2, a + 3); }
extern "C" __global__ void add_to_integer(long long* out, long long number) { add_integer(out, number); }
extern "C" __global__ void poison(long long* out) { poison_integer(out); }
// Through a pointer whose memory is unknown to the compiler.
template <class U>
__device__ U* hidden(U* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}
extern "C" __global__ void add_to_hidden_pointers(float* out, double* doubles, long long* integers) {
  const float three[3] = {1, 2, 3}, four[4] = {1, 2, 3, 4};
  const double two[2] = {1, 2};
  add_floats<3>(hidden(out + 1), three);
  add_floats<4>(hidden(out + 4), four);
  add_floats<2>(hidden(doubles), two);
  add_integer(hidden(integers) + threadIdx.x, 1);
  poison_integer(hidden(integers) + threadIdx.x);
}

extern "C" __global__ void from_fixed_float32(const long long* in, float* out, float scale) {
  *out = from_fixed(in, scale, 0);
}
extern "C" __global__ void from_fixed_float64(const long long* in, double* out, double scale, double fine) {
  *out = from_fixed(in, scale, fine);
}

extern "C" __global__ void floor_float32(const float* in, int32_t* out) { *out = Number<float>::floor(*in); }
extern "C" __global__ void floor_float64(const double* in, int64_t* out) {
  *out = Number<double>::floor(*in);
}

extern "C" __global__ void choose_bytes(uint32_t* out, uint32_t x, uint32_t y, uint32_t selector) {
  *out = __byte_perm(x, y, selector);
}

extern "C" __global__ void row_of_bytes(const char* base, uint32_t row, uint32_t stride, int* out) {
  *out = __ldg(reinterpret_cast<const int*>(row_address(kept_whole(base), row, stride)));
}
extern "C" __global__ void approximate_exp2(float* x) { *x = exp2_of(*x); }
extern "C" __global__ void approximate_reciprocal(float* x) { *x = reciprocal(*x); }
extern "C" __global__ void approximate_log2(float* x) { *x = log2_of(*x); }
