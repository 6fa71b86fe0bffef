// Errors inside the library are exceptions; at its edge each becomes an OrtStatus. No exception may leave a
// callback: the runtime's own code could not catch it.
#ifndef GCE_ONNX_OPS_STATUS_H_
#define GCE_ONNX_OPS_STATUS_H_

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "gce/gce.h"
#include "ort_abi.h"

namespace gce_onnx {

// A status that the runtime returned: handed back to it as it is.
struct RuntimeStatus {
  OrtStatus* status;
};

// An error of this library.
class Error {
 public:
  Error(int code, std::string message) : code_(code), message_(std::move(message)) {}
  int code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  int code_;
  std::string message_;
};

inline void check(OrtStatus* status) {
  if (status != nullptr) throw RuntimeStatus{status};
}

// Without what not every face of the runtime can show: Python's wants UTF-8.
inline std::string printable(std::string text) {
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text;
}

// The core's errors, with the core's text.
inline void check(gce_status status) {
  if (status == GCE_OK) return;
  const bool of_caller =
      status == GCE_TYPE_ERROR || status == GCE_VALUE_ERROR || status == GCE_INDEX_ERROR;
  const int code = of_caller                     ? kInvalidArgument
                   : status == GCE_OUT_OF_MEMORY ? kFail
                                                 : kRuntimeException;
  throw Error(code, printable(gce_last_error()));
}

template <class Action>
OrtStatus* guarded(const Api* api, Action action) noexcept {
  try {
    action();
    return nullptr;
  } catch (const RuntimeStatus& error) {
    return error.status;
  } catch (const Error& error) {
    return api->CreateStatus()(error.code(), error.message().c_str());
  } catch (const std::bad_alloc&) {
    return api->CreateStatus()(kFail, "out of memory");
  } catch (const std::exception& error) {
    return api->CreateStatus()(kRuntimeException, error.what());
  }
}

struct TypeAndShapeDeleter {
  const Api* api;
  void operator()(OrtTensorTypeAndShapeInfo* info) const {
    api->ReleaseTensorTypeAndShapeInfo()(info);
  }
};
using OwnedTypeAndShape = std::unique_ptr<OrtTensorTypeAndShapeInfo, TypeAndShapeDeleter>;

}  // namespace gce_onnx

#endif  // GCE_ONNX_OPS_STATUS_H_
