// What XLA hands to a handler, as C++ and the core's types: attributes by name, buffers as strided views.
#ifndef GCE_XLA_FFI_FRAME_H_
#define GCE_XLA_FFI_FRAME_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ffi_abi.h"
#include "gce/gce.h"

namespace gce_xla {

// Throws Failure (kInternal) unless XLA calls the handler to execute it with buffers only.
void check_frame(const CallFrame& frame);

// An attribute by its name. Throws Failure (kInternal) if there is none of this name and type: gce.jax gives them all.
int64_t integer_of(const Attributes& attributes, const char* name);
std::string text_of(const Attributes& attributes, const char* name);

// "logits,targets" as {"logits", "targets"}
std::vector<std::string> split(const std::string& names);

const Buffer& argument(const CallFrame& frame, size_t index);
const Buffer& result(const CallFrame& frame, size_t index);

int32_t dtype_of(const Buffer& buffer);

// A buffer's memory; never null, which the core would take for "absent".
void* data_of(const Buffer& buffer);

// A buffer with `batch` leading axes, which vmap has put before those of the call that it maps. Such an axis has
// length 1 where the argument is not mapped over: here it has the length that it has elsewhere, and stride 0.
class View {
 public:
  View(const Buffer& buffer, const int64_t* batch_shape, int32_t batch);

  // Axes of the call, without those of vmap.
  int32_t own_ndim() const { return ndim_ - batch_; }
  bool is_mapped() const;
  // The whole, with vmap's axes.
  gce_array whole() const { return from(data_, 0); }
  // That of one call, at these indices of vmap's axes.
  gce_array at(const int64_t* index) const;
  // Gives a view without axes of its own these, along which it does not vary.
  void append_axes(const std::vector<int64_t>& shape);

 private:
  gce_array from(char* data, int32_t first_axis) const;

  char* data_;
  int32_t dtype_;
  int32_t batch_;
  int32_t ndim_;
  int64_t shape_[GCE_MAX_NDIM];
  int64_t strides_[GCE_MAX_NDIM];
};

}  // namespace gce_xla

#endif  // GCE_XLA_FFI_FRAME_H_
