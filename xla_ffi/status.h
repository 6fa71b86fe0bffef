// Errors inside the library are exceptions; at its edge each becomes an Error of XLA's, which jax raises as
// JaxRuntimeError. No exception may leave a handler: XLA's own code could not catch it.
#ifndef GCE_XLA_FFI_STATUS_H_
#define GCE_XLA_FFI_STATUS_H_

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "ffi_abi.h"
#include "gce/gce.h"

namespace gce_xla {

class Failure {
 public:
  Failure(int code, std::string message) : code_(code), message_(std::move(message)) {}
  int code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  int code_;
  std::string message_;
};

// The core's errors, with the core's text; `where` comes behind it.
inline void check(gce_status status, const std::string& where = "") {
  if (status == GCE_OK) return;
  const bool of_caller =
      status == GCE_TYPE_ERROR || status == GCE_VALUE_ERROR || status == GCE_INDEX_ERROR;
  const int code = of_caller                     ? kInvalidArgument
                   : status == GCE_OUT_OF_MEMORY ? kResourceExhausted
                                                 : kInternal;
  throw Failure(code, gce_last_error() + where);
}

inline Error* make_error(const Api& api, int code, const char* message) {
  auto args = sized<ErrorCreateArgs>();
  args.message = message;
  args.code = code;
  return api.Error_Create()(&args);
}

template <class Action>
Error* guarded(const Api& api, Action action) noexcept {
  try {
    action();
    return nullptr;
  } catch (const Failure& failure) {
    return make_error(api, failure.code(), failure.message().c_str());
  } catch (const std::bad_alloc&) {
    return make_error(api, kResourceExhausted, "out of memory");
  } catch (const std::exception& error) {
    return make_error(api, kInternal, error.what());
  }
}

}  // namespace gce_xla

#endif  // GCE_XLA_FFI_STATUS_H_
