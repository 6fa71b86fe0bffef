// RegisterCustomOps, the one symbol that the library exports: the domain ai.gce and its operator, for each
// combination of types a kernel of its own.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#ifdef _WIN32
#include <windows.h>
#endif

#include "kernel.h"
#include "shapes.h"
#include "status.h"

namespace gce_onnx {
namespace {

constexpr const char* kDomain = "ai.gce";
constexpr const char* kName = "GammaCrossEntropyLoss";
// A session option that says that the domain is there: adding it twice would make every session fail.
constexpr const char* kRegistered = "ai.gce.registered";

constexpr long kOldestRuntime = 16;  // the first whose kernels can return errors
constexpr long kNewestApi = 17;      // what ort_abi.h describes
constexpr long kLendsThreads = 17;   // KernelContext_ParallelFor
// A shape inference function is a danger in older runtimes: up to 1.23 the runtime itself reads through a
// null pointer, before it calls the function, where a node leaves out an optional input by an empty name.
constexpr long kInfersLoss = 24;
// And up to 1.27 it aborts the process where the shape of an output is set that the node does not list.
constexpr long kInfersGrad = 28;

// What calls RegisterCustomOps.
struct Runtime {
  const Api* api;
  long minor;  // of its version 1.minor
};

uint32_t api_version(long minor) { return static_cast<uint32_t>(std::min(minor, kNewestApi)); }

struct Types {
  int scores;
  int labels;
  int gamma;
};

struct Op : CustomOp {
  Runtime runtime;
  Types types;
};

const Op& self(const CustomOp* op) { return *static_cast<const Op*>(op); }

int input_type(const CustomOp* op, size_t index) {
  const Types& types = self(op).types;
  return index == kLabels ? types.labels : index == kGamma ? types.gamma : types.scores;
}

OrtStatus* create_kernel(const CustomOp* op, const Api*, const OrtKernelInfo* info, void** kernel) {
  const Runtime& runtime = self(op).runtime;
  return guarded(runtime.api,
                 [&] { *kernel = new Kernel(*runtime.api, info, runtime.minor >= kLendsThreads); });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const auto* self = static_cast<const Kernel*>(kernel);
  return guarded(&self->api(), [&] { self->compute(context); });
}

OrtStatus* infer(const CustomOp* op, OrtShapeInferContext* context) {
  const Runtime& runtime = self(op).runtime;
  return guarded(runtime.api,
                 [&] { infer_shapes(*runtime.api, context, runtime.minor >= kInfersGrad); });
}

Op make_op(const Runtime& runtime, const Types& types) {
  Op op = {};
  op.version = api_version(runtime.minor);
  op.runtime = runtime;
  op.types = types;
  op.GetName = [](const CustomOp*) { return kName; };
  op.GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const CustomOp*) { return size_t{kInputCount}; };
  op.GetOutputType = [](const CustomOp* op, size_t) { return self(op).types.scores; };
  op.GetOutputTypeCount = [](const CustomOp*) { return size_t{kOutputCount}; };
  op.GetInputCharacteristic = [](const CustomOp*, size_t index) -> int {
    return index == kWeights ? kOptional : kRequired;
  };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t index) -> int {
    return index == kGrad ? kOptional : kRequired;
  };
  op.GetInputMemoryType = [](const CustomOp*, size_t) -> int { return kDefaultMemory; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.InferOutputShapeFn = runtime.minor >= kInfersLoss ? infer : nullptr;
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

// The domain as one runtime knows it. Sessions point to it, so it is never freed.
struct Registration {
  std::vector<std::unique_ptr<Op>> ops;
  OrtCustomOpDomain* domain = nullptr;
};

Registration make_registration(const Runtime& runtime) {
  Registration made;
  check(runtime.api->CreateCustomOpDomain()(kDomain, &made.domain));
  for (const int scores : {kFloat, kDouble, kFloat16, kBFloat16}) {
    for (const int labels : {kInt64, kInt32, kFloat, kDouble, kFloat16, kBFloat16}) {
      for (const int gamma : {kFloat, kDouble, kFloat16, kBFloat16}) {
        made.ops.push_back(std::make_unique<Op>(make_op(runtime, {scores, labels, gamma})));
        check(runtime.api->CustomOpDomain_Add()(made.domain, made.ops.back().get()));
      }
    }
  }
  return made;
}

// The runtime closes the library with the options that registered it. Elsewhere the linker is told (-z nodelete).
void stay_loaded() {
#ifdef _WIN32
  HMODULE library = nullptr;
  constexpr DWORD kPinned = GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS;
  GetModuleHandleExW(kPinned, reinterpret_cast<LPCWSTR>(&stay_loaded), &library);
#endif
}

// One for each runtime in the process (there may be two copies of it).
OrtCustomOpDomain* domain_of(const Runtime& runtime) {
  static std::mutex mutex;
  static auto* made = new std::map<const Api*, Registration>;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = made->find(runtime.api);
  if (found == made->end()) {
    stay_loaded();
    found = made->emplace(runtime.api, make_registration(runtime)).first;
  }
  return found->second.domain;
}

// 17 for "1.17.3".
long minor_version(const char* version) {
  char* end = nullptr;
  const long major = std::strtol(version, &end, 10);
  if (major > 1) return std::max(kInfersGrad, kNewestApi);
  return *end == '.' ? std::strtol(end + 1, nullptr, 10) : 0;
}

OrtStatus* register_ops(OrtSessionOptions* options, const ApiBase* base) {
  const long minor = minor_version(base->get_version());
  const Runtime runtime = {base->get_api(api_version(minor)), minor};
  const bool is_known = minor >= kOldestRuntime && runtime.api != nullptr;
  const Api* says_errors = is_known ? runtime.api : base->get_api(1);
  if (says_errors == nullptr)
    return nullptr;  // the operator stays unknown, which a session will say
  return guarded(says_errors, [&] {
    if (!is_known) {
      throw Error(kFail, std::string("gce needs ONNX Runtime 1.") + std::to_string(kOldestRuntime) +
                             " or newer, with the API of 1." + std::to_string(kNewestApi) +
                             "; this is " + base->get_version());
    }
    int registered = 0;
    check(runtime.api->HasSessionConfigEntry()(options, kRegistered, &registered));
    if (registered != 0) return;
    check(runtime.api->AddCustomOpDomain()(options, domain_of(runtime)));
    check(runtime.api->AddSessionConfigEntry()(options, kRegistered, "1"));
  });
}

}  // namespace
}  // namespace gce_onnx

// The name is ONNX Runtime's: NOLINTNEXTLINE(readability-identifier-naming)
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const gce_onnx::ApiBase* base) {
  return gce_onnx::register_ops(options, base);
}
