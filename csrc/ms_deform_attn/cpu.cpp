// CPU entry points: level table, tasks over ATen's threads.
#include "cpu.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "../common/tasks.h"
#include "arguments.h"

namespace dino_kernels {
namespace {

// One call's parameters and the data they point to.
struct CpuCall : OnCpu {
  CpuParams params{};
  std::vector<Level> levels;
  std::vector<LevelGroup> groups;
  bool packed = true;  // levels fill S one after the other, without gaps
  const char* op;

  CpuCall(const char* op_, const Tensor&) : op(op_) {}
  void set_levels(const LevelArguments& given);
  Tensor run_forward(const Tensor& value);
  Tensor gradient_of_reference_points(const Tensor& reference_points, bool wanted) {
    return gradient_of(reference_points, wanted);
  }
  Tensor run_backward(const Tensor& value, bool value_wanted, const std::optional<Tensor>& sum_bound);

 private:
  std::vector<int64_t> integers(const char* name, const Tensor& tensor) const;
  void run_heads(const CpuKernel& kernel) const;
  void scatter_value(const CpuKernels& kernels);
  void gather_value(const CpuKernels& kernels);
};

std::vector<int64_t> CpuCall::integers(const char* name, const Tensor& tensor) const {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), op, ": ", name,
                  " must be a contiguous CPU tensor");
  const int64_t count = tensor.numel();
  std::vector<int64_t> values(count);
  if (tensor.scalar_type() == ScalarType::Long) {
    const auto* from = static_cast<const int64_t*>(tensor.const_data_ptr());
    std::copy(from, from + count, values.begin());
  } else {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Int, op, ": ", name, " must be int64 or int32");
    const auto* from = static_cast<const int32_t*>(tensor.const_data_ptr());
    std::copy(from, from + count, values.begin());
  }
  return values;
}

void CpuCall::set_levels(const LevelArguments& given) {
  CpuParams& p = params;
  const std::vector<int64_t> sizes = given.shapes ? integers("spatial_shapes", *given.shapes) : given.sizes;
  p.L = static_cast<int64_t>(sizes.size()) / 2;
  STD_TORCH_CHECK(static_cast<int64_t>(given.points.size()) == p.L, op,
                  ": num_points must have one count a level");
  std::vector<int64_t> starts;
  if (given.starts) starts = integers("level_start_index", *given.starts);
  STD_TORCH_CHECK(!given.starts || static_cast<int64_t>(starts.size()) == p.L, op,
                  ": level_start_index must have one entry a level");
  int64_t rows = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    const int64_t height = sizes[2 * l], width = sizes[2 * l + 1];
    check_level(*this, l, height, width);
    const int64_t start = given.starts ? starts[l] : rows;
    STD_TORCH_CHECK(start >= 0 && start + height * width <= p.S, op, ": level ", l, " (", height, " x ",
                    width, ") starts at row ", start, " and ends after the S = ", p.S,
                    " rows of value; check spatial_shapes and level_start_index");
    packed = packed && start == rows;
    levels.push_back(
        {static_cast<int32_t>(height), static_cast<int32_t>(width), start, p.K, given.points[l]});
    rows += height * width;
    p.K += given.points[l];
  }
  packed = packed && rows == p.S;
  if (!given.starts) check_rows(*this, rows);
  p.levels = levels.data();
}

void run(const CpuParams& p, const CpuKernel& kernel, int64_t tasks, int64_t grain) {
  if (tasks == 0) return;
  run_ranges(tasks, grain, kernel.scratch_bytes(p),
             [&](int64_t begin, int64_t end, void* scratch) { kernel.run(p, begin, end, scratch); });
}

// Not by head if a thread would get less than half a head.
void CpuCall::run_heads(const CpuKernel& kernel) const {
  CpuParams p = params;  // the other kernels have tasks of their own
  p.by_head = pays_by_head(p) && 2 * p.B * p.M >= torch::stable::get_num_threads();
  run(p, kernel, p.B * p.Q * (p.by_head ? p.M : 1), query_grain(p) * (p.by_head ? p.M : 1));
}

Tensor CpuCall::run_forward(const Tensor& value) {
  CpuParams& p = params;
  Tensor output = torch::stable::new_empty(value, {p.B, p.Q, p.M * p.D});
  if (output.numel() == 0) return output;
  p.output = output.mutable_data_ptr();
  const CpuKernels& kernels = kernels_for(p);
  p.heads_per_table = heads_per_table(p, lanes_of(p, kernels));
  run_heads(kernels.forward);
  return output;
}

// A task is a head, or one level of a head if there are fewer (image, head) pairs than threads.
void CpuCall::scatter_value(const CpuKernels& kernels) {
  CpuParams& p = params;
  if (packed && p.B * p.M < torch::stable::get_num_threads()) {
    for (const Level& level : levels) {
      groups.push_back({level.start, int64_t{level.height} * level.width, level.first_point, level.points});
    }
  } else {
    groups.push_back({0, p.S, 0, p.K});
  }
  p.groups = groups.data();
  p.number_of_groups = static_cast<int64_t>(groups.size());
  p.heads_per_table = 1;
  run(p, kernels.scatter_value, p.B * p.number_of_groups * p.M, 1);
}

// A task is a head, or some rows of a head if there are fewer (image, head) pairs than threads.
void CpuCall::gather_value(const CpuKernels& kernels) {
  CpuParams& p = params;
  const int64_t heads = p.B * p.M, threads = torch::stable::get_num_threads();
  p.parts = (threads + heads - 1) / heads;
  run(p, kernels.gather_value, heads * p.parts, 1);
}

// With few samples per row, as in a decoder, filling sums with zeros costs more than the additions. Sums
// follow the order of the queries for any number of threads, so there is no separate deterministic mode.
Tensor CpuCall::run_backward(const Tensor& value, bool value_wanted, const std::optional<Tensor>&) {
  CpuParams& p = params;
  const CpuKernels& kernels = kernels_for(p);
  const int64_t lanes = lanes_of(p, kernels), corners = p.Q * p.K * 4;
  Tensor grad_value = gradient_of(value, value_wanted);
  p.grad_value = data_if(value_wanted, grad_value);
  p.heads_per_table = heads_per_table(p, lanes);
  AlignedMemory kept;
  const bool gathers =
      p.grad_value && corners < kManyCornersPerRow * p.S && corners <= std::numeric_limits<int32_t>::max();
  if (gathers) {
    const int64_t samples = (p.heads_per_table * p.K + lanes - 1) / lanes * lanes;  // of a table, padded
    const int64_t bytes = p.B * p.Q * (p.M / p.heads_per_table) * 4 * samples * kernels.vector_bytes / lanes;
    kept = aligned_memory(2 * bytes);
    p.corner_rows = kept.get();
    p.corner_weights = kept.get() + bytes;
  }
  if (gathers || p.grad_positions || p.grad_weights || p.grad_reference_points) {
    run_heads(kernels.backward_samples);
  }
  if (gathers) {
    gather_value(kernels);
  } else if (p.grad_value) {
    scatter_value(kernels);
  }
  return grad_value;
}

}  // namespace

}  // namespace dino_kernels

STABLE_TORCH_LIBRARY_IMPL(dino_kernels_native, CPU, m) {
  DINO_IMPLEMENT_MS_DEFORM_ATTN(m, dino_kernels::CpuCall);
}
