// The computation behind one GammaCrossEntropyLoss node: tensors to gce_array views, the session's threads.
#ifndef GCE_ONNX_OPS_KERNEL_H_
#define GCE_ONNX_OPS_KERNEL_H_

#include <memory>

#include "attributes.h"
#include "ort_abi.h"
#include "status.h"

namespace gce_onnx {

enum Input : size_t { kScores, kLabels, kGamma, kWeights, kInputCount };
enum Output : size_t { kLoss, kGrad, kOutputCount };

// GammaCrossEntropyLoss has its classes here, as SoftmaxCrossEntropyLoss has.
constexpr int32_t kClassAxis = 1;

// Whether labels of this element type are one class per row; others are a probability of each class.
inline bool are_classes(int element_type) {
  return element_type == kInt64 || element_type == kInt32;
}

class Kernel {
 public:
  // session_threads: whether the runtime lends its threads (KernelContext_ParallelFor).
  Kernel(const Api& api, const OrtKernelInfo* info, bool session_threads);

  // Throws Error or RuntimeStatus.
  void compute(OrtKernelContext* context) const;
  const Api& api() const { return api_; }

 private:
  const Api& api_;
  Attributes attributes_;
  std::unique_ptr<Error> attribute_error_;
  const bool session_threads_;
};

}  // namespace gce_onnx

#endif  // GCE_ONNX_OPS_KERNEL_H_
