// CPU entry points: argument checks, level table, choice of instruction set, tasks over ATen's threads.
#include "cpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace dino_kernels {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Processor features are asked for, never assumed: a wheel may run elsewhere than it was built. PyTorch's own
// variable ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers the choice.
const CpuKernels* choose_widest() {
#if defined(DINO_KERNELS_X86)
  const char* capability = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view wanted = capability ? capability : "avx512";
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  if (has_avx512 && wanted != "avx2" && wanted != "default") return &avx512::ms_deform_attn;
  if (has_avx2 && wanted != "default") return &avx2::ms_deform_attn;
#endif
  return &plain::ms_deform_attn;
}

const CpuKernels* widest() {
  static const CpuKernels* kernels = choose_widest();
  return kernels;
}

// The widest vectors that divide a head's channels: a partial vector costs more than a narrower one.
const CpuKernels& kernels_for(int64_t channels, int64_t compute_bytes) {
  const CpuKernels* best = widest();
#if defined(DINO_KERNELS_X86)
  for (const CpuKernels* narrower :
       {&avx512::ms_deform_attn, &avx2::ms_deform_attn, &plain::ms_deform_attn}) {
    if (narrower->vector_bytes > best->vector_bytes) continue;
    if (channels % (narrower->vector_bytes / compute_bytes) == 0) return *narrower;
  }
#endif
  return *best;
}

// One call's parameters, and what they point to.
struct Call {
  MSDeformAttnParams params{};
  std::vector<Level> levels;
  std::vector<LevelGroup> groups;
  bool packed = true;  // levels fill S one after the other, without gaps
  const char* op;

  explicit Call(const char* op_) : op(op_) {}
};

bool is_compute_dtype(ScalarType dtype, ScalarType value) {
  return dtype == (value == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

DType dtype_of(const char* op, const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      STD_TORCH_CHECK(false, op, ": value must be float32, float64, bfloat16 or float16");
  }
}

Rows rows_of(const char* op, const char* name, const Tensor& tensor, int64_t batch, int64_t rows,
             int64_t length) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
  STD_TORCH_CHECK(
      tensor.dim() == 3 && tensor.size(0) == batch && tensor.size(1) == rows && tensor.size(2) == length, op,
      ": ", name, " must be [", batch, ", ", rows, ", ", length, "]");
  STD_TORCH_CHECK(tensor.stride(2) == 1 || length <= 1 || tensor.numel() == 0, op, ": ", name,
                  " must be dense in its last dimension");
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

std::vector<int64_t> integers(const char* op, const char* name, const Tensor& tensor) {
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

// Every row that a kernel can read follows from this table, so it is checked against S here.
void set_levels(Call& call, const Tensor& spatial_shapes, const std::optional<Tensor>& level_start_index,
                const std::vector<int64_t>& num_points) {
  MSDeformAttnParams& p = call.params;
  const char* op = call.op;
  const std::vector<int64_t> sizes = integers(op, "spatial_shapes", spatial_shapes);
  p.L = static_cast<int64_t>(sizes.size()) / 2;
  STD_TORCH_CHECK(static_cast<int64_t>(num_points.size()) == p.L, op,
                  ": num_points must have one count a level");
  std::vector<int64_t> starts;
  if (level_start_index) starts = integers(op, "level_start_index", *level_start_index);
  STD_TORCH_CHECK(!level_start_index || static_cast<int64_t>(starts.size()) == p.L, op,
                  ": level_start_index must have one entry a level");
  constexpr int64_t kLargest = int64_t{1} << 30;
  STD_TORCH_CHECK(p.S < kLargest, op, ": value has S = ", p.S, " rows, at most ", kLargest - 1,
                  " are allowed");
  int64_t rows = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    const int64_t height = sizes[2 * l], width = sizes[2 * l + 1];
    STD_TORCH_CHECK(height >= 1 && width >= 1, op, ": spatial_shapes must be positive, got (", height, ", ",
                    width, ") for level ", l);
    STD_TORCH_CHECK(height <= p.S && width <= p.S && height * width <= p.S, op, ": spatial_shapes has (",
                    height, ", ", width, ") for level ", l, ", but value has only S = ", p.S, " rows");
    const int64_t start = level_start_index ? starts[l] : rows;
    STD_TORCH_CHECK(start >= 0 && start + height * width <= p.S, op, ": level ", l, " (", height, " x ",
                    width, ") starts at row ", start, " and ends after the S = ", p.S,
                    " rows of value; check spatial_shapes and level_start_index");
    call.packed = call.packed && start == rows;
    call.levels.push_back(
        {static_cast<int32_t>(height), static_cast<int32_t>(width), start, p.K, num_points[l]});
    rows += height * width;
    p.K += num_points[l];
  }
  call.packed = call.packed && rows == p.S;
  STD_TORCH_CHECK(level_start_index || rows == p.S, op, ": value has S = ", p.S,
                  " rows, spatial_shapes describes ", rows, "; they must be equal (S = sum of H * W)");
  p.levels = call.levels.data();
}

void set_value(Call& call, const Tensor& value) {
  MSDeformAttnParams& p = call.params;
  STD_TORCH_CHECK(value.is_cpu() && value.dim() == 4, call.op, ": value must be a CPU tensor [B, S, M, D]");
  p.B = value.size(0);
  p.S = value.size(1);
  p.M = value.size(2);
  p.D = value.size(3);
  p.dtype = dtype_of(call.op, value);
  const bool dense = (value.stride(3) == 1 || p.D <= 1) && (value.stride(2) == p.D || p.M <= 1);
  STD_TORCH_CHECK(dense || value.numel() == 0, call.op, ": value must have dense rows of M * D");
  STD_TORCH_CHECK(std::abs(value.stride(1)) < (int64_t{1} << 27), call.op,
                  ": value's rows lie too far apart");
  p.value = {value.const_data_ptr(), value.stride(0), value.stride(1)};
}

bool in_value_dtype(const Call& call, const char* name, const Tensor& tensor, const Tensor& value) {
  if (is_compute_dtype(tensor.scalar_type(), value.scalar_type())) return false;
  STD_TORCH_CHECK(tensor.scalar_type() == value.scalar_type(), call.op, ": ", name,
                  " must have value's dtype or the compute dtype");
  return true;
}

void set_samples(Call& call, const Tensor& value, const Tensor& positions, const Tensor& weights) {
  MSDeformAttnParams& p = call.params;
  p.Q = positions.size(1);
  p.positions = rows_of(call.op, "positions", positions, p.B, p.Q, p.M * p.K * 2);
  p.weights = rows_of(call.op, "weights", weights, p.B, p.Q, p.M * p.K);
  p.positions_as_value = in_value_dtype(call, "positions", positions, value);
  p.weights_as_value = in_value_dtype(call, "weights", weights, value);
}

void set_reference(Call& call, const Tensor& value, const Tensor& reference_points,
                   const std::optional<Tensor>& value_mask) {
  MSDeformAttnParams& p = call.params;
  STD_TORCH_CHECK(reference_points.is_cpu() && reference_points.is_contiguous() &&
                      reference_points.dim() == 4 && reference_points.size(0) == p.B &&
                      reference_points.size(1) == p.Q && reference_points.size(2) == p.L &&
                      (reference_points.size(3) == 2 || reference_points.size(3) == 4) &&
                      is_compute_dtype(reference_points.scalar_type(), value.scalar_type()),
                  call.op, ": reference_points must be a contiguous [B, Q, L, 2 or 4] in the compute dtype");
  p.reference_points = reference_points.const_data_ptr();
  p.reference_coordinates = reference_points.size(3);
  if (value_mask) {
    STD_TORCH_CHECK(value_mask->is_cpu() && value_mask->is_contiguous() && value_mask->dim() == 2 &&
                        value_mask->size(0) == p.B && value_mask->size(1) == p.S &&
                        value_mask->scalar_type() == ScalarType::Bool,
                    call.op, ": value_mask must be a contiguous bool [B, S]");
    p.value_mask = static_cast<const bool*>(value_mask->const_data_ptr());
  }
}

// Memory for one task; freed with it.
struct AlignedDelete {
  void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};
using AlignedMemory = std::unique_ptr<char, AlignedDelete>;
AlignedMemory aligned_memory(int64_t bytes) {
  return AlignedMemory(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64})));
}

void run(const MSDeformAttnParams& p, const CpuKernel& kernel, int64_t tasks, int64_t grain) {
  if (tasks == 0) return;
  const int64_t bytes = kernel.scratch_bytes(p);
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    const AlignedMemory scratch = aligned_memory(bytes);
    kernel.run(p, begin, end, scratch.get());
  });
}

const CpuKernels& kernels_for(const MSDeformAttnParams& p) {
  return kernels_for(p.D, p.dtype == DType::float64 ? 8 : 4);
}

// Queries per task at least: below this the threads' start costs more than the work.
int64_t query_grain(const MSDeformAttnParams& p) {
  constexpr int64_t kCornerChannels = 32768;
  return std::max<int64_t>(1, kCornerChannels / std::max<int64_t>(1, p.M * p.K * p.D));
}

Tensor run_forward(Call& call, const Tensor& value) {
  MSDeformAttnParams& p = call.params;
  Tensor output = torch::stable::new_empty(value, {p.B, p.Q, p.M * p.D});
  if (output.numel() == 0) return output;
  p.output = output.mutable_data_ptr();
  run(p, kernels_for(p).forward, p.B * p.Q, query_grain(p));
  return output;
}

// A task is a head, or a level of one where there are fewer (image, head) pairs than threads. In place, a
// thread takes its heads together, whose rows are neighbours.
void set_value_tasks(Call& call) {
  MSDeformAttnParams& p = call.params;
  const int64_t threads = torch::stable::get_num_threads(), heads = p.B * p.M;
  p.heads_together = p.sums_in_place ? std::clamp<int64_t>(heads / threads, 1, p.M) : 1;
  if (call.packed && heads < threads) {
    for (const Level& level : call.levels) {
      call.groups.push_back(
          {level.start, int64_t{level.height} * level.width, level.first_point, level.points});
    }
  } else {
    call.groups.push_back({0, p.S, 0, p.K});
  }
  p.groups = call.groups.data();
  p.number_of_groups = static_cast<int64_t>(call.groups.size());
}

Tensor gradient_of(const Tensor& tensor, bool wanted) {
  return wanted ? torch::stable::new_empty(tensor, tensor.sizes()) : torch::stable::new_empty(tensor, {0});
}

// Where there are few samples for each row, as in a decoder, filling sums of their own and copying them costs
// more than adding them up; then they are made in grad_value, which has to begin at zero.
Tensor gradient_of_value(Call& call, const Tensor& value, bool wanted) {
  MSDeformAttnParams& p = call.params;
  constexpr int64_t kFewCornersPerRow = 8;
  const bool has_dtype_of_sums = p.dtype == DType::float32 || p.dtype == DType::float64;
  p.sums_in_place = has_dtype_of_sums && p.Q * p.K * 4 < kFewCornersPerRow * p.S;
  Tensor gradient =
      wanted && p.sums_in_place ? torch::stable::new_zeros(value, value.sizes()) : gradient_of(value, wanted);
  p.grad_value = wanted && gradient.numel() > 0 ? gradient.mutable_data_ptr() : nullptr;
  return gradient;
}

void run_backward(Call& call, bool value_wanted, bool samples_wanted) {
  MSDeformAttnParams& p = call.params;
  const CpuKernels& kernels = kernels_for(p);
  if (samples_wanted) run(p, kernels.backward_samples, p.B * p.Q, query_grain(p));
  if (value_wanted) {
    set_value_tasks(call);
    run(p, kernels.backward_value, p.B * p.number_of_groups * p.M, 1);
  }
}

void set_grad_output(Call& call, const Tensor& grad_output, const Tensor& value) {
  MSDeformAttnParams& p = call.params;
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type(), call.op,
                  ": grad_output must have value's dtype");
  p.grad_output = rows_of(call.op, "grad_output", grad_output, p.B, p.Q, p.M * p.D);
}

void* data_if(bool wanted, const Tensor& tensor) {
  return wanted && tensor.numel() > 0 ? tensor.mutable_data_ptr() : nullptr;
}

Tensor ms_deform_attn_forward(const Tensor& value, const Tensor& spatial_shapes,
                              const std::optional<Tensor>& level_start_index, std::vector<int64_t> num_points,
                              const Tensor& sampling_locations, const Tensor& attention_weights) {
  Call call("ms_deform_attn");
  set_value(call, value);
  set_levels(call, spatial_shapes, level_start_index, num_points);
  set_samples(call, value, sampling_locations, attention_weights);
  return run_forward(call, value);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const std::optional<Tensor>& level_start_index, std::vector<int64_t> num_points,
    const Tensor& sampling_locations, const Tensor& attention_weights, std::vector<bool> wanted) {
  Call call("ms_deform_attn");
  set_value(call, value);
  set_levels(call, spatial_shapes, level_start_index, num_points);
  set_samples(call, value, sampling_locations, attention_weights);
  set_grad_output(call, grad_output, value);
  Tensor grad_value = gradient_of_value(call, value, wanted[0]);
  Tensor grad_locations = gradient_of(sampling_locations, wanted[1]);
  Tensor grad_weights = gradient_of(attention_weights, wanted[2]);
  call.params.grad_positions = data_if(wanted[1], grad_locations);
  call.params.grad_weights = data_if(wanted[2], grad_weights);
  run_backward(call, call.params.grad_value, call.params.grad_positions || call.params.grad_weights);
  return {grad_value, grad_locations, grad_weights};
}

Tensor fused_ms_deform_attn_forward(const Tensor& value, const Tensor& spatial_shapes,
                                    const std::optional<Tensor>& level_start_index,
                                    std::vector<int64_t> num_points, const Tensor& reference_points,
                                    const Tensor& sampling_offsets, const Tensor& attention_logits,
                                    const std::optional<Tensor>& value_mask) {
  Call call("fused_ms_deform_attn");
  set_value(call, value);
  set_levels(call, spatial_shapes, level_start_index, num_points);
  set_samples(call, value, sampling_offsets, attention_logits);
  set_reference(call, value, reference_points, value_mask);
  return run_forward(call, value);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const std::optional<Tensor>& level_start_index, std::vector<int64_t> num_points,
    const Tensor& reference_points, const Tensor& sampling_offsets, const Tensor& attention_logits,
    const std::optional<Tensor>& value_mask, std::vector<bool> wanted) {
  Call call("fused_ms_deform_attn");
  set_value(call, value);
  set_levels(call, spatial_shapes, level_start_index, num_points);
  set_samples(call, value, sampling_offsets, attention_logits);
  set_reference(call, value, reference_points, value_mask);
  set_grad_output(call, grad_output, value);
  Tensor grad_value = gradient_of_value(call, value, wanted[0]);
  Tensor grad_reference_points = gradient_of(reference_points, wanted[1]);
  Tensor grad_offsets = gradient_of(sampling_offsets, wanted[2]);
  Tensor grad_logits = gradient_of(attention_logits, wanted[3]);
  MSDeformAttnParams& p = call.params;
  p.grad_reference_points = data_if(wanted[1], grad_reference_points);
  p.grad_positions = data_if(wanted[2], grad_offsets);
  p.grad_weights = data_if(wanted[3], grad_logits);
  run_backward(call, p.grad_value, p.grad_positions || p.grad_weights || p.grad_reference_points);
  return {grad_value, grad_reference_points, grad_offsets, grad_logits};
}

}  // namespace

const char* cpu_capability() {
  switch (widest()->vector_bytes) {
    case 64:
      return "avx512";
    case 32:
      return "avx2";
    default:
      return "plain";
  }
}

}  // namespace dino_kernels

STABLE_TORCH_LIBRARY_IMPL(dino_kernels_native, CPU, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&dino_kernels::ms_deform_attn_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&dino_kernels::ms_deform_attn_backward));
  m.impl("fused_ms_deform_attn_forward", TORCH_BOX(&dino_kernels::fused_ms_deform_attn_forward));
  m.impl("fused_ms_deform_attn_backward", TORCH_BOX(&dino_kernels::fused_ms_deform_attn_backward));
}
