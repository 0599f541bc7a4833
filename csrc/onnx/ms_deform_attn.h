// A node of ONNX Runtime that runs the CPU kernels of ms_deform_attn and fused_ms_deform_attn.
#pragma once

#include <vector>

#include "api.h"

namespace dino_kernels::ort {

// What is wrong with a node or its inputs; thrown by value.
struct Refusal {
  Status* status;
};

// Turns a status into an exception.
inline void check(Status* status) {
  if (status) throw Refusal{status};
}

struct MSDeformAttn {
  const Api* api;
  bool fused;
  std::vector<int64_t> num_points;  // [L]

  // Throws Refusal where num_points is missing or negative.
  MSDeformAttn(const Api* api, bool fused, const KernelInfo* info);

  // Throws Refusal, also where memory is missing.
  void run(KernelContext* context) const;
};

// Places of the inputs in a node. Optional ones come last.
enum Input : size_t {
  kValue,
  kSpatialShapes,
  // of FusedMSDeformAttn
  kReferencePoints = 2,
  kOffsets,
  kLogits,
  kValueMask,
  kFusedStarts,
  kFusedInputs,
  // of MSDeformAttn
  kLocations = 2,
  kWeights,
  kClassicStarts,
  kClassicInputs,
};

}  // namespace dino_kernels::ort
