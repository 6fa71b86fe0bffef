// The attributes of a GammaCrossEntropyLoss node.
#ifndef GCE_ONNX_OPS_ATTRIBUTES_H_
#define GCE_ONNX_OPS_ATTRIBUTES_H_

#include <cstdint>

#include "gce/gce.h"
#include "ort_abi.h"

namespace gce_onnx {

struct Attributes {
  gce_reduction reduction = GCE_REDUCTION_MEAN;
  gce_value value = GCE_VALUE_PRIMITIVE;
  float threshold = 0.0f;
  float label_smoothing = 0.0f;
  float z_loss = 0.0f;
  float softcap = 0.0f;
  int32_t shift = 0;
  bool has_ignore_index = false;
  int64_t ignore_index = 0;
};

// Throws Error (kInvalidArgument) for an attribute of another type than its own, an unknown name,
// or a shift beyond 32 bits.
Attributes read_attributes(const Api& api, const OrtKernelInfo* info);

}  // namespace gce_onnx

#endif  // GCE_ONNX_OPS_ATTRIBUTES_H_
