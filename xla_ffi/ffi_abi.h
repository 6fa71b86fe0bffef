// The part of XLA's FFI C API that this library uses, and no more: so that the build needs no jax, and one
// binary serves every release with this ABI.
//
// Structs begin with their size and grow at their end; `Api` is a table of functions that grows at its end.
// What is here is the same in versions 0.1 (jaxlib 0.5) to 0.3 (0.10). Enumerations are passed as `int`.
// tests/xla_ffi/abi_check.cpp compares all of it with the header of the jaxlib that is installed.
#ifndef GCE_XLA_FFI_FFI_ABI_H_
#define GCE_XLA_FFI_FFI_ABI_H_

#include <cstddef>
#include <cstdint>

namespace gce_xla {

struct Error;             // XLA's own
struct ExecutionContext;  // XLA's own

constexpr int kMajorVersion = 0;
constexpr int kOldestMinorVersion = 1;
constexpr int kNewestMinorVersion = 3;

enum ErrorCode : int { kInvalidArgument = 3, kResourceExhausted = 8, kInternal = 13 };

enum DataType : int {
  kS8 = 2,
  kS16 = 3,
  kS32 = 4,
  kS64 = 5,
  kU8 = 6,
  kU16 = 7,
  kU32 = 8,
  kU64 = 9,
  kF16 = 10,
  kF32 = 11,
  kF64 = 12,
  kBF16 = 16
};

enum ExtensionType : int { kMetadata = 1 };
enum BufferType : int { kBuffer = 1 };  // of arguments and of results
enum AttributeType : int { kScalar = 3, kString = 4 };
enum Stage : int { kExecute = 3 };

struct Extension {
  size_t struct_size;
  int type;  // an ExtensionType
  Extension* next;
};

struct ApiVersion {
  size_t struct_size;
  Extension* extension_start;
  int major_version;
  int minor_version;
};

struct ErrorCreateArgs {
  size_t struct_size;
  Extension* extension_start;
  const char* message;
  int code;  // an ErrorCode
};

struct ErrorDestroyArgs {
  size_t struct_size;
  Extension* extension_start;
  Error* error;
};

struct ThreadPoolScheduleArgs {
  size_t struct_size;
  Extension* extension_start;
  ExecutionContext* context;
  void (*task)(void* data);
  void* data;
};

struct ThreadPoolNumThreadsArgs {
  size_t struct_size;
  Extension* extension_start;
  ExecutionContext* context;
  int64_t* num_threads;
};

struct Buffer {
  size_t struct_size;
  Extension* extension_start;
  int dtype;  // a DataType
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct ByteSpan {
  const char* ptr;
  size_t len;
};

struct Scalar {
  int dtype;  // a DataType
  void* value;
};

// Arguments and results: each is a Buffer if its type is kBuffer.
struct Buffers {
  size_t struct_size;
  Extension* extension_start;
  int64_t size;
  int* types;  // BufferType
  void** buffers;
};

// A Scalar or a ByteSpan, by its type.
struct Attributes {
  size_t struct_size;
  Extension* extension_start;
  int64_t size;
  int* types;  // AttributeType
  ByteSpan** names;
  void** attributes;
};

class Api;

struct CallFrame {
  size_t struct_size;
  Extension* extension_start;
  const Api* api;
  ExecutionContext* context;
  int stage;  // a Stage
  Buffers arguments;
  Buffers results;
  Attributes attributes;
};

struct Metadata {
  size_t struct_size;
  ApiVersion api_version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

// X(slot, name, result, argument), in the order of the slots: pointers behind `internal_api`.
#define GCE_XLA_SLOTS(X)                                      \
  X(0, Error_Create, Error*, ErrorCreateArgs*)                \
  X(2, Error_Destroy, void, ErrorDestroyArgs*)                \
  X(11, ThreadPool_Schedule, Error*, ThreadPoolScheduleArgs*) \
  X(12, ThreadPool_NumThreads, Error*, ThreadPoolNumThreadsArgs*)

class Api {
 public:
#define GCE_XLA_FUNCTION(slot, name, result, argument) \
  using name##Function = result(argument);             \
  name##Function* name() const { return reinterpret_cast<name##Function*>(slots_[slot]); }
  GCE_XLA_SLOTS(GCE_XLA_FUNCTION)
#undef GCE_XLA_FUNCTION

  const ApiVersion& version() const { return version_; }

 private:
  [[maybe_unused]] size_t struct_size_;
  [[maybe_unused]] Extension* extension_start_;
  ApiVersion version_;
  [[maybe_unused]] const void* internal_api_;
  void (*slots_[13])();
};

// A struct of XLA's with its size, and without anything else. XLA counts to the end of the last field, without
// padding; what has some is not smaller for it.
template <class Args>
Args sized() {
  Args args = {};
  args.struct_size = sizeof(Args);
  return args;
}

}  // namespace gce_xla

#endif  // GCE_XLA_FFI_FFI_ABI_H_
