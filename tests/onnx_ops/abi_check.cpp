// onnx_ops/ort_abi.h and host_abi.h against ONNX Runtime's own header, at compile time: slots,
// signatures, structs and constants. It is compiled and never run; tests/onnx_ops/test_abi.py finds
// the header. What is compared comes from the X-macros that the code itself is made from; where C++
// cannot list what there is (fields, enumerators), the lists below are checked to be complete.
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <onnxruntime/onnxruntime_c_api.h>

#include "host_abi.h"
#include "ort_abi.h"

namespace gce_onnx {

// The real functions must not have their results ignored: no part of a signature, as the compiler
// reminds.
#pragma GCC diagnostic ignored "-Wignored-attributes"

// --- the real types as ours say them -------------------------------------------------------------

// An enum is an int, no function is noexcept, and two structs have names of our own.
template <class T, bool = std::is_enum_v<T>>
struct As {
  using type = T;
};
template <class T>
struct As<T, true> {
  static_assert(sizeof(T) == sizeof(int), "an enum of another size than int");
  using type = int;
};
template <class T>
struct As<const T, false> {
  using type = const typename As<T>::type;
};
template <class T>
struct As<T*, false> {
  using type = typename As<T>::type*;
};
template <class Result, class... Parameters>
struct As<Result(Parameters...), false> {
  using type = typename As<Result>::type(typename As<Parameters>::type...);
};
template <class Result, class... Parameters>
struct As<Result(Parameters...) noexcept, false> {
  using type = typename As<Result(Parameters...)>::type;
};
template <>
struct As<OrtApi> {
  using type = Api;
};
template <>
struct As<OrtCustomOp> {
  using type = CustomOp;
};

template <class Real, class Ours>
constexpr bool is_same = std::is_same_v<typename As<Real>::type, Ours>;

// --- OrtApi --------------------------------------------------------------------------------------

constexpr size_t kPointer = sizeof(void (*)());

#define CHECK_SLOT(Table, slot, name)                                                           \
  static_assert(offsetof(OrtApi, name) == (slot) * kPointer, #name ": another slot");           \
  static_assert(sizeof(Table) >= ((slot) + 1) * kPointer, #name ": beyond the end of " #Table); \
  static_assert(is_same<decltype(OrtApi::name), Table::name##Function>, #name ": another type");
#define CHECK_OF_API(slot, name, result, parameters) CHECK_SLOT(Api, slot, name)
#define CHECK_OF_HOST_API(slot, name, result, parameters) CHECK_SLOT(HostApi, slot, name)

GCE_ORT_SLOTS(CHECK_OF_API)
GCE_ORT_HOST_SLOTS(CHECK_OF_HOST_API)

static_assert(sizeof(Api) <= sizeof(OrtApi), "Api: larger than the real table");

// --- structs -------------------------------------------------------------------------------------

#define CHECK_FIELD(Real, real, Ours, ours)                                             \
  static_assert(offsetof(Real, real) == offsetof(Ours, ours), #ours ": another place"); \
  static_assert(is_same<decltype(Real::real), decltype(Ours::ours)>, #ours ": another type");

CHECK_FIELD(OrtApiBase, GetApi, ApiBase, get_api)
CHECK_FIELD(OrtApiBase, GetVersionString, ApiBase, get_version)
static_assert(sizeof(ApiBase) == sizeof(OrtApiBase), "ApiBase: another size");

// clang-format off
#define CUSTOM_OP_FIELDS(X)                                                                       \
  X(version) X(CreateKernel) X(GetName) X(GetExecutionProviderType) X(GetInputType)               \
  X(GetInputTypeCount) X(GetOutputType) X(GetOutputTypeCount) X(KernelCompute) X(KernelDestroy)   \
  X(GetInputCharacteristic) X(GetOutputCharacteristic) X(GetInputMemoryType)                      \
  X(GetVariadicInputMinArity) X(GetVariadicInputHomogeneity) X(GetVariadicOutputMinArity)         \
  X(GetVariadicOutputHomogeneity) X(CreateKernelV2) X(KernelComputeV2) X(InferOutputShapeFn)      \
  X(GetStartVersion) X(GetEndVersion)
// clang-format on

#define CHECK_CUSTOM_OP_FIELD(name) CHECK_FIELD(OrtCustomOp, name, CustomOp, name)
#define ONE_MORE(name) +1

CUSTOM_OP_FIELDS(CHECK_CUSTOM_OP_FIELD)
// Each field takes one pointer's place, `version` with its padding too.
static_assert(sizeof(CustomOp) == (0 CUSTOM_OP_FIELDS(ONE_MORE)) * kPointer,
              "a field is not listed");
static_assert(sizeof(CustomOp) == offsetof(OrtCustomOp, GetMayInplace), "CustomOp: another end");

// --- constants -----------------------------------------------------------------------------------

#define CHECK_CONSTANT(ours, real) \
  static_assert(static_cast<int>(ours) == static_cast<int>(real), #ours ": another value");
#define CASE(ours, real) case ours:
// A switch without a default: the compiler warns of an enumerator that the list lacks.
#define CHECK_CONSTANTS(Enum, LIST)         \
  LIST(CHECK_CONSTANT)                      \
  constexpr bool is_listed(Enum constant) { \
    switch (constant) {                     \
      LIST(CASE)                            \
      return true;                          \
    }                                       \
    return false;                           \
  }

#define ERROR_CODES(X)                      \
  X(kFail, ORT_FAIL)                        \
  X(kInvalidArgument, ORT_INVALID_ARGUMENT) \
  X(kRuntimeException, ORT_RUNTIME_EXCEPTION)
CHECK_CONSTANTS(ErrorCode, ERROR_CODES)

#define ELEMENT_TYPES(X)                             \
  X(kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)     \
  X(kInt32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)     \
  X(kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)     \
  X(kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) \
  X(kDouble, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE)   \
  X(kBFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)
CHECK_CONSTANTS(ElementType, ELEMENT_TYPES)

#define CHARACTERISTICS(X)            \
  X(kRequired, INPUT_OUTPUT_REQUIRED) \
  X(kOptional, INPUT_OUTPUT_OPTIONAL)
CHECK_CONSTANTS(Characteristic, CHARACTERISTICS)

#define ATTRIBUTE_TYPES(X) X(kStringAttribute, ORT_OP_ATTR_STRING)
CHECK_CONSTANTS(AttributeType, ATTRIBUTE_TYPES)

#define MEMORY_TYPES(X) X(kDefaultMemory, OrtMemTypeDefault)
CHECK_CONSTANTS(MemoryType, MEMORY_TYPES)

#define LOGGING_LEVELS(X) X(kFatalOnly, ORT_LOGGING_LEVEL_FATAL)
CHECK_CONSTANTS(LoggingLevel, LOGGING_LEVELS)

#define ALLOCATOR_TYPES(X) X(kDeviceAllocator, OrtDeviceAllocator)
CHECK_CONSTANTS(AllocatorType, ALLOCATOR_TYPES)

}  // namespace gce_onnx
