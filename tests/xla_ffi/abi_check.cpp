// xla_ffi/ffi_abi.h against XLA's own header, at compile time: slots, fields and constants. It is compiled and
// never run; tests/xla_ffi/test_ffi_abi.py finds the header in jaxlib.
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <xla/ffi/api/c_api.h>

#include "ffi_abi.h"

namespace gce_xla {

// --- versions ------------------------------------------------------------------------------------

static_assert(kMajorVersion == XLA_FFI_API_MAJOR, "another major version");
static_assert(kOldestMinorVersion <= XLA_FFI_API_MINOR, "older than this library supports");
static_assert(kNewestMinorVersion >= XLA_FFI_API_MINOR,
              "a newer version: see what it changed, then raise kNewestMinorVersion");

// --- structs -------------------------------------------------------------------------------------

// The same place and size; an enum here is an int of ours.
#define CHECK_FIELD(Real, real, Ours, ours)                                                        \
  static_assert(offsetof(Real, real) == offsetof(Ours, ours), #Ours "::" #ours ": another place"); \
  static_assert(sizeof(Real::real) == sizeof(Ours::ours), #Ours "::" #ours ": another size");      \
  static_assert(                                                                                   \
      std::is_pointer_v<decltype(Real::real)> == std::is_pointer_v<decltype(Ours::ours)>,          \
      #Ours "::" #ours ": another type");
#define CHECK_START(Real, Ours)                     \
  CHECK_FIELD(Real, struct_size, Ours, struct_size) \
  CHECK_FIELD(Real, extension_start, Ours, extension_start)
// What this library makes and XLA reads must not be smaller.
#define CHECK_MADE(Real, Ours) \
  CHECK_START(Real, Ours)      \
  static_assert(sizeof(Ours) == sizeof(Real), #Ours ": another size");

CHECK_FIELD(XLA_FFI_Extension_Base, struct_size, Extension, struct_size)
CHECK_FIELD(XLA_FFI_Extension_Base, type, Extension, type)
CHECK_FIELD(XLA_FFI_Extension_Base, next, Extension, next)
static_assert(sizeof(Extension) == sizeof(XLA_FFI_Extension_Base), "Extension: another size");

CHECK_MADE(XLA_FFI_Api_Version, ApiVersion)
CHECK_FIELD(XLA_FFI_Api_Version, major_version, ApiVersion, major_version)
CHECK_FIELD(XLA_FFI_Api_Version, minor_version, ApiVersion, minor_version)

CHECK_MADE(XLA_FFI_Error_Create_Args, ErrorCreateArgs)
CHECK_FIELD(XLA_FFI_Error_Create_Args, message, ErrorCreateArgs, message)
CHECK_FIELD(XLA_FFI_Error_Create_Args, errc, ErrorCreateArgs, code)

CHECK_MADE(XLA_FFI_Error_Destroy_Args, ErrorDestroyArgs)
CHECK_FIELD(XLA_FFI_Error_Destroy_Args, error, ErrorDestroyArgs, error)

CHECK_MADE(XLA_FFI_ThreadPool_Schedule_Args, ThreadPoolScheduleArgs)
CHECK_FIELD(XLA_FFI_ThreadPool_Schedule_Args, ctx, ThreadPoolScheduleArgs, context)
CHECK_FIELD(XLA_FFI_ThreadPool_Schedule_Args, task, ThreadPoolScheduleArgs, task)
CHECK_FIELD(XLA_FFI_ThreadPool_Schedule_Args, data, ThreadPoolScheduleArgs, data)
static_assert(std::is_same_v<XLA_FFI_Task*, decltype(ThreadPoolScheduleArgs::task)>);

CHECK_MADE(XLA_FFI_ThreadPool_NumThreads_Args, ThreadPoolNumThreadsArgs)
CHECK_FIELD(XLA_FFI_ThreadPool_NumThreads_Args, ctx, ThreadPoolNumThreadsArgs, context)
CHECK_FIELD(XLA_FFI_ThreadPool_NumThreads_Args, num_threads, ThreadPoolNumThreadsArgs, num_threads)
static_assert(std::is_same_v<decltype(XLA_FFI_ThreadPool_NumThreads_Args::num_threads), int64_t*>);

CHECK_START(XLA_FFI_Buffer, Buffer)
CHECK_FIELD(XLA_FFI_Buffer, dtype, Buffer, dtype)
CHECK_FIELD(XLA_FFI_Buffer, data, Buffer, data)
CHECK_FIELD(XLA_FFI_Buffer, rank, Buffer, rank)
CHECK_FIELD(XLA_FFI_Buffer, dims, Buffer, dims)

CHECK_FIELD(XLA_FFI_ByteSpan, ptr, ByteSpan, ptr)
CHECK_FIELD(XLA_FFI_ByteSpan, len, ByteSpan, len)
CHECK_FIELD(XLA_FFI_Scalar, dtype, Scalar, dtype)
CHECK_FIELD(XLA_FFI_Scalar, value, Scalar, value)

CHECK_START(XLA_FFI_Args, Buffers)
CHECK_FIELD(XLA_FFI_Args, size, Buffers, size)
CHECK_FIELD(XLA_FFI_Args, types, Buffers, types)
CHECK_FIELD(XLA_FFI_Args, args, Buffers, buffers)
CHECK_START(XLA_FFI_Rets, Buffers)
CHECK_FIELD(XLA_FFI_Rets, size, Buffers, size)
CHECK_FIELD(XLA_FFI_Rets, types, Buffers, types)
CHECK_FIELD(XLA_FFI_Rets, rets, Buffers, buffers)

CHECK_START(XLA_FFI_Attrs, Attributes)
CHECK_FIELD(XLA_FFI_Attrs, size, Attributes, size)
CHECK_FIELD(XLA_FFI_Attrs, types, Attributes, types)
CHECK_FIELD(XLA_FFI_Attrs, names, Attributes, names)
CHECK_FIELD(XLA_FFI_Attrs, attrs, Attributes, attributes)
static_assert(std::is_same_v<decltype(XLA_FFI_Attrs::names), XLA_FFI_ByteSpan**>);

CHECK_START(XLA_FFI_CallFrame, CallFrame)
CHECK_FIELD(XLA_FFI_CallFrame, api, CallFrame, api)
CHECK_FIELD(XLA_FFI_CallFrame, ctx, CallFrame, context)
CHECK_FIELD(XLA_FFI_CallFrame, stage, CallFrame, stage)
CHECK_FIELD(XLA_FFI_CallFrame, args, CallFrame, arguments)
CHECK_FIELD(XLA_FFI_CallFrame, rets, CallFrame, results)
CHECK_FIELD(XLA_FFI_CallFrame, attrs, CallFrame, attributes)

CHECK_FIELD(XLA_FFI_Metadata, struct_size, Metadata, struct_size)
CHECK_FIELD(XLA_FFI_Metadata, api_version, Metadata, api_version)
CHECK_FIELD(XLA_FFI_Metadata, traits, Metadata, traits)
CHECK_FIELD(XLA_FFI_Metadata_Extension, extension_base, MetadataExtension, base)
CHECK_FIELD(XLA_FFI_Metadata_Extension, metadata, MetadataExtension, metadata)

// --- Api -----------------------------------------------------------------------------------------

constexpr size_t kPointer = sizeof(void (*)());
// Where the table begins: behind the size, the extensions, the version and a pointer.
constexpr size_t kTable = offsetof(XLA_FFI_Api, XLA_FFI_Error_Create);

static_assert(offsetof(XLA_FFI_Api, api_version) == 2 * kPointer, "version: another place");
static_assert(kTable == 2 * kPointer + sizeof(ApiVersion) + kPointer, "table: another place");
static_assert(sizeof(Api) <= sizeof(XLA_FFI_Api), "Api: larger than the real one");

template <class Result, class Argument>
constexpr bool takes_one_pointer(Result (*)(Argument*)) {
  return true;
}

#define CHECK_SLOT(slot, name, result, argument)                                            \
  static_assert(offsetof(XLA_FFI_Api, XLA_FFI_##name) == kTable + (slot) * kPointer,        \
                #name ": another slot");                                                    \
  static_assert(sizeof(Api) >= kTable + ((slot) + 1) * kPointer, #name ": beyond the end"); \
  static_assert(takes_one_pointer(static_cast<XLA_FFI_##name*>(nullptr)), #name ": another type");
GCE_XLA_SLOTS(CHECK_SLOT)

static_assert(std::is_same_v<XLA_FFI_Error_Create, XLA_FFI_Error*(XLA_FFI_Error_Create_Args*)>);
static_assert(std::is_same_v<XLA_FFI_Error_Destroy, void(XLA_FFI_Error_Destroy_Args*)>);
static_assert(
    std::is_same_v<XLA_FFI_ThreadPool_Schedule, XLA_FFI_Error*(XLA_FFI_ThreadPool_Schedule_Args*)>);
static_assert(std::is_same_v<XLA_FFI_ThreadPool_NumThreads,
                             XLA_FFI_Error*(XLA_FFI_ThreadPool_NumThreads_Args*)>);
static_assert(std::is_same_v<XLA_FFI_Handler, XLA_FFI_Error*(XLA_FFI_CallFrame*)>);

// --- constants -----------------------------------------------------------------------------------

#define CHECK_CONSTANT(ours, real) \
  static_assert(static_cast<int>(ours) == static_cast<int>(real), #ours ": another value");
#define CASE(ours, real) case ours:
// A switch without a default: the compiler warns of an enumerator that the list lacks.
#define CHECK_CONSTANTS(Enum, Real, LIST)                              \
  static_assert(sizeof(Real) == sizeof(int), #Real ": no int's size"); \
  LIST(CHECK_CONSTANT)                                                 \
  constexpr bool is_listed(Enum constant) {                            \
    switch (constant) {                                                \
      LIST(CASE)                                                       \
      return true;                                                     \
    }                                                                  \
    return false;                                                      \
  }

#define ERROR_CODES(X)                                         \
  X(kInvalidArgument, XLA_FFI_Error_Code_INVALID_ARGUMENT)     \
  X(kResourceExhausted, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED) \
  X(kInternal, XLA_FFI_Error_Code_INTERNAL)
CHECK_CONSTANTS(ErrorCode, XLA_FFI_Error_Code, ERROR_CODES)

#define DATA_TYPES(X)           \
  X(kS8, XLA_FFI_DataType_S8)   \
  X(kS16, XLA_FFI_DataType_S16) \
  X(kS32, XLA_FFI_DataType_S32) \
  X(kS64, XLA_FFI_DataType_S64) \
  X(kU8, XLA_FFI_DataType_U8)   \
  X(kU16, XLA_FFI_DataType_U16) \
  X(kU32, XLA_FFI_DataType_U32) \
  X(kU64, XLA_FFI_DataType_U64) \
  X(kF16, XLA_FFI_DataType_F16) \
  X(kF32, XLA_FFI_DataType_F32) \
  X(kF64, XLA_FFI_DataType_F64) \
  X(kBF16, XLA_FFI_DataType_BF16)
CHECK_CONSTANTS(DataType, XLA_FFI_DataType, DATA_TYPES)

#define EXTENSION_TYPES(X) X(kMetadata, XLA_FFI_Extension_Metadata)
CHECK_CONSTANTS(ExtensionType, XLA_FFI_Extension_Type, EXTENSION_TYPES)

#define BUFFER_TYPES(X) X(kBuffer, XLA_FFI_ArgType_BUFFER)
CHECK_CONSTANTS(BufferType, XLA_FFI_ArgType, BUFFER_TYPES)
static_assert(static_cast<int>(kBuffer) == static_cast<int>(XLA_FFI_RetType_BUFFER));

#define ATTRIBUTE_TYPES(X)            \
  X(kScalar, XLA_FFI_AttrType_SCALAR) \
  X(kString, XLA_FFI_AttrType_STRING)
CHECK_CONSTANTS(AttributeType, XLA_FFI_AttrType, ATTRIBUTE_TYPES)

#define STAGES(X) X(kExecute, XLA_FFI_ExecutionStage_EXECUTE)
CHECK_CONSTANTS(Stage, XLA_FFI_ExecutionStage, STAGES)

}  // namespace gce_xla
