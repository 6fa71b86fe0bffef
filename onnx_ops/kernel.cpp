#include "kernel.h"

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

namespace gce_onnx {
namespace {

constexpr int kMostThreads = 256;

int32_t dtype_of(int element_type) {
  switch (element_type) {
    case kFloat:
      return GCE_FLOAT32;
    case kDouble:
      return GCE_FLOAT64;
    case kFloat16:
      return GCE_FLOAT16;
    case kBFloat16:
      return GCE_BFLOAT16;
    case kInt32:
      return GCE_INT32;
    case kInt64:
      return GCE_INT64;
    default:
      return -1;  // the core says which dtypes it takes
  }
}

int64_t size_of(int32_t dtype) {
  switch (dtype) {
    case GCE_FLOAT16:
    case GCE_BFLOAT16:
      return 2;
    case GCE_FLOAT32:
    case GCE_INT32:
      return 4;
    default:
      return 8;
  }
}

// A tensor of the runtime as the core sees it. Tensors lie contiguous, in C order.
class View {
 public:
  View() { array_.data = nullptr; }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  void look_at(const Api& api, const OrtValue* value) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api.GetTensorTypeAndShape()(value, &info));
    const OwnedTypeAndShape owned(info, {&api});
    size_t ndim = 0;
    check(api.GetTensorElementType()(info, &element_type_));
    check(api.GetDimensionsCount()(info, &ndim));
    if (ndim > GCE_MAX_NDIM) {
      throw Error(kInvalidArgument, "an input has " + std::to_string(ndim) +
                                        " dimensions, expected at most " +
                                        std::to_string(GCE_MAX_NDIM));
    }
    check(api.GetDimensions()(info, shape_, ndim));
    void* data = nullptr;
    // GetTensorMutableData is all there is; inputs are only read.
    check(api.GetTensorMutableData()(const_cast<OrtValue*>(value), &data));
    set(data, dtype_of(element_type_), static_cast<int32_t>(ndim));
  }

  const gce_array& array() const { return array_; }
  int element_type() const { return element_type_; }
  bool is_given() const { return array_.data != nullptr; }
  const int64_t* shape() const { return shape_; }
  size_t ndim() const { return static_cast<size_t>(array_.ndim); }

 private:
  void set(void* data, int32_t dtype, int32_t ndim) {
    static char empty[8];  // an empty tensor may have no address, which would mean "absent"
    auto stride = static_cast<uint64_t>(size_of(dtype));
    for (int32_t d = ndim - 1; d >= 0; --d) {
      strides_[d] = static_cast<int64_t>(stride);
      stride *= static_cast<uint64_t>(shape_[d]);  // may wrap: such a shape the core refuses
    }
    array_ = {data != nullptr ? data : empty, shape_, strides_, ndim, dtype, 0};
  }

  gce_array array_ = {};
  int element_type_ = 0;
  int64_t shape_[GCE_MAX_NDIM];
  int64_t strides_[GCE_MAX_NDIM];
};

// That of the labels, without the class axis where they are probabilities.
std::vector<int64_t> shape_of_rows(const View& labels) {
  std::vector<int64_t> shape(labels.shape(), labels.shape() + labels.ndim());
  if (!are_classes(labels.element_type()) && shape.size() > kClassAxis) {
    shape.erase(shape.begin() + kClassAxis);
  }
  return shape;
}

// One run of a node: its context, and the views of its tensors.
class Call {
 public:
  Call(const Api& api, OrtKernelContext* context) : api_(api), context_(context) {}

  void take_inputs() {
    size_t count = 0;
    check(api_.KernelContext_GetInputCount()(context_, &count));
    for (size_t i = 0; i < std::min<size_t>(count, kInputCount); ++i) {
      const OrtValue* value = nullptr;
      check(api_.KernelContext_GetInput()(context_, i, &value));
      if (value != nullptr) inputs_[i].look_at(api_, value);
    }
    require(kScores, "scores");
    require(kLabels, "labels");
  }

  // Leaves the output absent if the node does not name it.
  void take_output(size_t index, const int64_t* shape, size_t ndim) {
    size_t count = 0;
    check(api_.KernelContext_GetOutputCount()(context_, &count));
    if (index >= count) return;
    OrtValue* value = nullptr;
    check(api_.KernelContext_GetOutput()(context_, index, shape, ndim, &value));
    if (value != nullptr) outputs_[index].look_at(api_, value);
  }

  const View& input(size_t index) const { return inputs_[index]; }
  const View& output(size_t index) const { return outputs_[index]; }

 private:
  // The runtime lets no model pass whose node lacks them; a missing gamma is the core's to name.
  void require(size_t index, const char* name) const {
    if (!inputs_[index].is_given()) {
      throw Error(kInvalidArgument, std::string(name) + " is missing, expected a tensor");
    }
  }

  const Api& api_;
  OrtKernelContext* context_;
  View inputs_[kInputCount];
  View outputs_[kOutputCount];
};

struct PlanDeleter {
  void operator()(gce_plan* plan) const { gce_plan_finish(plan); }
};

int most_workers() {
  // Asked once: it reads a file.
  static const int cpus = static_cast<int>(std::thread::hardware_concurrency());
  return std::min(std::max(cpus, 1), kMostThreads);
}

}  // namespace

// The runtime makes a RuntimeException of any error here, where the model is loaded; said when the node
// runs, an error of the attributes is an InvalidArgument as those of the inputs are.
Kernel::Kernel(const Api& api, const OrtKernelInfo* info, bool session_threads)
    : api_(api), session_threads_(session_threads) {
  try {
    attributes_ = read_attributes(api, info);
  } catch (const Error& error) {
    attribute_error_ = std::make_unique<Error>(error);
  }
}

void Kernel::compute(OrtKernelContext* context) const {
  if (attribute_error_ != nullptr) throw Error(*attribute_error_);
  Call call(api_, context);
  call.take_inputs();
  const View& labels = call.input(kLabels);
  const View& scores = call.input(kScores);
  const bool per_row = attributes_.reduction == GCE_REDUCTION_NONE;
  const std::vector<int64_t> loss_shape = per_row ? shape_of_rows(labels) : std::vector<int64_t>();
  call.take_output(kLoss, loss_shape.data(), loss_shape.size());
  call.take_output(kGrad, scores.shape(), scores.ndim());

  gce_problem problem;
  gce_problem_init(&problem);
  problem.logits = scores.array();
  problem.targets = labels.array();
  problem.gamma = call.input(kGamma).array();
  problem.weight = call.input(kWeights).array();
  double threshold = attributes_.threshold;
  problem.threshold = {&threshold, nullptr, nullptr, 0, GCE_FLOAT64, 0};
  problem.label_smoothing = attributes_.label_smoothing;
  problem.z_loss = attributes_.z_loss;
  problem.softcap = attributes_.softcap;
  problem.shift = attributes_.shift;
  problem.has_ignore_index = attributes_.has_ignore_index ? 1 : 0;
  problem.ignore_index = attributes_.ignore_index;
  problem.axis = kClassAxis;
  problem.reduction = attributes_.reduction;
  problem.value = attributes_.value;
  problem.loss = call.output(kLoss).array();
  problem.grad = call.output(kGrad).array();

  gce_plan* plan = nullptr;
  check(gce_plan_create(&problem, session_threads_ ? most_workers() : 1, &plan));
  const std::unique_ptr<gce_plan, PlanDeleter> finishes(plan);
  const auto workers = static_cast<size_t>(gce_plan_workers(plan));
  if (workers == 1) return gce_plan_work(plan, 0);
  // The session's own threads; where it has one only, the calls come one after the other.
  check(api_.KernelContext_ParallelFor()(
      context,
      [](void* data, size_t worker) {
        gce_plan_work(static_cast<gce_plan*>(data), static_cast<int32_t>(worker));
      },
      workers, 0, plan));
}

}  // namespace gce_onnx
