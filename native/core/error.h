// How the core reports bad input: an exception with a status and a message, turned into the C ABI's status
// code and thread-local message by api.cpp alone.
#ifndef GCE_CORE_ERROR_H_
#define GCE_CORE_ERROR_H_

#include <sstream>
#include <string>
#include <utility>

#include "gce/gce.h"

namespace gce {

class Error {
 public:
  Error(gce_status status, std::string message) : status_(status), message_(std::move(message)) {}
  gce_status status() const { return status_; }
  const std::string& message() const { return message_; }

 private:
  gce_status status_;
  std::string message_;
};

// fail(GCE_VALUE_ERROR, "axis = ", axis, ", expected ...")
template <class... Parts>
[[noreturn]] void fail(gce_status status, const Parts&... parts) {
  std::ostringstream text;
  text.precision(17);
  (text << ... << parts);
  throw Error(status, text.str());
}

}  // namespace gce

#endif  // GCE_CORE_ERROR_H_
