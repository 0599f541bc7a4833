// The launch of the assignment kernel, for every op that computes assignments.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "params.h"

namespace dino_kernels {

// Fills the results that `params` points to. `like` is any tensor on the device. `starts_early`: may start
// while the previous kernel on the stream, which writes the costs, still runs.
void launch_assignment(const char* op, int device, const AssignmentParams& params,
                       const torch::stable::Tensor& like, bool starts_early);

}  // namespace dino_kernels
