// dino_kernels/_onnx.so: what ONNX Runtime calls, and the schemas of the ops.
//
// The library needs neither PyTorch nor Python. No exception leaves it.
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "../common/cpu_capability.h"
#include "ms_deform_attn.h"

namespace dino_kernels::ort {
namespace {

constexpr char kDomain[] = "dino_kernels";

// Calls f and returns what it throws as a status.
template <class F>
Status* guarded(const Api* api, F f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const Refusal& refusal) {
    return refusal.status;
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(Code::fail, "dino_kernels: out of memory. Use fewer threads or smaller inputs.");
  }
}

// One op with one choice of types: ONNX Runtime joins those of the same name to one schema.
struct Op : CustomOp {
  const Api* api;
  bool fused;
  Element value, samples;  // samples: offsets and logits, or attention weights

  Op(const Api* api, bool fused, Element value, Element samples);

  static const Op& of(const CustomOp* op) { return *static_cast<const Op*>(op); }
  size_t inputs() const { return fused ? kFusedInputs : kClassicInputs; }
  Element input(size_t index) const;
  void infer(ShapeInferContext* context) const;
};

Element Op::input(size_t index) const {
  const Element compute = value == Element::float64 ? Element::float64 : Element::float32;
  if (index == kValue) return value;
  if (index == kSpatialShapes) return Element::int64;
  if (!fused) return index == kLocations ? compute : index == kWeights ? samples : Element::int64;
  if (index == kReferencePoints) return compute;
  if (index == kOffsets || index == kLogits) return samples;
  return index == kValueMask ? Element::boolean : Element::int64;
}

// [B, Q, M * D] of value [B, S, M, D] and positions [B, Q, ...]. A size that is unknown is -1, and may have a
// name. ONNX Runtime calls this for one op of a name, whichever types the node has.
void Op::infer(ShapeInferContext* context) const {
  Element type{};
  const auto sizes_of = [&](size_t index, std::vector<int64_t>& sizes, std::vector<const char*>& names) {
    TypeAndShape* info = nullptr;  // owned by the context
    size_t count = 0;
    check(api->ShapeInferContext_GetInputTypeShape(context, index, &info));
    if (index == kValue) check(api->GetTensorElementType(info, &type));
    check(api->GetDimensionsCount(info, &count));
    sizes.resize(count);
    names.resize(count);
    check(api->GetDimensions(info, sizes.data(), count));
    check(api->GetSymbolicDimensions(info, names.data(), count));
  };
  std::vector<int64_t> of_value, of_positions;
  std::vector<const char*> value_names, position_names;
  sizes_of(kValue, of_value, value_names);
  sizes_of(fused ? kOffsets : kLocations, of_positions, position_names);
  if (type == Element{}) return;  // unknown, too
  // A wrong or unknown rank is not an error here: the node reports it where it runs.
  const bool known = of_value.size() == 4 && of_positions.size() == 5;
  const bool channels_known = known && of_value[2] >= 0 && of_value[3] >= 0;
  const int64_t sizes[] = {known ? of_value[0] : -1, known ? of_positions[1] : -1,
                           channels_known ? of_value[2] * of_value[3] : -1};
  const char* names[] = {known ? value_names[0] : "", known ? position_names[1] : "", ""};
  TypeAndShape* made = nullptr;
  check(api->CreateTensorTypeAndShapeInfo(&made));
  Status* status = api->SetTensorElementType(made, type);
  if (!status) status = api->SetDimensions(made, sizes, 3);
  if (!status) status = api->SetSymbolicDimensions(made, names, 3);
  if (!status) status = api->ShapeInferContext_SetOutputTypeShape(context, 0, made);
  api->ReleaseTensorTypeAndShapeInfo(made);
  check(status);
}

Op::Op(const Api* api_, bool fused_, Element value_, Element samples_)
    : CustomOp{}, api(api_), fused(fused_), value(value_), samples(samples_) {
  version = kVersion;
  name = [](const CustomOp* op) { return of(op).fused ? "FusedMSDeformAttn" : "MSDeformAttn"; };
  execution_provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
  input_type = [](const CustomOp* op, size_t index) { return of(op).input(index); };
  input_count = [](const CustomOp* op) { return of(op).inputs(); };
  output_type = [](const CustomOp* op, size_t) { return of(op).value; };
  output_count = [](const CustomOp*) { return size_t{1}; };
  input_presence = [](const CustomOp* op, size_t index) {
    const bool optional = index >= (of(op).fused ? kValueMask : kClassicStarts);
    return optional ? Presence::optional : Presence::required;
  };
  output_presence = [](const CustomOp*, size_t) { return Presence::required; };
  input_memory = [](const CustomOp*, size_t) { return 0; };
  for (auto& function : variadic) function = [](const CustomOp*) { return 1; };
  first_opset = [](const CustomOp*) { return 1; };
  last_opset = [](const CustomOp*) { return 1; };
  create_kernel_or_fail = [](const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = new MSDeformAttn(api, of(op).fused, info); });
  };
  destroy_kernel = [](void* kernel) { delete static_cast<MSDeformAttn*>(kernel); };
  compute_or_fail = [](void* kernel, KernelContext* context) {
    const auto& node = *static_cast<const MSDeformAttn*>(kernel);
    return guarded(node.api, [&] { node.run(context); });
  };
  infer_shape = [](const CustomOp* op, ShapeInferContext* context) {
    return guarded(of(op).api, [&] { of(op).infer(context); });
  };
}

// The ops for one copy of ONNX Runtime in this process. Sessions refer to them as long as they live.
struct Library {
  const Api* api;
  std::vector<std::unique_ptr<Op>> ops;
  CustomOpDomain* domain = nullptr;

  explicit Library(const Api* api_) : api(api_) {
    using enum Element;
    check(api->CreateCustomOpDomain(kDomain, &domain));
    for (const bool fused : {true, false}) {
      for (const Element value : {float32, float64, float16, bfloat16}) {
        add(fused, value, value);
        if (value == float16 || value == bfloat16) add(fused, value, float32);
      }
    }
  }

  void add(bool fused, Element value, Element samples) {
    ops.push_back(std::make_unique<Op>(api, fused, value, samples));
    check(api->CustomOpDomain_Add(domain, ops.back().get()));
  }
};

void add_to(SessionOptions* options, const Api* api) {
  constexpr char kRegistered[] = "dino_kernels.registered";
  int32_t registered = 0;
  check(api->HasSessionConfigEntry(options, kRegistered, &registered));
  if (registered) return;  // sessions refuse options that have a domain twice
  static std::mutex mutex;
  static auto& libraries = *new std::vector<std::unique_ptr<Library>>;  // outlives every session
  const std::lock_guard lock(mutex);
  const Library* found = nullptr;
  for (const auto& library : libraries) {
    if (library->api == api) found = library.get();
  }
  if (!found) found = libraries.emplace_back(std::make_unique<Library>(api)).get();
  check(api->AddCustomOpDomain(options, found->domain));
  check(api->AddSessionConfigEntry(options, kRegistered, "1"));
}

}  // namespace
}  // namespace dino_kernels::ort

#define DINO_EXPORT extern "C" __attribute__((visibility("default")))

// The entry point whose name ONNX Runtime looks for.
DINO_EXPORT dino_kernels::ort::Status* RegisterCustomOps(dino_kernels::ort::SessionOptions* options,
                                                         const dino_kernels::ort::ApiBase* base) {
  using namespace dino_kernels::ort;
  const Api* api = base->GetApi(kVersion);
  if (!api) {
    const std::string message =
        std::string("dino_kernels needs ONNX Runtime 1.17 or newer, this is ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(Code::fail, message.c_str());
  }
  return guarded(api, [&] { add_to(options, api); });
}

// The vector instructions that the kernels use on this machine.
DINO_EXPORT const char* dino_kernels_cpu_capability() { return dino_kernels::cpu_capability(); }
