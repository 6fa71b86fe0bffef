#include "shapes.h"

#include <string>
#include <vector>

#include "kernel.h"
#include "status.h"

namespace gce_onnx {
namespace {

// The text of a string attribute, or `absent`.
std::string text_of(const Api& api, const OrtShapeInferContext* context, const char* name,
                    const char* absent) {
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* status = api.ShapeInferContext_GetAttribute()(context, name, &attribute)) {
    api.ReleaseStatus()(status);
    return absent;
  }
  char text[64];
  size_t size = 0;
  if (OrtStatus* status =
          api.ReadOpAttr()(attribute, kStringAttribute, text, sizeof(text), &size)) {
    api.ReleaseStatus()(status);
    return "";
  }
  return std::string(text, size);
}

// Whether every dimension has a size or a name. One without either is -1 in the handle, and the runtime would
// take that for a size. (Neither input can be a scalar: no dimensions are unknown dimensions.)
bool has_whole_shape(const Api& api, const OrtTensorTypeAndShapeInfo* info) {
  size_t ndim = 0;
  check(api.GetDimensionsCount()(info, &ndim));
  std::vector<int64_t> sizes(ndim);
  std::vector<const char*> names(ndim);
  check(api.GetDimensions()(info, sizes.data(), ndim));
  check(api.GetSymbolicDimensions()(info, names.data(), ndim));
  for (size_t d = 0; d < ndim; ++d) {
    const bool is_named = names[d] != nullptr && *names[d] != '\0';
    if (sizes[d] < 0 && !is_named) return false;
  }
  return ndim > 0;
}

}  // namespace

void infer_shapes(const Api& api, OrtShapeInferContext* context, bool with_grad) {
  // These handles are the context's own: not released here.
  OrtTensorTypeAndShapeInfo* scores = nullptr;
  OrtTensorTypeAndShapeInfo* labels = nullptr;
  check(api.ShapeInferContext_GetInputTypeShape()(context, kScores, &scores));
  check(api.ShapeInferContext_GetInputTypeShape()(context, kLabels, &labels));
  int type = 0;
  check(api.GetTensorElementType()(scores, &type));

  if (text_of(api, context, "reduction", "mean") == "none") {
    // The labels' handle with the scores' type: their symbolic dimensions stay.
    if (has_whole_shape(api, labels)) {
      check(api.SetTensorElementType()(labels, type));
      check(api.ShapeInferContext_SetOutputTypeShape()(context, kLoss, labels));
    }
  } else {
    OrtTensorTypeAndShapeInfo* scalar = nullptr;
    check(api.CreateTensorTypeAndShapeInfo()(&scalar));
    const OwnedTypeAndShape owned(scalar, {&api});
    check(api.SetTensorElementType()(scalar, type));
    check(api.SetDimensions()(scalar, nullptr, 0));
    check(api.ShapeInferContext_SetOutputTypeShape()(context, kLoss, scalar));
  }
  if (with_grad && has_whole_shape(api, scores)) {
    // A node with one output has no second type to set: the runtime says so, and nothing is lost.
    OrtStatus* status = api.ShapeInferContext_SetOutputTypeShape()(context, kGrad, scores);
    if (status != nullptr) api.ReleaseStatus()(status);
  }
}

}  // namespace gce_onnx
