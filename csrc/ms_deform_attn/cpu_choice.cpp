// Choice of the kernels and of the size of their tasks, for every library that runs them.
#include <algorithm>

#include "cpu.h"

namespace dino_kernels {

static int64_t compute_bytes(const CpuParams& p) { return p.dtype == DType::float64 ? 8 : 4; }

// A partial vector costs more than a narrower one.
const CpuKernels& kernels_for(const CpuParams& p) {
  constexpr const CpuKernels* kVariants[] = DINO_CPU_VARIANTS(ms_deform_attn);
  const int64_t widest = widest_variant();
  for (int64_t variant = widest; variant >= 0; --variant) {
    if (p.D % lanes_of(p, *kVariants[variant]) == 0) return *kVariants[variant];
  }
  return *kVariants[widest];
}

int64_t lanes_of(const CpuParams& p, const CpuKernels& kernels) {
  return kernels.vector_bytes / compute_bytes(p);
}

bool pays_by_head(const CpuParams& p) {
  return p.Q * p.K * 4 >= kManyCornersPerRow * p.S && p.M > 1 && p.heads_per_table == 1 &&
         !p.grad_reference_points;
}

int64_t query_grain(const CpuParams& p) {
  constexpr int64_t kCornerChannels = 32768;
  return std::max<int64_t>(1, kCornerChannels / std::max<int64_t>(1, p.M * p.K * p.D));
}

}  // namespace dino_kernels
