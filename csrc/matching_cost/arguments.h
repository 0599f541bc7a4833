// From tensors to parameters: checks and entry point, shared by the CPU and the CUDA library.
//
// A `Call` is one library's half: its params and sources, where its tensors must be, and how it runs.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/tensors.h"
#include "params.h"

namespace dino_kernels {

// Predictions, targets and formula as passed to the native ops.
struct CostArguments {
  const std::vector<Tensor>& logits;          // each [G_i, B, Q_i, C], or [B, Q_i, C] of one set
  const std::vector<Tensor>& boxes;           // likewise with 4, or empty
  const Tensor& labels;                       // [N] int64
  const std::optional<Tensor>& target_boxes;  // [N, 4] float32
  const Tensor& offsets;                      // [B + 1] int64
  const std::optional<Tensor>& extra_cost;    // [G or 1, N, Q] float32
  int64_t max_targets;
  const std::string& class_cost;
  const std::vector<double>& formula;  // as dino_kernels.ops._matching.CostFormula.numbers()
};

template <class Call>
CostFormula formula_of(const Call& call, const CostArguments& given) {
  STD_TORCH_CHECK(given.class_cost == "focal" || given.class_cost == "softmax", call.op,
                  ": class_cost must be focal or softmax");
  STD_TORCH_CHECK(given.formula.size() == 7, call.op, ": formula must have 7 numbers");
  const auto number = [&](size_t i) { return static_cast<float>(given.formula[i]); };
  return {given.class_cost == "softmax",
          number(0),
          number(1),
          number(2),
          number(3),
          number(4),
          number(5),
          number(6)};
}

template <class Call>
PredictionSource source_of(const Call& call, const CostArguments& given, size_t i, int64_t first_set) {
  const MatchingCostParams& p = call.cost_params;
  const Tensor& logits = given.logits[i];
  check_place(call, "logits", logits);
  const bool has_sets = logits.dim() == 4;
  STD_TORCH_CHECK((has_sets || logits.dim() == 3) && logits.size(-3) == p.B && logits.size(-1) == p.C,
                  call.op, ": logits must be [G, B, Q, C] or [B, Q, C] with B = ", p.B, " and C = ", p.C);
  STD_TORCH_CHECK(dtype_of(call.op, "logits", logits) == p.logits_dtype, call.op,
                  ": all logits must have one dtype");
  STD_TORCH_CHECK(logits.stride(-1) == 1 || p.C <= 1 || logits.numel() == 0, call.op,
                  ": logits must be dense in the last dimension");
  PredictionSource source{};
  source.first_set = first_set;
  source.sets = has_sets ? logits.size(0) : 1;
  source.Q = logits.size(-2);
  source.logits = logits.const_data_ptr();
  source.logits_set_stride = has_sets ? logits.stride(0) : 0;
  source.logits_batch_stride = logits.stride(-3);
  source.logits_row_stride = logits.stride(-2);
  if (!given.boxes.empty()) {
    const Tensor& boxes = given.boxes[i];
    check_place(call, "boxes", boxes);
    STD_TORCH_CHECK(boxes.dim() == logits.dim() && (!has_sets || boxes.size(0) == source.sets) &&
                        boxes.size(-3) == p.B && boxes.size(-2) == source.Q && boxes.size(-1) == 4,
                    call.op, ": boxes must be [G, B, Q, 4] or [B, Q, 4] as logits");
    STD_TORCH_CHECK(dtype_of(call.op, "boxes", boxes) == p.boxes_dtype, call.op,
                    ": all boxes must have one dtype");
    STD_TORCH_CHECK(boxes.stride(-1) == 1 || boxes.numel() == 0, call.op,
                    ": boxes must be dense in the last dimension");
    source.boxes = boxes.const_data_ptr();
    source.boxes_set_stride = has_sets ? boxes.stride(0) : 0;
    source.boxes_batch_stride = boxes.stride(-3);
    source.boxes_row_stride = boxes.stride(-2);
  }
  return source;
}

// Fills call.cost_params and call.sources.
template <class Call>
void set_cost_inputs(Call& call, const CostArguments& given) {
  MatchingCostParams& p = call.cost_params;
  STD_TORCH_CHECK(!given.logits.empty(), call.op, ": logits must not be empty");
  STD_TORCH_CHECK(given.boxes.empty() || given.boxes.size() == given.logits.size(), call.op,
                  ": boxes must be as many as logits");
  STD_TORCH_CHECK(given.boxes.empty() == !given.target_boxes, call.op, ": boxes go with target_boxes");
  p.formula = formula_of(call, given);
  p.max_targets = given.max_targets;
  p.N = given.labels.numel();
  p.B = given.offsets.numel() - 1;
  STD_TORCH_CHECK(p.B >= 0, call.op, ": offsets must be [B + 1]");
  p.C = given.logits[0].size(-1);
  p.logits_dtype = dtype_of(call.op, "logits", given.logits[0]);
  if (!given.boxes.empty()) p.boxes_dtype = dtype_of(call.op, "boxes", given.boxes[0]);
  for (size_t i = 0; i < given.logits.size(); ++i) {
    call.sources.push_back(source_of(call, given, i, p.G));
    p.G += call.sources.back().sets;
    p.Q = std::max(p.Q, call.sources.back().Q);
  }
  p.sources = call.sources.data();
  p.num_sources = static_cast<int64_t>(call.sources.size());
  p.labels = contiguous_data<int64_t>(call, "labels", given.labels, ScalarType::Long, p.N);
  p.offsets = contiguous_data<int64_t>(call, "offsets", given.offsets, ScalarType::Long, p.B + 1);
  if (given.target_boxes) {
    p.target_boxes =
        contiguous_data<float>(call, "target_boxes", *given.target_boxes, ScalarType::Float, p.N * 4);
  }
  if (given.extra_cost) {
    const bool shared = given.extra_cost->size(0) == 1 && p.G != 1;
    const int64_t count = (shared ? 1 : p.G) * p.N * p.Q;
    p.extra_cost = contiguous_data<float>(call, "extra_cost", *given.extra_cost, ScalarType::Float, count);
    p.extra_set_stride = shared ? 0 : p.N * p.Q;
  }
}

template <class Call>
std::tuple<Tensor, Tensor> matching_cost(std::vector<Tensor> logits, std::vector<Tensor> boxes,
                                         const Tensor& labels, const std::optional<Tensor>& target_boxes,
                                         const Tensor& offsets, const std::optional<Tensor>& extra_cost,
                                         int64_t max_targets, std::string class_cost,
                                         std::vector<double> formula) {
  Call call("matching_cost", labels);
  set_cost_inputs(
      call, {logits, boxes, labels, target_boxes, offsets, extra_cost, max_targets, class_cost, formula});
  return call.run_cost(labels);
}

}  // namespace dino_kernels
