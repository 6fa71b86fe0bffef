// The part of ONNX Runtime's C ABI that this library uses, and no more: no registry serves the real headers
// for every platform that the library is built on, and the ABI is frozen.
//
// `OrtApi` is a table of function pointers that only ever grows at its end, so a slot's number is its
// contract (`GCE_ORT_SLOTS`). `OrtCustomOp` grows at its end too, guarded by its `version`. Enumerations are
// passed as `int`. tests/onnx_ops/abi_check.cpp compares all of it with the real header of API 21.
#ifndef GCE_ONNX_OPS_ORT_ABI_H_
#define GCE_ONNX_OPS_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;
struct OrtOpAttr;

namespace gce_onnx {

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };

enum ElementType : int {
  kFloat = 1,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kDouble = 11,
  kBFloat16 = 16
};

enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum AttributeType : int { kStringAttribute = 5 };
enum MemoryType : int { kDefaultMemory = 0 };

struct CustomOp;

// X(slot, name, result, parameters), in the order of the slots.
#define GCE_ORT_SLOTS(X)                                                                         \
  X(0, CreateStatus, OrtStatus*, (int code, const char* message))                                \
  X(2, GetErrorMessage, const char*, (const OrtStatus*))                                         \
  X(26, CreateCustomOpDomain, OrtStatus*, (const char* domain, OrtCustomOpDomain**))             \
  X(27, CustomOpDomain_Add, OrtStatus*, (OrtCustomOpDomain*, const CustomOp*))                   \
  X(28, AddCustomOpDomain, OrtStatus*, (OrtSessionOptions*, OrtCustomOpDomain*))                 \
  X(51, GetTensorMutableData, OrtStatus*, (OrtValue*, void** data))                              \
  X(57, CreateTensorTypeAndShapeInfo, OrtStatus*, (OrtTensorTypeAndShapeInfo**))                 \
  X(58, SetTensorElementType, OrtStatus*, (OrtTensorTypeAndShapeInfo*, int type))                \
  X(59, SetDimensions, OrtStatus*, (OrtTensorTypeAndShapeInfo*, const int64_t* dims, size_t n))  \
  X(60, GetTensorElementType, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, int* type))         \
  X(61, GetDimensionsCount, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, size_t* n))           \
  X(62, GetDimensions, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, int64_t* dims, size_t n))  \
  X(63, GetSymbolicDimensions, OrtStatus*,                                                       \
    (const OrtTensorTypeAndShapeInfo*, const char** names, size_t n))                            \
  X(65, GetTensorTypeAndShape, OrtStatus*, (const OrtValue*, OrtTensorTypeAndShapeInfo**))       \
  X(85, KernelInfoGetAttribute_float, OrtStatus*, (const OrtKernelInfo*, const char*, float*))   \
  X(86, KernelInfoGetAttribute_int64, OrtStatus*, (const OrtKernelInfo*, const char*, int64_t*)) \
  X(87, KernelInfoGetAttribute_string, OrtStatus*,                                               \
    (const OrtKernelInfo*, const char*, char* text, size_t* size))                               \
  X(88, KernelContext_GetInputCount, OrtStatus*, (const OrtKernelContext*, size_t*))             \
  X(89, KernelContext_GetOutputCount, OrtStatus*, (const OrtKernelContext*, size_t*))            \
  X(90, KernelContext_GetInput, OrtStatus*,                                                      \
    (const OrtKernelContext*, size_t index, const OrtValue**))                                   \
  X(91, KernelContext_GetOutput, OrtStatus*,                                                     \
    (OrtKernelContext*, size_t index, const int64_t* dims, size_t n, OrtValue**))                \
  X(93, ReleaseStatus, void, (OrtStatus*))                                                       \
  X(99, ReleaseTensorTypeAndShapeInfo, void, (OrtTensorTypeAndShapeInfo*))                       \
  X(130, AddSessionConfigEntry, OrtStatus*, (OrtSessionOptions*, const char*, const char*))      \
  X(237, HasSessionConfigEntry, OrtStatus*, (const OrtSessionOptions*, const char*, int* has))   \
  X(267, ShapeInferContext_GetInputCount, OrtStatus*, (const OrtShapeInferContext*, size_t*))    \
  X(268, ShapeInferContext_GetInputTypeShape, OrtStatus*,                                        \
    (const OrtShapeInferContext*, size_t index, OrtTensorTypeAndShapeInfo**))                    \
  X(269, ShapeInferContext_GetAttribute, OrtStatus*,                                             \
    (const OrtShapeInferContext*, const char*, const OrtOpAttr**))                               \
  X(270, ShapeInferContext_SetOutputTypeShape, OrtStatus*,                                       \
    (const OrtShapeInferContext*, size_t index, const OrtTensorTypeAndShapeInfo*))               \
  X(271, SetSymbolicDimensions, OrtStatus*,                                                      \
    (OrtTensorTypeAndShapeInfo*, const char** names, size_t n))                                  \
  X(272, ReadOpAttr, OrtStatus*,                                                                 \
    (const OrtOpAttr*, int type, void* data, size_t size, size_t* needed))                       \
  X(274, KernelContext_ParallelFor, OrtStatus*,                                                  \
    (const OrtKernelContext*, void (*)(void*, size_t), size_t total, size_t batches, void* data))

// OrtApi. Each function is read from its slot when it is called.
class Api {
 public:
#define GCE_ORT_FUNCTION(slot, name, result, parameters) \
  using name##Function = result(*) parameters;           \
  name##Function name() const { return reinterpret_cast<name##Function>(slots_[slot]); }
  GCE_ORT_SLOTS(GCE_ORT_FUNCTION)
#undef GCE_ORT_FUNCTION

 private:
  void (*slots_[275])();
};

// OrtApiBase
struct ApiBase {
  const Api* (*get_api)(uint32_t version);  // null for a version that the runtime does not have
  const char* (*get_version)();             // "1.17.3"
};

// OrtCustomOp as of API 17. A runtime reads the fields up to `version`.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const OrtKernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const CustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t index);
  int (*GetInputMemoryType)(const CustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const Api*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};

}  // namespace gce_onnx

#endif  // GCE_ONNX_OPS_ORT_ABI_H_
