// CUDA entry point: which solver, how many threads, where its state is.
#include <algorithm>

#include "../common/device.h"
#include "arguments.h"
#include "cuda.h"
#include "cuda_kernel.cuh"

namespace dino_kernels {
namespace {

// Rows of at most this many costs get four warps per block: more would be idle.
constexpr int64_t kShortRows = 256;
constexpr int kFewThreads = 128;

CudaAssignmentParams cuda_params(const char* op, const AssignmentParams& params) {
  CudaAssignmentParams p{};
  static_cast<AssignmentParams&>(p) = params;
  // Rows of a solver are the smaller side; columns may be either one.
  p.solver_rows = std::min(p.max_rows, p.C);
  p.solver_columns = std::max(p.max_rows, p.C);
  STD_TORCH_CHECK(p.solver_columns <= int64_t{1} << 30, op, ": cost has too many rows or columns, ",
                  p.solver_columns, ", at most 2^30 are allowed");
  return p;
}

int64_t blocks_of(const CudaAssignmentParams& p) { return p.G * std::max<int64_t>(1, p.B); }

bool is_small(const CudaAssignmentParams& p) {
  return !p.cost_float64 && p.solver_rows <= kWarpRows && p.solver_columns <= kWarpColumns;
}

// As many warps as rows, so that all rows are read at once.
void start_small(const char* op, int device, const CudaAssignmentParams& p, bool starts_early) {
  const int64_t words = (p.solver_columns + 31) / 32;
  const int64_t shared_bytes = static_cast<int64_t>(sizeof(WarpRows)) + words * 4;
  const int threads = static_cast<int>(std::max<int64_t>(1, p.solver_rows)) * 32;
  launch({op, blocks_of(p), threads, shared_bytes, starts_early}, device, &small_assignment_kernel, p);
}

template <class T, template <class> class Solver>
void start(const char* op, int device, CudaAssignmentParams p, const Tensor& like, bool starts_early) {
  Carver carver{nullptr};
  carver.take<AssignmentShared>(1);
  int64_t shared_bytes = carver.used;
  const Solver<T> measured(carver, p.solver_rows, p.solver_columns);
  p.state_bytes = carver.used - shared_bytes;
  Tensor workspace = torch::stable::new_empty(like, {0}, ScalarType::Byte);
  if (carver.used <= device_facts(op, device).shared_bytes) {
    shared_bytes = carver.used;
  } else {
    workspace = torch::stable::new_empty(like, {blocks_of(p) * p.state_bytes}, ScalarType::Byte);
    p.workspace = static_cast<unsigned char*>(workspace.mutable_data_ptr());
  }
  const int threads = p.solver_columns <= kShortRows ? kFewThreads : kMaxWarps * 32;
  launch({op, blocks_of(p), threads, shared_bytes, starts_early}, device, &assignment_kernel<T, Solver>, p);
}

}  // namespace

void launch_assignment(const char* op, int device, const AssignmentParams& params, const Tensor& like,
                       bool starts_early) {
  const CudaAssignmentParams p = cuda_params(op, params);
  // SciPy's order and float64 are not used in training, so one kernel reads costs of either type.
  if (p.as_scipy) return start<double, SciPySolver>(op, device, p, like, starts_early);
  if (p.cost_float64) return start<double, LowestSolver>(op, device, p, like, starts_early);
  if (is_small(p)) return start_small(op, device, p, starts_early);
  start<float, LowestSolver>(op, device, p, like, starts_early);
}

namespace {

struct CudaAssignmentCall : OnCuda {
  AssignmentParams assignment_params{};
  const char* op;
  const OnDevice device;

  CudaAssignmentCall(const char* op_, const Tensor& cost) : op(op_), device(cost), cost_(cost) {}
  void run_assignment() const { launch_assignment(op, device.index, assignment_params, cost_, false); }

 private:
  const Tensor& cost_;
};

}  // namespace
}  // namespace dino_kernels

DINO_CUDA_LIBRARY(m) {
  m.impl("linear_sum_assignment",
         TORCH_BOX(&dino_kernels::linear_sum_assignment<dino_kernels::CudaAssignmentCall>));
}
