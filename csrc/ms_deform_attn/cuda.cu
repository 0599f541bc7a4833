// CUDA entry points: level table, sums of grad_value, one launch per dtype of value.
#include "../common/device.h"
#include "../common/dispatch.cuh"
#include "arguments.h"
#include "cuda_calls.h"

namespace dino_kernels {
namespace {

// One call's parameters.
struct CudaCall : OnCuda {
  CudaParams params{};
  const char* op;
  const OnDevice device;

  CudaCall(const char* op_, const Tensor& value) : op(op_), device(value) {}
  void set_levels(const LevelArguments& given);
  Tensor run_forward(const Tensor& value);
  Tensor gradient_of_reference_points(const Tensor& reference_points, bool wanted);
  Tensor run_backward(const Tensor& value, bool value_wanted, const std::optional<Tensor>& sum_bound);

 private:
  CudaLaunch where() const { return {op, device.index, device_facts(op, device.index)}; }
  const void* indices(const char* name, const std::optional<Tensor>& tensor, int64_t count,
                      bool& int64) const;
  template <class T>
  void set_access();
};

// A table on the device stays there: no copy, no synchronisation.
const void* CudaCall::indices(const char* name, const std::optional<Tensor>& tensor, int64_t count,
                              bool& int64) const {
  if (!tensor) return nullptr;
  check_place(*this, name, *tensor);
  STD_TORCH_CHECK(tensor->is_contiguous() && tensor->numel() == count, op, ": ", name,
                  " must be contiguous, with ", count, " numbers");
  int64 = tensor->scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(int64 || tensor->scalar_type() == ScalarType::Int, op, ": ", name,
                  " must be int64 or int32");
  return tensor->const_data_ptr();
}

void CudaCall::set_levels(const LevelArguments& given) {
  CudaParams& p = params;
  p.L = static_cast<int64_t>(given.points.size());
  STD_TORCH_CHECK(p.L >= 1 && p.L <= kMaxLevels, op, ": ", p.L, " levels, between 1 and ", kMaxLevels,
                  " are allowed");
  STD_TORCH_CHECK(given.shapes || static_cast<int64_t>(given.sizes.size()) == 2 * p.L, op,
                  ": num_points must have one count a level");
  LevelTable& table = p.table;
  table.shapes = indices("spatial_shapes", given.shapes, 2 * p.L, table.shapes_int64);
  table.starts = indices("level_start_index", given.starts, p.L, table.starts_int64);
  int64_t rows = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    table.points[l] = static_cast<int32_t>(given.points[l]);
    p.K += given.points[l];
    if (given.shapes) continue;
    const int64_t height = given.sizes[2 * l], width = given.sizes[2 * l + 1];
    check_level(*this, l, height, width);
    table.sizes[2 * l] = static_cast<int32_t>(height);
    table.sizes[2 * l + 1] = static_cast<int32_t>(width);
    rows += height * width;
  }
  if (!given.shapes && !given.starts) check_rows(*this, rows);
}

// Facts about addresses that the kernels may rely on, once all tensors are known.
template <class T>
void CudaCall::set_access() {
  CudaParams& p = params;
  const uintptr_t bytes = p.positions_as_value ? sizeof(T) : sizeof(typename Compute<T>::type);
  p.pairs_aligned = reinterpret_cast<uintptr_t>(p.positions.data) % (2 * bytes) == 0 &&
                    p.positions.batch_stride % 2 == 0 && p.positions.row_stride % 2 == 0;
  p.queries_on_grid = p.Q == p.S;
}

Tensor CudaCall::run_forward(const Tensor& value) {
  CudaParams& p = params;
  Tensor output = torch::stable::new_empty(value, {p.B, p.Q, p.M * p.D});
  if (output.numel() == 0) return output;
  p.output = output.mutable_data_ptr();
  with_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    set_access<T>();
    launch_forward<T>(p, where());
  });
  return output;
}

// One share per head: heads are in different blocks, and a sum over them afterwards is deterministic.
Tensor CudaCall::gradient_of_reference_points(const Tensor& reference_points, bool wanted) {
  const MSDeformAttnParams& p = params;
  return wanted ? torch::stable::new_empty(reference_points, {p.B, p.Q, p.M, p.L, p.reference_coordinates})
                : torch::stable::new_empty(reference_points, {0});
}

Tensor CudaCall::run_backward(const Tensor& value, bool value_wanted,
                              const std::optional<Tensor>& sum_bound) {
  CudaParams& p = params;
  if (!value_wanted && !p.grad_positions && !p.grad_weights && !p.grad_reference_points) {
    return gradient_of(value, false);
  }
  const bool has_dtype_of_sums = p.dtype == DType::float32 || p.dtype == DType::float64;
  const bool in_place = has_dtype_of_sums && !sum_bound;
  Tensor grad_value = value_wanted && in_place ? torch::stable::new_zeros(value, value.sizes())
                                               : gradient_of(value, value_wanted);
  Tensor sums = grad_value;
  if (value_wanted && !in_place) {
    const auto dtype = sum_bound ? ScalarType::Long : ScalarType::Float;
    const int64_t numbers = sum_bound && p.dtype == DType::float64 ? 2 : 1;
    sums = torch::stable::new_zeros(value, {p.B, p.S, p.M, p.D, numbers}, dtype);
  }
  p.grad_value = data_if(value_wanted, grad_value);
  p.sums = data_if(value_wanted, sums);
  if (sum_bound && value_wanted) {
    check_place(*this, "sum_bound", *sum_bound);
    STD_TORCH_CHECK(
        sum_bound->numel() == 1 && is_compute_dtype(sum_bound->scalar_type(), value.scalar_type()), op,
        ": sum_bound must be one number of the compute dtype");
    p.bound = sum_bound->const_data_ptr();
    // A query adds to a row at most K times, and with softmax weights at most once its gradient.
    const int64_t largest = p.reference_points ? p.Q : p.Q * p.K;
    while (int64_t{1} << p.sum_headroom < largest) ++p.sum_headroom;
  }
  with_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    set_access<T>();
    const CudaLaunch here = where();
    if (p.B * p.Q * p.M > 0) launch_backward<T>(p, here);
    if (p.sums && p.sums != p.grad_value) launch_finish<T>(p, here);
  });
  return grad_value;
}

}  // namespace
}  // namespace dino_kernels

DINO_CUDA_LIBRARY(m) { DINO_IMPLEMENT_MS_DEFORM_ATTN(m, dino_kernels::CudaCall); }
