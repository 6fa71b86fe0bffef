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
