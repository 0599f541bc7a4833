// The launch of the cost kernel, for every op that computes costs.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "params.h"

namespace dino_kernels {

// The cost [G, N, Q] and bits of the status [G, B, n]. `like` is any tensor on the device.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> launch_matching_cost(
    const char* op, int device, const MatchingCostParams& params, const torch::stable::Tensor& like);

}  // namespace dino_kernels
