// The CPU kernels, compiled once per instruction set.
#pragma once

#include "../common/cpu_capability.h"
#include "params.h"

namespace dino_kernels {

// A range of levels whose grad_value one task accumulates.
struct LevelGroup {
  int64_t first_row;    // of S
  int64_t rows;         // of S
  int64_t first_point;  // of K
  int64_t points;       // of K
};

// Additional parameters of the CPU kernels.
struct CpuParams : MSDeformAttnParams {
  const Level* levels;       // [L]
  const LevelGroup* groups;  // [number_of_groups]
  int64_t number_of_groups;
  int64_t heads_per_table;  // neighbouring heads whose samples fill one vector, or 1
  // The tasks of forward and backward_samples are the B * M * Q heads of queries, in this order, instead of
  // the B * Q queries; the rows of one head of value are copied together first. Needs heads_per_table = 1,
  // and no gradient of reference points.
  bool by_head;
  // Written by backward_samples and read by gather_value, [B, M / heads_per_table, Q, 4, samples of a table].
  void* corner_rows;     // of S, or -1; int32, or int64 for float64
  void* corner_weights;  // bilinear weight times attention, compute dtype
  int64_t parts;         // ranges of rows that gather_value takes as separate tasks
};

// How many neighbouring heads' samples fill one vector; 1 if a head's do not divide it.
inline int64_t heads_per_table(const MSDeformAttnParams& p, int64_t lanes) {
  int64_t heads = p.K > 0 && lanes % p.K == 0 ? lanes / p.K : 1;
  while (p.M % heads != 0) heads /= 2;
  return heads;
}

// One kernel: it processes a range of tasks, with exclusive scratch memory.
struct CpuKernel {
  int64_t (*scratch_bytes)(const CpuParams&);  // 64-byte aligned
  void (*run)(const CpuParams&, int64_t begin, int64_t end, void* scratch);
};

// The kernels of one instruction set.
struct CpuKernels {
  int64_t vector_bytes;
  CpuKernel forward;  // tasks: the B * Q queries, or by head
  // Tasks: the B * Q queries, or by head; gradients of positions, weights and reference points, and the
  // corners.
  CpuKernel backward_samples;
  CpuKernel scatter_value;  // tasks: the B * number_of_groups * M slices of grad_value
  CpuKernel gather_value;   // tasks: the B * M * parts slices of grad_value
};

DINO_DECLARE_CPU_VARIANTS(CpuKernels, ms_deform_attn)

// The kernels for a call: the widest vectors that divide the channels of a head.
const CpuKernels& kernels_for(const CpuParams& p);

// How many numbers of the compute dtype fill one vector of these kernels.
int64_t lanes_of(const CpuParams& p, const CpuKernels& kernels);

// From so many corners per row of value on, the samples of an encoder.
constexpr int64_t kManyCornersPerRow = 8;

// Whether reading the rows of one head at a time saves more than copying them costs.
bool pays_by_head(const CpuParams& p);

// Minimum number of queries per task: below it, starting a thread costs more than the work.
int64_t query_grain(const CpuParams& p);

}  // namespace dino_kernels
