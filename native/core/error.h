// How the core reports bad input: an exception with a status and a message, turned into the C ABI's status
// code and thread-local message by api.cpp alone.
#ifndef GCE_CORE_ERROR_H_
#define GCE_CORE_ERROR_H_

#include <cmath>
#include <ios>
#include <locale>
#include <new>
#include <sstream>
#include <string>
#include <type_traits>
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

// A stream that finds no memory throws, where it would leave out text; numbers are as in C, whatever the host's locale.
class Text : public std::ostringstream {
 public:
  Text() {
    exceptions(std::ios::badbit);
    imbue(std::locale::classic());
  }
};

inline double number_in(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double number = 0.0;
  stream >> number;
  return stream.fail() ? std::nan("") : number;  // more than the largest is that, and a failure
}

// As few digits as tell a number from all others: 1.1 for what 17 digits show as 1.1000000000000001.
inline std::string text_of(double x) {
  for (int digits = 15;; ++digits) {
    Text text;
    text.precision(digits);
    text << x;
    if (digits == 17 || number_in(text.str()) == x) return text.str();
  }
}

template <class Part>
void put(Text& text, const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    text << text_of(part);
  } else {
    text << part;
  }
}

// fail(GCE_VALUE_ERROR, "axis = ", axis, ", expected ...")
template <class... Parts>
[[noreturn]] void fail(gce_status status, const Parts&... parts) {
  Text text;
  try {
    (put(text, parts), ...);
  } catch (const std::ios_base::failure&) {  // libc++'s for want of memory
    throw std::bad_alloc();
  }
  throw Error(status, text.str());
}

}  // namespace gce

#endif  // GCE_CORE_ERROR_H_
