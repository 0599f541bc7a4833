#include "ms_deform_attn.h"

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>

#include "../common/thread_scratch.h"
#include "../ms_deform_attn/cpu.h"

namespace dino_kernels::ort {
namespace {

using Shape = std::vector<int64_t>;

struct Tensor {
  void* data;
  Element type;
  Shape shape;
};

std::string text(const Shape& shape) {
  std::ostringstream out;
  out << "[";
  for (size_t d = 0; d < shape.size(); ++d) out << (d ? ", " : "") << shape[d];
  out << "]";
  return out.str();
}

// The inputs of one run, and its errors.
class Inputs {
 public:
  Inputs(const MSDeformAttn& node, const KernelContext* context) : node_(node), context_(context) {}

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    std::ostringstream out;
    out << "dino_kernels::" << (node_.fused ? "FusedMSDeformAttn: " : "MSDeformAttn: ");
    (out << ... << parts);
    throw Refusal{node_.api->CreateStatus(Code::invalid_argument, out.str().c_str())};
  }

  std::optional<Tensor> find(size_t index) const {
    const Value* value = nullptr;
    check(node_.api->KernelContext_GetInput(context_, index, &value));
    if (!value) return std::nullopt;
    TypeAndShape* info = nullptr;
    check(node_.api->GetTensorTypeAndShape(value, &info));
    Tensor found{};
    size_t dimensions = 0;
    Status* status = node_.api->GetTensorElementType(info, &found.type);
    if (!status) status = node_.api->GetDimensionsCount(info, &dimensions);
    found.shape.resize(dimensions);
    if (!status) status = node_.api->GetDimensions(info, found.shape.data(), dimensions);
    node_.api->ReleaseTensorTypeAndShapeInfo(info);
    check(status);
    check(node_.api->GetTensorMutableData(const_cast<Value*>(value), &found.data));
    return found;
  }

  Tensor get(size_t index, const char* name) const {
    std::optional<Tensor> found = find(index);
    if (!found) refuse(name, " is missing");
    return *found;
  }

  void expect_shape(const char* name, const Tensor& tensor, const char* letters, const Shape& shape) const {
    if (tensor.shape != shape) {
      refuse(name, " must be ", letters, " = ", text(shape), ", got ", text(tensor.shape));
    }
  }

  void expect_type(const char* name, const Tensor& tensor, std::initializer_list<Element> types) const {
    if (std::find(types.begin(), types.end(), tensor.type) == types.end()) {
      refuse(name, " must have value's type, or float32 (float64 for float64)");
    }
  }

 private:
  const MSDeformAttn& node_;
  const KernelContext* context_;
};

DType dtype_of(Element type) {
  switch (type) {
    case Element::float64:
      return DType::float64;
    case Element::float16:
      return DType::float16;
    case Element::bfloat16:
      return DType::bfloat16;
    default:
      return DType::float32;
  }
}

// [B, n, ...] without gaps.
Rows rows_of(const Tensor& tensor, int64_t length) { return {tensor.data, tensor.shape[1] * length, length}; }

void set_value(const Inputs& inputs, const Tensor& value, CpuParams& p) {
  // The limits of the PyTorch op: rows of value are numbered in 32 bits.
  constexpr int64_t kMostRows = (int64_t{1} << 30) - 1, kMostChannels = (int64_t{1} << 27) - 1;
  if (value.shape.size() != 4) inputs.refuse("value must be [B, S, M, D], got ", text(value.shape));
  p.B = value.shape[0];
  p.S = value.shape[1];
  p.M = value.shape[2];
  p.D = value.shape[3];
  if (p.S > kMostRows) {
    inputs.refuse("value has S = ", p.S, " rows, at most ", kMostRows, " are allowed");
  }
  if (p.M > kMostChannels || p.D > kMostChannels || p.M * p.D > kMostChannels) {
    inputs.refuse("value has M = ", p.M, " heads of D = ", p.D, " channels, at most M * D = ", kMostChannels,
                  " are allowed");
  }
  p.dtype = dtype_of(value.type);
  p.value = rows_of(value, p.M * p.D);
}

// The level table, checked against the S rows of value: this bounds every row that a kernel can read.
std::vector<Level> levels_of(const Inputs& inputs, const Shape& points, const std::optional<Tensor>& starts,
                             CpuParams& p) {
  const Tensor shapes = inputs.get(kSpatialShapes, "spatial_shapes");
  p.L = static_cast<int64_t>(points.size());
  inputs.expect_shape("spatial_shapes", shapes, "[L, 2], with a level for each of num_points,", {p.L, 2});
  if (starts) inputs.expect_shape("level_start_index", *starts, "[L]", {p.L});
  const auto* sizes = static_cast<const int64_t*>(shapes.data);
  std::vector<Level> levels;
  int64_t rows = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    const int64_t height = sizes[2 * l], width = sizes[2 * l + 1];
    if (height < 1 || width < 1 || height > p.S || width > p.S || height * width > p.S) {
      inputs.refuse("spatial_shapes has (", height, ", ", width, ") for level ", l,
                    "; sizes must be positive and fit into the S = ", p.S, " rows of value");
    }
    const int64_t start = starts ? static_cast<const int64_t*>(starts->data)[l] : rows;
    if (starts && (start < 0 || start > p.S - height * width)) {
      inputs.refuse("level ", l, " (", height, " x ", width, ") starts at row ", start,
                    " and ends after the S = ", p.S,
                    " rows of value; check spatial_shapes and level_start_index");
    }
    levels.push_back({static_cast<int32_t>(height), static_cast<int32_t>(width), start, p.K,
                      points[static_cast<size_t>(l)]});
    rows += height * width;
    p.K += points[static_cast<size_t>(l)];
  }
  if (!starts && rows != p.S) {
    inputs.refuse("value has S = ", p.S, " rows, spatial_shapes describes ", rows,
                  "; they must be equal (S = sum of H * W)");
  }
  return levels;
}

void set_samples(const Inputs& inputs, bool fused, const Tensor& value, CpuParams& p) {
  const Element compute = value.type == Element::float64 ? Element::float64 : Element::float32;
  const char* names[] = {fused ? "sampling_offsets" : "sampling_locations",
                         fused ? "attention_logits" : "attention_weights"};
  const Tensor positions = inputs.get(fused ? kOffsets : kLocations, names[0]);
  const Tensor weights = inputs.get(fused ? kLogits : kWeights, names[1]);
  if (positions.shape.size() != 5) {
    inputs.refuse(names[0], " must be [B, Q, M, K, 2], got ", text(positions.shape));
  }
  p.Q = positions.shape[1];
  inputs.expect_shape(names[0], positions, "[B, Q, M, K, 2], K = the sum of num_points,",
                      {p.B, p.Q, p.M, p.K, 2});
  inputs.expect_shape(names[1], weights, "[B, Q, M, K]", {p.B, p.Q, p.M, p.K});
  inputs.expect_type(names[0], positions, {value.type, compute});
  inputs.expect_type(names[1], weights, {value.type, compute});
  p.positions = rows_of(positions, p.M * p.K * 2);
  p.weights = rows_of(weights, p.M * p.K);
  p.positions_as_value = positions.type != compute;
  p.weights_as_value = weights.type != compute;
  if (!fused) return;
  const Tensor references = inputs.get(kReferencePoints, "reference_points");
  p.reference_coordinates = references.shape.size() == 4 && references.shape[3] == 4 ? 4 : 2;
  inputs.expect_shape("reference_points", references, "[B, Q, L, 2 or 4]",
                      {p.B, p.Q, p.L, p.reference_coordinates});
  inputs.expect_type("reference_points", references, {compute});
  p.reference_points = references.data;
  if (const std::optional<Tensor> mask = inputs.find(kValueMask)) {
    inputs.expect_shape("value_mask", *mask, "[B, S]", {p.B, p.S});
    p.value_mask = static_cast<const bool*>(mask->data);
  }
}

// Ranges of a kernel's tasks, as tasks of ONNX Runtime's threads: each span is divided into ranges of
// `length`.
struct Ranges {
  const CpuParams& p;
  const CpuKernel& kernel;
  int64_t span, length, scratch_bytes;
  std::atomic<bool> out_of_memory{false};

  int64_t of_span() const { return (span + length - 1) / length; }
  void run(int64_t index) noexcept {
    try {
      const ThreadScratch scratch(scratch_bytes);
      const int64_t first = index / of_span() * span, begin = first + index % of_span() * length;
      const int64_t end = std::min(begin + length, first + span);
      kernel.run(p, begin, end, scratch.get());
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
};

}  // namespace

MSDeformAttn::MSDeformAttn(const Api* api_, bool fused_, const KernelInfo* info) : api(api_), fused(fused_) {
  size_t count = 0;
  if (Status* missing = api->KernelInfoGetAttributeArray_int64(info, "num_points", nullptr, &count)) {
    api->ReleaseStatus(missing);
    count = 0;
  }
  num_points.resize(count);
  if (count) check(api->KernelInfoGetAttributeArray_int64(info, "num_points", num_points.data(), &count));
  constexpr int64_t kMostPoints = 1 << 20;
  const auto allowed = [](int64_t points) { return points >= 0 && points <= kMostPoints; };
  if (num_points.empty() || !std::all_of(num_points.begin(), num_points.end(), allowed)) {
    Inputs(*this, nullptr)
        .refuse("num_points must have a count from 0 to ", kMostPoints, " a level, got ", text(num_points));
  }
}

void MSDeformAttn::run(KernelContext* context) const {
  const Inputs inputs(*this, context);
  CpuParams p{};
  const Tensor value = inputs.get(kValue, "value");
  set_value(inputs, value, p);
  const std::optional<Tensor> starts = inputs.find(fused ? kFusedStarts : kClassicStarts);
  const std::vector<Level> levels = levels_of(inputs, num_points, starts, p);
  p.levels = levels.data();
  set_samples(inputs, fused, value, p);

  const int64_t shape[] = {p.B, p.Q, p.M * p.D};
  Value* output = nullptr;
  check(api->KernelContext_GetOutput(context, 0, shape, 3, &output));
  if (p.B == 0 || p.Q == 0 || p.M * p.D == 0) return;
  check(api->GetTensorMutableData(output, &p.output));

  const CpuKernels& kernels = kernels_for(p);
  p.heads_per_table = heads_per_table(p, lanes_of(p, kernels));
  // The number of the session's threads is not known here; enough ranges for any to be busy to the end.
  // By head, each copies a head's rows: two for a head.
  constexpr int64_t kMostRanges = 128;
  p.by_head = pays_by_head(p);
  const int64_t span = p.by_head ? p.Q : p.B * p.Q, most = p.by_head ? 2 : kMostRanges;
  const int64_t grain = query_grain(p) * (p.by_head ? p.M : 1);
  const int64_t length = std::max(grain, (span + most - 1) / most);
  Ranges ranges{p, kernels.forward, span, length, kernels.forward.scratch_bytes(p)};
  const int64_t count = ranges.of_span() * (p.by_head ? p.B * p.M : 1);
  if (count == 1) {
    ranges.run(0);
  } else {
    const auto work = [](void* data, size_t i) { static_cast<Ranges*>(data)->run(static_cast<int64_t>(i)); };
    check(api->KernelContext_ParallelFor(context, work, static_cast<size_t>(count), 0, &ranges));
  }
  if (ranges.out_of_memory) throw std::bad_alloc();
}

}  // namespace dino_kernels::ort
