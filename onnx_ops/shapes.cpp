#include "shapes.h"

#include <cstddef>
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

int element_type_of(const Api& api, const OrtTensorTypeAndShapeInfo* info) {
  int type = 0;
  check(api.GetTensorElementType()(info, &type));
  return type;
}

struct Dimensions {
  std::vector<int64_t> sizes;
  std::vector<const char*> names;  // of the sizes that are -1, else empty; the handle's own

  Dimensions() = default;
  Dimensions(const Api& api, const OrtTensorTypeAndShapeInfo* info) {
    size_t ndim = 0;
    check(api.GetDimensionsCount()(info, &ndim));
    sizes.resize(ndim);
    names.resize(ndim);
    check(api.GetDimensions()(info, sizes.data(), ndim));
    check(api.GetSymbolicDimensions()(info, names.data(), ndim));
  }

  // Whether each has a size or a name. One without either is -1 in the handle, and the runtime would take that
  // for a size. (Neither input can be a scalar: no dimensions are unknown dimensions.)
  bool are_whole() const {
    for (size_t d = 0; d < sizes.size(); ++d) {
      const bool is_named = names[d] != nullptr && *names[d] != '\0';
      if (sizes[d] < 0 && !is_named) return false;
    }
    return !sizes.empty();
  }

  void leave_out(size_t axis) {
    if (axis >= sizes.size()) return;
    sizes.erase(sizes.begin() + static_cast<std::ptrdiff_t>(axis));
    names.erase(names.begin() + static_cast<std::ptrdiff_t>(axis));
  }
};

void set_loss(const Api& api, OrtShapeInferContext* context, int type,
              const Dimensions& dimensions) {
  OrtTensorTypeAndShapeInfo* loss = nullptr;
  check(api.CreateTensorTypeAndShapeInfo()(&loss));
  const OwnedTypeAndShape owned(loss, {&api});
  const size_t ndim = dimensions.sizes.size();
  std::vector<const char*> names = dimensions.names;  // which the runtime does not take as constant
  check(api.SetTensorElementType()(loss, type));
  check(api.SetDimensions()(loss, dimensions.sizes.data(), ndim));
  check(api.SetSymbolicDimensions()(loss, names.data(), ndim));
  check(api.ShapeInferContext_SetOutputTypeShape()(context, kLoss, loss));
}

}  // namespace

void infer_shapes(const Api& api, OrtShapeInferContext* context, bool with_grad) {
  // These handles are the context's own: not released here.
  OrtTensorTypeAndShapeInfo* scores = nullptr;
  OrtTensorTypeAndShapeInfo* labels = nullptr;
  check(api.ShapeInferContext_GetInputTypeShape()(context, kScores, &scores));
  check(api.ShapeInferContext_GetInputTypeShape()(context, kLabels, &labels));
  const int type = element_type_of(api, scores);
  if (text_of(api, context, "reduction", "mean") == "none") {
    Dimensions dimensions(api, labels);
    const bool are_whole = dimensions.are_whole();
    if (!are_classes(element_type_of(api, labels))) dimensions.leave_out(kClassAxis);
    if (are_whole) set_loss(api, context, type, dimensions);
  } else {
    set_loss(api, context, type, {});
  }
  if (with_grad && Dimensions(api, scores).are_whole()) {
    // A node with one output has no second type to set: the runtime says so, and nothing is lost.
    OrtStatus* status = api.ShapeInferContext_SetOutputTypeShape()(context, kGrad, scores);
    if (status != nullptr) api.ReleaseStatus()(status);
  }
}

}  // namespace gce_onnx
