// CUDA entry point: which solver, how many threads, where its state is.
#include <algorithm>

#include "arguments.h"
#include "cuda.h"
#include "cuda_kernel.cuh"

namespace dino_kernels {
namespace {

// For rows of at most this many costs, four warps a block: more would have nothing to do.
constexpr int64_t kShortRows = 256;
constexpr int kFewThreads = 128;

template <class T, template <class> class Solver>
void start(const char* op, int device, const AssignmentParams& params, const Tensor& like) {
  CudaAssignmentParams p{};
  static_cast<AssignmentParams&>(p) = params;
  // Rows of a solver are the smaller side, columns either one.
  p.solver_rows = std::min(p.max_rows, p.C);
  p.solver_columns = std::max(p.max_rows, p.C);
  STD_TORCH_CHECK(p.solver_columns <= int64_t{1} << 30, op, ": cost has too many rows or columns, ",
                  p.solver_columns, ", at most 2^30 are allowed");
  Carver carver{nullptr};
  carver.take<AssignmentShared>(1);
  int64_t shared_bytes = carver.used;
  const Solver<T> measured(carver, p.solver_rows, p.solver_columns);
  p.state_bytes = carver.used - shared_bytes;
  const int64_t blocks = p.G * std::max<int64_t>(1, p.B);
  Tensor workspace = torch::stable::new_empty(like, {0}, ScalarType::Byte);
  if (carver.used <= device_facts(op, device).shared_bytes) {
    shared_bytes = carver.used;
  } else {
    workspace = torch::stable::new_empty(like, {blocks * p.state_bytes}, ScalarType::Byte);
    p.workspace = static_cast<unsigned char*>(workspace.mutable_data_ptr());
  }
  const int threads = p.solver_columns <= kShortRows ? kFewThreads : kMaxWarps * 32;
  launch({op, blocks, threads, shared_bytes}, device, &assignment_kernel<T, Solver>, p);
}

}  // namespace

void launch_assignment(const char* op, int device, const AssignmentParams& params, const Tensor& like) {
  if (params.cost_float64) {
    return params.as_scipy ? start<double, SciPySolver>(op, device, params, like)
                           : start<double, LowestSolver>(op, device, params, like);
  }
  params.as_scipy ? start<float, SciPySolver>(op, device, params, like)
                  : start<float, LowestSolver>(op, device, params, like);
}

namespace {

struct CudaAssignmentCall {
  static constexpr const char* kHere = "a CUDA device";
  static bool is_here(const Tensor& tensor) { return on_kernel_device(tensor); }

  AssignmentParams assignment_params{};
  const char* op;
  const OnDevice device;

  CudaAssignmentCall(const char* op_, const Tensor& cost) : op(op_), device(cost), cost_(cost) {}
  void run_assignment() const { launch_assignment(op, device.index, assignment_params, cost_); }

 private:
  const Tensor& cost_;
};

}  // namespace
}  // namespace dino_kernels

DINO_CUDA_LIBRARY(m) {
  m.impl("linear_sum_assignment",
         TORCH_BOX(&dino_kernels::linear_sum_assignment<dino_kernels::CudaAssignmentCall>));
}
