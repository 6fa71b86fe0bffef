#include "attributes.h"

#include <string>

#include "status.h"

namespace gce_onnx {
namespace {

// The runtime's words for why it did not give an attribute, without the attribute's name.
std::string take_reason(const Api& api, OrtStatus* status, const std::string& name) {
  std::string text = api.GetErrorMessage()(status);
  api.ReleaseStatus()(status);
  const size_t at = text.find(name);
  return at == std::string::npos ? text : text.replace(at, name.size(), "");
}

// Reads an attribute by `get(name)`, which returns the runtime's status; false if the node has none of that
// name. The runtime has one error code for that and for an attribute of another type; but its words differ,
// so they are compared with what it says of a name that no node has.
template <class Get>
bool read(const Api& api, const char* name, const char* type, Get get) {
  OrtStatus* status = get(name);
  if (status == nullptr) return true;
  const char* const absent = "gce_no_such_attribute";
  OrtStatus* absent_status = get(absent);
  const std::string reason = take_reason(api, status, name);
  if (absent_status != nullptr && reason == take_reason(api, absent_status, absent)) return false;
  throw Error(kInvalidArgument,
              std::string("attribute ") + name + " has another type, expected " + type);
}

void read_float(const Api& api, const OrtKernelInfo* info, const char* name, float* out) {
  read(api, name, "a float",
       [&](const char* asked) { return api.KernelInfoGetAttribute_float()(info, asked, out); });
}

bool read_int(const Api& api, const OrtKernelInfo* info, const char* name, int64_t* out) {
  return read(api, name, "an int", [&](const char* asked) {
    return api.KernelInfoGetAttribute_int64()(info, asked, out);
  });
}

void read_small_int(const Api& api, const OrtKernelInfo* info, const char* name, int32_t* out) {
  int64_t value = *out;
  read_int(api, info, name, &value);
  *out = static_cast<int32_t>(value);
  if (*out != value) {
    throw Error(kInvalidArgument,
                std::string(name) + " = " + std::to_string(value) + ", expected a 32-bit integer");
  }
}

template <class Enum>
void read_name(const Api& api, const OrtKernelInfo* info, const char* name,
               gce_status (*from_name)(const char*, Enum*), Enum* out) {
  size_t size = 0;  // with the terminating zero
  const bool given = read(api, name, "a string", [&](const char* asked) {
    return api.KernelInfoGetAttribute_string()(info, asked, nullptr, &size);
  });
  if (!given || size == 0) return;
  std::string text(size, '\0');
  check(api.KernelInfoGetAttribute_string()(info, name, text.data(), &size));
  text.pop_back();
  check(from_name(printable(text).c_str(), out));  // else a zero byte would end the name
}

}  // namespace

Attributes read_attributes(const Api& api, const OrtKernelInfo* info) {
  Attributes attributes;
  read_name(api, info, "reduction", gce_reduction_from_name, &attributes.reduction);
  read_name(api, info, "value", gce_value_from_name, &attributes.value);
  read_float(api, info, "threshold", &attributes.threshold);
  read_float(api, info, "label_smoothing", &attributes.label_smoothing);
  read_float(api, info, "z_loss", &attributes.z_loss);
  read_float(api, info, "softcap", &attributes.softcap);
  read_small_int(api, info, "shift", &attributes.shift);
  attributes.has_ignore_index = read_int(api, info, "ignore_index", &attributes.ignore_index);
  return attributes;
}

}  // namespace gce_onnx
