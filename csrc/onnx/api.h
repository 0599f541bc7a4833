// The part of ONNX Runtime's C API that the custom ops use, as of version 17 (ONNX Runtime 1.17).
//
// Its wheels bring no header. The API is a table of functions whose positions are fixed: a release only
// appends to it, and serves every older version. Likewise the layout of a custom op.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dino_kernels::ort {

constexpr uint32_t kVersion = 17;

struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct SessionOptions;
struct ShapeInferContext;
struct Status;  // null: success
struct TypeAndShape;
struct Value;

enum class Code : int32_t { fail = 1, invalid_argument = 2 };
enum class Element : int32_t {
  float32 = 1,
  int64 = 7,
  boolean = 9,
  float16 = 10,
  float64 = 11,
  bfloat16 = 16
};
enum class Presence : int32_t { required = 0, optional = 1 };

template <size_t kCount>
using Unused = void* [kCount];

struct Api {
  Status* (*CreateStatus)(Code, const char* message);
  Unused<25> unused1;
  Status* (*CreateCustomOpDomain)(const char* name, CustomOpDomain**);
  Status* (*CustomOpDomain_Add)(CustomOpDomain*, const struct CustomOp*);
  Status* (*AddCustomOpDomain)(SessionOptions*, CustomOpDomain*);
  Unused<22> unused29;
  Status* (*GetTensorMutableData)(Value*, void**);
  Unused<5> unused52;
  Status* (*CreateTensorTypeAndShapeInfo)(TypeAndShape**);
  Status* (*SetTensorElementType)(TypeAndShape*, Element);
  Status* (*SetDimensions)(TypeAndShape*, const int64_t* sizes, size_t count);
  Status* (*GetTensorElementType)(const TypeAndShape*, Element*);
  Status* (*GetDimensionsCount)(const TypeAndShape*, size_t*);
  Status* (*GetDimensions)(const TypeAndShape*, int64_t* sizes, size_t count);
  Status* (*GetSymbolicDimensions)(const TypeAndShape*, const char** names, size_t count);
  Unused<1> unused64;
  Status* (*GetTensorTypeAndShape)(const Value*, TypeAndShape**);
  Unused<24> unused66;
  Status* (*KernelContext_GetInput)(const KernelContext*, size_t index, const Value**);
  Status* (*KernelContext_GetOutput)(KernelContext*, size_t index, const int64_t* sizes, size_t count,
                                     Value**);
  Unused<1> unused92;
  void (*ReleaseStatus)(Status*);
  Unused<5> unused94;
  void (*ReleaseTensorTypeAndShapeInfo)(TypeAndShape*);
  Unused<30> unused100;
  Status* (*AddSessionConfigEntry)(SessionOptions*, const char* key, const char* value);
  Unused<32> unused131;
  Status* (*KernelInfoGetAttributeArray_int64)(const KernelInfo*, const char* name, int64_t*, size_t* count);
  Unused<73> unused164;
  Status* (*HasSessionConfigEntry)(const SessionOptions*, const char* key, int32_t* found);
  Unused<30> unused238;
  Status* (*ShapeInferContext_GetInputTypeShape)(const ShapeInferContext*, size_t index, TypeAndShape**);
  Unused<1> unused269;
  Status* (*ShapeInferContext_SetOutputTypeShape)(const ShapeInferContext*, size_t index,
                                                  const TypeAndShape*);
  Status* (*SetSymbolicDimensions)(TypeAndShape*, const char** names, size_t count);
  Unused<2> unused272;
  // Calls work(data, i) for 0 <= i < total on the session's threads, which take the next i when they have
  // finished one if `batches` is 0.
  Status* (*KernelContext_ParallelFor)(const KernelContext*, void (*work)(void* data, size_t i), size_t total,
                                       size_t batches, void* data);
};
#define DINO_ORT_POSITION(function, position) \
  static_assert(offsetof(Api, function) == position * sizeof(void*))
DINO_ORT_POSITION(AddCustomOpDomain, 28);
DINO_ORT_POSITION(GetTensorMutableData, 51);
DINO_ORT_POSITION(CreateTensorTypeAndShapeInfo, 57);
DINO_ORT_POSITION(GetTensorTypeAndShape, 65);
DINO_ORT_POSITION(KernelContext_GetOutput, 91);
DINO_ORT_POSITION(ReleaseStatus, 93);
DINO_ORT_POSITION(ReleaseTensorTypeAndShapeInfo, 99);
DINO_ORT_POSITION(AddSessionConfigEntry, 130);
DINO_ORT_POSITION(KernelInfoGetAttributeArray_int64, 163);
DINO_ORT_POSITION(HasSessionConfigEntry, 237);
DINO_ORT_POSITION(ShapeInferContext_GetInputTypeShape, 268);
DINO_ORT_POSITION(ShapeInferContext_SetOutputTypeShape, 270);
DINO_ORT_POSITION(KernelContext_ParallelFor, 274);
#undef DINO_ORT_POSITION

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // null: this ONNX Runtime is older
  const char* (*GetVersionString)();
};

struct CustomOp {
  uint32_t version;
  Unused<1> create_kernel;  // the form without a status, as `compute` below
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);
  Element (*input_type)(const CustomOp*, size_t index);
  size_t (*input_count)(const CustomOp*);
  Element (*output_type)(const CustomOp*, size_t index);
  size_t (*output_count)(const CustomOp*);
  Unused<1> compute;
  void (*destroy_kernel)(void* kernel);
  Presence (*input_presence)(const CustomOp*, size_t index);
  Presence (*output_presence)(const CustomOp*, size_t index);
  int32_t (*input_memory)(const CustomOp*, size_t index);  // 0: that of the execution provider
  int32_t (*variadic[4])(const CustomOp*);  // least number and homogeneity of variadic inputs and outputs
  Status* (*create_kernel_or_fail)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute_or_fail)(void* kernel, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, ShapeInferContext*);
  int32_t (*first_opset)(const CustomOp*);
  int32_t (*last_opset)(const CustomOp*);
  Unused<4> later;  // of version 18
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*));

}  // namespace dino_kernels::ort
