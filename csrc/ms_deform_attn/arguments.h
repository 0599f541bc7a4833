// From tensors to parameters: checks and entry points, shared by the CPU and the CUDA library.
//
// A `Call` is one library's half: its Params, where its tensors must be, its level table, and how it runs.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensors.h"
#include "params.h"

namespace dino_kernels {

// The feature levels as passed: exactly one of `shapes` and `sizes` is given.
struct LevelArguments {
  const std::optional<Tensor>& shapes;  // [L, 2] (H, W)
  const std::vector<int64_t>& sizes;    // [H0, W0, H1, W1, ...]
  const std::optional<Tensor>& starts;  // [L]; none: the exclusive cumulative sum of H * W
  const std::vector<int64_t>& points;   // [L]
};

inline bool is_compute_dtype(ScalarType dtype, ScalarType value) {
  return dtype == (value == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// [B, rows, ...]: the dimensions after the rows have `length` consecutive numbers.
template <class Call>
Rows rows_of(const Call& call, const char* name, const Tensor& tensor, int64_t rows, int64_t length) {
  check_place(call, name, tensor);
  const int64_t batch = call.params.B;
  int64_t numbers = 1;
  bool dense = true;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    dense = dense && (tensor.stride(d) == numbers || tensor.size(d) <= 1);
    numbers *= tensor.size(d);
  }
  STD_TORCH_CHECK(tensor.dim() >= 3 && tensor.size(0) == batch && tensor.size(1) == rows && numbers == length,
                  call.op, ": ", name, " must be [", batch, ", ", rows, ", ", length,
                  "], the last in any number of dimensions");
  STD_TORCH_CHECK(dense || tensor.numel() == 0, call.op, ": ", name,
                  " must be dense behind its second dimension");
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

template <class Call>
void set_value(Call& call, const Tensor& value) {
  MSDeformAttnParams& p = call.params;
  check_place(call, "value", value);
  STD_TORCH_CHECK(value.dim() == 4, call.op, ": value must be [B, S, M, D]");
  p.B = value.size(0);
  p.S = value.size(1);
  p.M = value.size(2);
  p.D = value.size(3);
  p.dtype = dtype_of(call.op, "value", value);
  constexpr int64_t kMostRows = (int64_t{1} << 30) - 1;
  STD_TORCH_CHECK(p.S <= kMostRows, call.op, ": value has S = ", p.S, " rows, at most ", kMostRows,
                  " are allowed");
  const bool dense = (value.stride(3) == 1 || p.D <= 1) && (value.stride(2) == p.D || p.M <= 1);
  STD_TORCH_CHECK(dense || value.numel() == 0, call.op, ": value must have dense rows of M * D");
  STD_TORCH_CHECK(std::abs(value.stride(1)) < (int64_t{1} << 27), call.op,
                  ": value's rows lie too far apart");
  p.value = {value.const_data_ptr(), value.stride(0), value.stride(1)};
}

// Checks one level against the S rows of value; this bounds every row that a kernel can read.
template <class Call>
void check_level(const Call& call, size_t level, int64_t height, int64_t width) {
  const int64_t S = call.params.S;
  STD_TORCH_CHECK(height >= 1 && width >= 1, call.op, ": spatial_shapes must be positive, got (", height,
                  ", ", width, ") for level ", level);
  STD_TORCH_CHECK(height <= S && width <= S && height * width <= S, call.op, ": spatial_shapes has (", height,
                  ", ", width, ") for level ", level, ", but value has only S = ", S, " rows");
}

template <class Call>
void check_rows(const Call& call, int64_t rows) {
  STD_TORCH_CHECK(rows == call.params.S, call.op, ": value has S = ", call.params.S,
                  " rows, spatial_shapes describes ", rows, "; they must be equal (S = sum of H * W)");
}

template <class Call>
bool in_value_dtype(const Call& call, const char* name, const Tensor& tensor, const Tensor& value) {
  if (is_compute_dtype(tensor.scalar_type(), value.scalar_type())) return false;
  STD_TORCH_CHECK(tensor.scalar_type() == value.scalar_type(), call.op, ": ", name,
                  " must have value's dtype or the compute dtype");
  return true;
}

// The arguments of both ops and directions. Without reference points, positions are sampling locations and
// weights are attention weights; with them, raw offsets and logits.
struct Inputs {
  const Tensor& value;
  const LevelArguments levels;
  const Tensor &positions, &weights;
  const std::optional<Tensor>&reference_points, &value_mask;
};

template <class Call>
void set_inputs(Call& call, const Inputs& given) {
  const Tensor& value = given.value;
  set_value(call, value);
  call.set_levels(given.levels);
  MSDeformAttnParams& p = call.params;
  p.Q = given.positions.size(1);
  p.positions = rows_of(call, "positions", given.positions, p.Q, p.M * p.K * 2);
  p.weights = rows_of(call, "weights", given.weights, p.Q, p.M * p.K);
  p.positions_as_value = in_value_dtype(call, "positions", given.positions, value);
  p.weights_as_value = in_value_dtype(call, "weights", given.weights, value);
  if (given.reference_points) {
    const Tensor& points = *given.reference_points;
    check_place(call, "reference_points", points);
    STD_TORCH_CHECK(
        points.is_contiguous() && points.dim() == 4 && points.size(0) == p.B && points.size(1) == p.Q &&
            points.size(2) == p.L && (points.size(3) == 2 || points.size(3) == 4) &&
            is_compute_dtype(points.scalar_type(), value.scalar_type()),
        call.op, ": reference_points must be a contiguous [B, Q, L, 2 or 4] in the compute dtype");
    p.reference_points = points.const_data_ptr();
    p.reference_coordinates = points.size(3);
  }
  if (given.value_mask) {
    const Tensor& mask = *given.value_mask;
    check_place(call, "value_mask", mask);
    STD_TORCH_CHECK(mask.is_contiguous() && mask.dim() == 2 && mask.size(0) == p.B && mask.size(1) == p.S &&
                        mask.scalar_type() == ScalarType::Bool,
                    call.op, ": value_mask must be a contiguous bool [B, S]");
    p.value_mask = static_cast<const bool*>(mask.const_data_ptr());
  }
}

// A new gradient like `tensor`, or an empty one if it is not requested.
inline Tensor gradient_of(const Tensor& tensor, bool wanted) {
  return wanted ? torch::stable::new_empty(tensor, tensor.sizes()) : torch::stable::new_empty(tensor, {0});
}

inline void* data_if(bool wanted, const Tensor& tensor) {
  return wanted && tensor.numel() > 0 ? tensor.mutable_data_ptr() : nullptr;
}

inline const char* op_of(const std::optional<Tensor>& reference_points) {
  return reference_points ? "fused_ms_deform_attn" : "ms_deform_attn";
}

template <class Call>
Tensor ms_deform_attn_forward(const Tensor& value, const std::optional<Tensor>& spatial_shapes,
                              std::vector<int64_t> level_sizes,
                              const std::optional<Tensor>& level_start_index, std::vector<int64_t> num_points,
                              const Tensor& positions, const Tensor& weights,
                              const std::optional<Tensor>& reference_points,
                              const std::optional<Tensor>& value_mask) {
  Call call(op_of(reference_points), value);
  const LevelArguments levels{spatial_shapes, level_sizes, level_start_index, num_points};
  set_inputs(call, {value, levels, positions, weights, reference_points, value_mask});
  return call.run_forward(value);
}

// Returns the gradients of value, positions, weights and reference points, empty unless `wanted`.
// `sum_bound`: on CUDA, requests sums that do not depend on their order; see cuda_grad_value.cuh.
template <class Call>
std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const std::optional<Tensor>& spatial_shapes,
    std::vector<int64_t> level_sizes, const std::optional<Tensor>& level_start_index,
    std::vector<int64_t> num_points, const Tensor& positions, const Tensor& weights,
    const std::optional<Tensor>& reference_points, const std::optional<Tensor>& value_mask,
    std::vector<bool> wanted, const std::optional<Tensor>& sum_bound) {
  Call call(op_of(reference_points), value);
  const LevelArguments levels{spatial_shapes, level_sizes, level_start_index, num_points};
  set_inputs(call, {value, levels, positions, weights, reference_points, value_mask});
  MSDeformAttnParams& p = call.params;
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type(), call.op,
                  ": grad_output must have value's dtype");
  p.grad_output = rows_of(call, "grad_output", grad_output, p.Q, p.M * p.D);
  Tensor grad_positions = gradient_of(positions, wanted[1]), grad_weights = gradient_of(weights, wanted[2]);
  Tensor grad_references = reference_points ? call.gradient_of_reference_points(*reference_points, wanted[3])
                                            : gradient_of(value, false);
  p.grad_positions = data_if(wanted[1], grad_positions);
  p.grad_weights = data_if(wanted[2], grad_weights);
  p.grad_reference_points = data_if(wanted[3], grad_references);
  return {call.run_backward(value, wanted[0], sum_bound), grad_positions, grad_weights, grad_references};
}

}  // namespace dino_kernels

// Registers one library's entry points, inside a STABLE_TORCH_LIBRARY_IMPL block.
#define DINO_IMPLEMENT_MS_DEFORM_ATTN(m, Call)                                              \
  m.impl("ms_deform_attn_forward", TORCH_BOX(&dino_kernels::ms_deform_attn_forward<Call>)); \
  m.impl("ms_deform_attn_backward", TORCH_BOX(&dino_kernels::ms_deform_attn_backward<Call>))
