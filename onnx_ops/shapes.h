// Types and shapes of a node's outputs, for the runtime's own inference when it loads a model.
#ifndef GCE_ONNX_OPS_SHAPES_H_
#define GCE_ONNX_OPS_SHAPES_H_

#include "ort_abi.h"

namespace gce_onnx {

// Throws Error or RuntimeStatus. What cannot be told is left open; the gradient's shape too unless with_grad.
void infer_shapes(const Api& api, OrtShapeInferContext* context, bool with_grad);

}  // namespace gce_onnx

#endif  // GCE_ONNX_OPS_SHAPES_H_
