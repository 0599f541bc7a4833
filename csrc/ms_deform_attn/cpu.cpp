// CPU entry points: level table, choice of kernel, tasks over ATen's threads.
#include "cpu.h"

#include <algorithm>
#include <vector>

#include "../common/tasks.h"
#include "arguments.h"

namespace dino_kernels {
namespace {

// The widest vectors that divide the channels of a head: a partial vector costs more than a narrower one.
const CpuKernels& kernels_for(const CpuParams& p) {
  constexpr const CpuKernels* kVariants[] = DINO_CPU_VARIANTS(ms_deform_attn);
  const int64_t widest = widest_variant(), compute_bytes = p.dtype == DType::float64 ? 8 : 4;
  for (int64_t variant = widest; variant >= 0; --variant) {
    if (p.D % (kVariants[variant]->vector_bytes / compute_bytes) == 0) return *kVariants[variant];
  }
  return *kVariants[widest];
}

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
  Tensor gradient_of_value(const Tensor& value, bool wanted);
  void set_value_tasks();
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

// Minimum number of queries per task: below it, starting a thread costs more than the work.
int64_t query_grain(const CpuParams& p) {
  constexpr int64_t kCornerChannels = 32768;
  return std::max<int64_t>(1, kCornerChannels / std::max<int64_t>(1, p.M * p.K * p.D));
}

Tensor CpuCall::run_forward(const Tensor& value) {
  CpuParams& p = params;
  Tensor output = torch::stable::new_empty(value, {p.B, p.Q, p.M * p.D});
  if (output.numel() == 0) return output;
  p.output = output.mutable_data_ptr();
  run(p, kernels_for(p).forward, p.B * p.Q, query_grain(p));
  return output;
}

// A task is a head, or one level of a head if there are fewer (image, head) pairs than threads. When summing
// in place, a thread takes its heads together, because their rows are neighbours.
void CpuCall::set_value_tasks() {
  CpuParams& p = params;
  const int64_t threads = torch::stable::get_num_threads(), heads = p.B * p.M;
  p.heads_together = p.sums_in_place ? std::clamp<int64_t>(heads / threads, 1, p.M) : 1;
  if (packed && heads < threads) {
    for (const Level& level : levels) {
      groups.push_back({level.start, int64_t{level.height} * level.width, level.first_point, level.points});
    }
  } else {
    groups.push_back({0, p.S, 0, p.K});
  }
  p.groups = groups.data();
  p.number_of_groups = static_cast<int64_t>(groups.size());
}

// With few samples per row, as in a decoder, zeroing separate sums and copying them costs more than the
// additions; then the sums are made in grad_value, which must start at zero.
Tensor CpuCall::gradient_of_value(const Tensor& value, bool wanted) {
  CpuParams& p = params;
  constexpr int64_t kFewCornersPerRow = 8;
  const bool has_dtype_of_sums = p.dtype == DType::float32 || p.dtype == DType::float64;
  p.sums_in_place = has_dtype_of_sums && p.Q * p.K * 4 < kFewCornersPerRow * p.S;
  Tensor gradient =
      wanted && p.sums_in_place ? torch::stable::new_zeros(value, value.sizes()) : gradient_of(value, wanted);
  p.grad_value = data_if(wanted, gradient);
  return gradient;
}

// Sums follow the order of the queries for any number of threads, so there is no separate deterministic mode.
Tensor CpuCall::run_backward(const Tensor& value, bool value_wanted, const std::optional<Tensor>&) {
  CpuParams& p = params;
  const CpuKernels& kernels = kernels_for(p);
  Tensor grad_value = gradient_of_value(value, value_wanted);
  if (p.grad_positions || p.grad_weights || p.grad_reference_points) {
    run(p, kernels.backward_samples, p.B * p.Q, query_grain(p));
  }
  if (p.grad_value) {
    set_value_tasks();
    run(p, kernels.backward_value, p.B * p.number_of_groups * p.M, 1);
  }
  return grad_value;
}

}  // namespace

}  // namespace dino_kernels

STABLE_TORCH_LIBRARY_IMPL(dino_kernels_native, CPU, m) {
  DINO_IMPLEMENT_MS_DEFORM_ATTN(m, dino_kernels::CpuCall);
}
