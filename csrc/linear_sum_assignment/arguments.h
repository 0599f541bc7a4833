// From tensors to parameters: checks and entry point, shared by the CPU and the CUDA library.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "../common/tensors.h"
#include "params.h"

namespace dino_kernels {

using AssignmentResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Call>
bool is_scipy_order(const Call& call, const std::string& ties) {
  STD_TORCH_CHECK(ties == "lowest" || ties == "scipy", call.op, ": ties must be lowest or scipy");
  return ties == "scipy";
}

// Allocates the results and points p to them. `like` is any tensor on their device.
inline AssignmentResult new_results(AssignmentParams& p, const Tensor& like, bool full) {
  const auto make = [&](std::initializer_list<int64_t> shape, ScalarType dtype, bool wanted) {
    return wanted ? new_tensor(like, shape, dtype) : new_tensor(like, {0}, dtype);
  };
  AssignmentResult results{make({p.G, p.R}, ScalarType::Long, true), make({p.G, p.B}, ScalarType::Int, true),
                           make({p.G, p.B}, ScalarType::Double, full),
                           make({p.G, p.R}, ScalarType::Double, full),
                           make({p.G, p.B, p.C}, ScalarType::Double, full)};
  p.columns = static_cast<int64_t*>(std::get<0>(results).mutable_data_ptr());
  p.status = static_cast<int32_t*>(std::get<1>(results).mutable_data_ptr());
  if (full) {
    p.objective = static_cast<double*>(std::get<2>(results).mutable_data_ptr());
    p.row_duals = static_cast<double*>(std::get<3>(results).mutable_data_ptr());
    p.column_duals = static_cast<double*>(std::get<4>(results).mutable_data_ptr());
  }
  return results;
}

// A `Call` has `assignment_params`, and `run_assignment()`, which fills every result.
template <class Call>
AssignmentResult linear_sum_assignment(const Tensor& cost, const std::optional<Tensor>& offsets,
                                       const std::optional<Tensor>& sizes, const std::optional<Tensor>& notes,
                                       int64_t max_rows, bool maximize, std::string ties, bool full) {
  Call call("linear_sum_assignment", cost);
  AssignmentParams& p = call.assignment_params;
  check_place(call, "cost", cost);
  STD_TORCH_CHECK(cost.dim() == 3, call.op, ": cost must be [G, R, C]");
  p.cost_float64 = cost.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(p.cost_float64 || cost.scalar_type() == ScalarType::Float, call.op,
                  ": cost must be float32 or float64");
  p.G = cost.size(0);
  p.R = cost.size(1);
  p.C = cost.size(2);
  STD_TORCH_CHECK(p.R < (int64_t{1} << 31) && p.C < (int64_t{1} << 31), call.op,
                  ": cost has too many rows or columns");
  p.cost = cost.const_data_ptr();
  p.group_stride = cost.stride(0);
  p.row_stride = cost.stride(1);
  p.column_stride = cost.stride(2);
  p.B = 1;
  p.max_rows = max_rows;
  if (offsets) {
    p.B = offsets->numel() - 1;
    STD_TORCH_CHECK(p.B >= 0 && !sizes, call.op, ": offsets must be [B + 1], and exclude sizes");
    p.offsets = contiguous_data<int64_t>(call, "offsets", *offsets, ScalarType::Long, p.B + 1);
  }
  if (sizes) p.sizes = contiguous_data<int64_t>(call, "sizes", *sizes, ScalarType::Long, 2 * p.G);
  if (notes) {
    p.notes_per_problem = notes->size(-1);
    const int64_t count = p.G * p.B * p.notes_per_problem;
    p.notes = contiguous_data<int32_t>(call, "notes", *notes, ScalarType::Int, count);
  }
  p.maximize = maximize;
  p.as_scipy = is_scipy_order(call, ties);
  AssignmentResult results = new_results(p, cost, full);
  call.run_assignment();
  return results;
}

}  // namespace dino_kernels
