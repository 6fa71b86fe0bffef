#include "frame.h"

#include <algorithm>
#include <cstring>

#include "status.h"

namespace gce_xla {
namespace {

constexpr const char* kMismatch = "gce.jax and its library do not match: ";

int64_t size_of(int32_t dtype) {
  switch (dtype) {
    case GCE_INT8:
    case GCE_UINT8:
      return 1;
    case GCE_FLOAT16:
    case GCE_BFLOAT16:
    case GCE_INT16:
    case GCE_UINT16:
      return 2;
    case GCE_FLOAT32:
    case GCE_INT32:
    case GCE_UINT32:
      return 4;
    default:
      return 8;
  }
}

const void* find(const Attributes& attributes, const char* name, int type) {
  const size_t length = std::strlen(name);
  for (int64_t i = 0; i < attributes.size; ++i) {
    const ByteSpan& found = *attributes.names[i];
    const bool same = found.len == length && std::memcmp(found.ptr, name, length) == 0;
    if (same && attributes.types[i] == type) return attributes.attributes[i];
  }
  throw Failure(kInternal, std::string(kMismatch) + "no attribute " + name);
}

const Buffer& buffer_of(const Buffers& buffers, size_t index) {
  if (index >= static_cast<size_t>(buffers.size) || buffers.types[index] != kBuffer) {
    throw Failure(kInternal, std::string(kMismatch) + "no buffer " + std::to_string(index));
  }
  return *static_cast<const Buffer*>(buffers.buffers[index]);
}

}  // namespace

void check_frame(const CallFrame& frame) {
  if (frame.stage == kExecute) return;
  throw Failure(kInternal, "stage " + std::to_string(frame.stage) + ", expected execution");
}

int64_t integer_of(const Attributes& attributes, const char* name) {
  const auto* scalar = static_cast<const Scalar*>(find(attributes, name, kScalar));
  if (scalar->dtype != kS64) {
    throw Failure(kInternal, std::string(kMismatch) + name + " is no int64");
  }
  return *static_cast<const int64_t*>(scalar->value);
}

std::string text_of(const Attributes& attributes, const char* name) {
  const auto* text = static_cast<const ByteSpan*>(find(attributes, name, kString));
  return std::string(text->ptr, text->len);
}

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= names.size();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    parts.push_back(names.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

const Buffer& argument(const CallFrame& frame, size_t index) {
  return buffer_of(frame.arguments, index);
}

const Buffer& result(const CallFrame& frame, size_t index) {
  return buffer_of(frame.results, index);
}

int32_t dtype_of(const Buffer& buffer) {
  switch (buffer.dtype) {
    case kF16:
      return GCE_FLOAT16;
    case kBF16:
      return GCE_BFLOAT16;
    case kF32:
      return GCE_FLOAT32;
    case kF64:
      return GCE_FLOAT64;
    case kS8:
      return GCE_INT8;
    case kS16:
      return GCE_INT16;
    case kS32:
      return GCE_INT32;
    case kS64:
      return GCE_INT64;
    case kU8:
      return GCE_UINT8;
    case kU16:
      return GCE_UINT16;
    case kU32:
      return GCE_UINT32;
    case kU64:
      return GCE_UINT64;
    default:
      return -1;  // the core says which dtypes it takes
  }
}

void* data_of(const Buffer& buffer) {
  static char empty[8];
  return buffer.data != nullptr ? buffer.data : empty;
}

View::View(const Buffer& buffer, const int64_t* batch_shape, int32_t batch)
    : data_(static_cast<char*>(data_of(buffer))),
      dtype_(dtype_of(buffer)),
      batch_(batch),
      ndim_(static_cast<int32_t>(buffer.rank)) {
  if (buffer.rank < batch || buffer.rank > GCE_MAX_NDIM) {
    throw Failure(kInvalidArgument, "an array has " + std::to_string(buffer.rank) +
                                        " dimensions with those of vmap, expected at most " +
                                        std::to_string(GCE_MAX_NDIM));
  }
  auto stride = static_cast<uint64_t>(size_of(dtype_));
  for (int32_t d = ndim_ - 1; d >= 0; --d) {
    shape_[d] = buffer.dims[d];
    strides_[d] = static_cast<int64_t>(stride);
    stride *= static_cast<uint64_t>(shape_[d]);  // may wrap: such a shape the core refuses
    if (d < batch && shape_[d] != batch_shape[d]) {
      shape_[d] = batch_shape[d];
      strides_[d] = 0;
    }
  }
}

bool View::is_mapped() const {
  for (int32_t d = 0; d < batch_; ++d) {
    if (strides_[d] != 0 && shape_[d] != 1) return true;
  }
  return false;
}

gce_array View::at(const int64_t* index) const {
  char* data = data_;
  for (int32_t d = 0; d < batch_; ++d) data += index[d] * strides_[d];
  return from(data, batch_);
}

void View::append_axes(const std::vector<int64_t>& shape) {
  for (const int64_t length : shape) {
    shape_[ndim_] = length;
    strides_[ndim_++] = 0;
  }
}

gce_array View::from(char* data, int32_t first_axis) const {
  return {data, shape_ + first_axis, strides_ + first_axis, ndim_ - first_axis, dtype_, 0};
}

}  // namespace gce_xla
