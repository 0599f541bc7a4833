// Step 4 in CUDA: a warp sums the rows of one item. A lane has a channel: 32 lanes read a row in one access
// of 128 bytes.
//
// All lanes repeat softmax and geometry. The real kernel locates one sample per lane instead and shares the
// result.
#include "call.h"

__global__ void rows_kernel(const Call c) {
  const int64_t item = blockIdx.x, m = item % c.M, query = item / c.M, b = query / c.Q;
  const float* logits = static_cast<const float*>(c.logits) + item * c.K;
  const float* offsets = static_cast<const float*>(c.offsets) + item * c.K * 2;
  float largest = -INFINITY, total = 0;
  for (int64_t k = 0; k < c.K; ++k) largest = fmaxf(largest, logits[k]);
  for (int64_t k = 0; k < c.K; ++k) total += expf(logits[k] - largest);
  for (int64_t d = threadIdx.x; d < c.D; d += blockDim.x) {
    float sum = 0;
    for (int64_t l = 0, k = 0; l < c.L; ++l) {
      const Level level = c.levels[l];
      const float* frame = c.frame + (query * c.L + l) * 4;
      for (const int64_t end = k + level.points; k < end; ++k) {
        const float x = frame[0] + frame[2] * offsets[2 * k], y = frame[1] + frame[3] * offsets[2 * k + 1];
        const bool inside = x >= -1 && x < level.width && y >= -1 && y < level.height;  // false for NaN
        if (!inside) continue;  // the same for all lanes: none waits for another
        const int64_t x0 = static_cast<int64_t>(floorf(x)), y0 = static_cast<int64_t>(floorf(y));
        float sample = 0;
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t column = x0 + corner % 2, row = y0 + corner / 2;
          if (column < 0 || column >= level.width || row < 0 || row >= level.height) continue;
          const int64_t s = b * c.S + level.start + row * level.width + column;
          if (c.mask && c.mask[s]) continue;
          const float near = (1 - fabsf(x - column)) * (1 - fabsf(y - row));
          sample += near * static_cast<const float*>(c.value)[(s * c.M + m) * c.D + d];
        }
        sum += expf(logits[k] - largest) / total * sample;
      }
    }
    static_cast<float*>(c.output)[item * c.D + d] = sum;
  }
}

#ifdef __CUDACC__
// Returns CUDA's error code; every pointer of the call is the device's.
extern "C" int forward(const Call& c, cudaStream_t stream) {
  rows_kernel<<<static_cast<unsigned>(c.B * c.Q * c.M), 32, 0, stream>>>(c);
  return cudaGetLastError();
}
#endif
