// The part of ONNX Runtime's C ABI that host.cpp uses beyond onnx_ops/ort_abi.h, written down in
// the same way: a program that embeds the runtime, where its headers are not to be had.
// abi_check.cpp compares both with the real header.
#ifndef GCE_TESTS_ONNX_OPS_HOST_ABI_H_
#define GCE_TESTS_ONNX_OPS_HOST_ABI_H_

#include <cstddef>
#include <cstdint>

#include "ort_abi.h"

struct OrtEnv;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;

namespace gce_onnx {

enum LoggingLevel : int { kFatalOnly = 4 };
enum AllocatorType : int { kDeviceAllocator = 0 };

// X(slot, name, result, parameters), in the order of the slots.
#define GCE_ORT_HOST_SLOTS(X)                                                                    \
  X(1, GetErrorCode, int, (const OrtStatus*))                                                    \
  X(3, CreateEnv, OrtStatus*, (int logging_level, const char* id, OrtEnv**))                     \
  X(7, CreateSession, OrtStatus*,                                                                \
    (const OrtEnv*, const char* model_path, const OrtSessionOptions*, OrtSession**))             \
  X(9, Run, OrtStatus*,                                                                          \
    (OrtSession*, const OrtRunOptions*, const char* const* input_names, const OrtValue* const*,  \
     size_t inputs, const char* const* output_names, size_t outputs, OrtValue**))                \
  X(10, CreateSessionOptions, OrtStatus*, (OrtSessionOptions**))                                 \
  X(24, SetIntraOpNumThreads, OrtStatus*, (OrtSessionOptions*, int threads))                     \
  X(49, CreateTensorWithDataAsOrtValue, OrtStatus*,                                              \
    (const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* dims, size_t n, int type,    \
     OrtValue**))                                                                                \
  X(69, CreateCpuMemoryInfo, OrtStatus*, (int allocator_type, int memory_type, OrtMemoryInfo**)) \
  X(92, ReleaseEnv, void, (OrtEnv*))                                                             \
  X(94, ReleaseMemoryInfo, void, (OrtMemoryInfo*))                                               \
  X(95, ReleaseSession, void, (OrtSession*))                                                     \
  X(96, ReleaseValue, void, (OrtValue*))                                                         \
  X(100, ReleaseSessionOptions, void, (OrtSessionOptions*))                                      \
  X(228, RegisterCustomOpsLibrary_V2, OrtStatus*, (OrtSessionOptions*, const char* library_path))

// OrtApi, with other names for other slots of the same table as Api.
class HostApi {
 public:
#define GCE_ORT_FUNCTION(slot, name, result, parameters) \
  using name##Function = result(*) parameters;           \
  name##Function name() const { return reinterpret_cast<name##Function>(slots_[slot]); }
  GCE_ORT_HOST_SLOTS(GCE_ORT_FUNCTION)
#undef GCE_ORT_FUNCTION

 private:
  void (*slots_[229])();
};

}  // namespace gce_onnx

#endif  // GCE_TESTS_ONNX_OPS_HOST_ABI_H_
