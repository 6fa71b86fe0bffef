// The two handlers that gce.jax registers, the only symbols that the library exports. They work on XLA's own
// buffers: nothing is copied.
//
//   gce_xla_loss        one gce_problem: attributes name the arguments and the results, in their order
//   gce_xla_gamma_grad  dL/dgamma of each target log-probability
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "ffi_abi.h"
#include "frame.h"
#include "gce/gce.h"
#include "status.h"
#include "threads.h"

namespace gce_xla {
namespace {

// What an argument or a result has for axes of its own.
enum class Kind {
  kLogits,   // the logits' axes
  kRows,     // the targets' axes, or none
  kClasses,  // the class axis alone
  kNumber    // none: a double in the problem
};

struct Field {
  const char* name;
  Kind kind;
  gce_array gce_problem::* array;
  double gce_problem::* number = nullptr;
};

constexpr Field kFields[] = {
    {"logits", Kind::kLogits, &gce_problem::logits},
    {"targets", Kind::kRows, &gce_problem::targets},
    {"gamma", Kind::kRows, &gce_problem::gamma},
    {"threshold", Kind::kRows, &gce_problem::threshold},
    {"weight", Kind::kClasses, &gce_problem::weight},
    {"sample_weight", Kind::kRows, &gce_problem::sample_weight},
    {"grad_output", Kind::kRows, &gce_problem::grad_output},
    {"label_smoothing", Kind::kNumber, nullptr, &gce_problem::label_smoothing},
    {"z_loss", Kind::kNumber, nullptr, &gce_problem::z_loss},
    {"normalizer", Kind::kNumber, nullptr, &gce_problem::normalizer},
    {"loss", Kind::kRows, &gce_problem::loss},
    {"grad", Kind::kLogits, &gce_problem::grad},
    {"target_log_prob", Kind::kRows, &gce_problem::target_log_prob},
};

const Field& field_named(const std::string& name) {
  const auto* const found = std::find_if(std::begin(kFields), std::end(kFields),
                                         [&](const Field& field) { return field.name == name; });
  if (found == std::end(kFields)) throw Failure(kInternal, "unknown array " + name);
  return *found;
}

double number_of(const gce_array& array) {
  if (array.dtype == GCE_FLOAT64) return *static_cast<const double*>(array.data);
  if (array.dtype == GCE_FLOAT32) return *static_cast<const float*>(array.data);
  throw Failure(kInternal, "a number is neither float32 nor float64");
}

struct PlanDeleter {
  void operator()(gce_plan* plan) const { gce_plan_finish(plan); }
};

// A call of gce.jax, or all those that vmap made of one: vmap puts axes before those of each array.
class Call {
 public:
  explicit Call(const CallFrame& frame) : frame_(frame) {
    read_attributes();
    const std::vector<std::string> inputs = split(text_of(frame.attributes, "arguments"));
    const std::vector<std::string> outputs = split(text_of(frame.attributes, "results"));
    // Results have vmap's axes at their full length always; the first argument is logits.
    const Buffer& first = result(frame, 0);
    batch_ = static_cast<int32_t>(argument(frame, 0).rank - own_ndim_);
    if (batch_ < 0 || first.rank < batch_) throw Failure(kInternal, "logits has too few axes");
    batch_shape_.assign(first.dims, first.dims + batch_);
    members_.reserve(inputs.size() + outputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) add(inputs[i], argument(frame, i));
    for (size_t i = 0; i < outputs.size(); ++i) add(outputs[i], result(frame, i));
  }

  void run() {
    if (batch_ == 0 || can_be_one_problem()) return run_whole();
    std::vector<int64_t> index(batch_shape_.size(), 0);
    const bool is_empty =
        std::find(batch_shape_.begin(), batch_shape_.end(), 0) != batch_shape_.end();
    for (bool more = !is_empty; more; more = advance(&index)) run_one(index);
  }

 private:
  struct Member {
    const Field& field;
    View view;
  };

  void read_attributes() {
    const Attributes& attributes = frame_.attributes;
    gce_problem_init(&problem_);
    gce_reduction reduction;
    gce_value value;
    check(gce_reduction_from_name(text_of(attributes, "reduction").c_str(), &reduction));
    check(gce_value_from_name(text_of(attributes, "value").c_str(), &value));
    problem_.reduction = reduction;
    problem_.value = value;
    problem_.axis = static_cast<int32_t>(integer_of(attributes, "axis"));
    problem_.has_ignore_index = static_cast<int32_t>(integer_of(attributes, "has_ignore_index"));
    problem_.ignore_index = integer_of(attributes, "ignore_index");
    own_ndim_ = integer_of(attributes, "ndim");
  }

  void add(const std::string& name, const Buffer& buffer) {
    members_.push_back({field_named(name), View(buffer, batch_shape_.data(), batch_)});
  }

  // Rows know nothing of each other; but a reduction, class weights and numbers belong to one call.
  bool can_be_one_problem() const {
    if (problem_.reduction != GCE_REDUCTION_NONE) return false;
    return std::none_of(members_.begin(), members_.end(), [](const Member& member) {
      const bool of_rows = member.field.kind == Kind::kLogits || member.field.kind == Kind::kRows;
      return !of_rows && member.view.is_mapped();
    });
  }

  // vmap's axes are axes of rows: those of one problem.
  void run_whole() {
    const std::vector<int64_t> first(batch_shape_.size(), 0);
    const View& targets = members_[1].view;
    for (Member& member : members_) {
      const Kind kind = member.field.kind;
      const bool has_rows = kind == Kind::kLogits ||
                            (kind == Kind::kRows && member.view.own_ndim() == targets.own_ndim());
      if (!has_rows && !member.view.is_mapped()) {
        set(member.field, member.view.at(first.data()));
        continue;
      }
      if (!has_rows) member.view.broadcast_like(targets);
      set(member.field, member.view.whole());
    }
    problem_.axis += batch_;
    run_problem("");
  }

  void run_one(const std::vector<int64_t>& index) {
    for (const Member& member : members_) set(member.field, member.view.at(index.data()));
    std::string where;
    for (const int64_t i : index) where += (where.empty() ? "" : ", ") + std::to_string(i);
    run_problem(", in the call at [" + where + "] of vmap");
  }

  void set(const Field& field, const gce_array& array) {
    if (field.kind != Kind::kNumber) {
      problem_.*field.array = array;
      return;
    }
    problem_.*field.number = number_of(array);
    if (field.number == &gce_problem::normalizer) problem_.has_normalizer = 1;
  }

  void run_problem(const std::string& where) {
    gce_plan* plan = nullptr;
    check(gce_plan_create(&problem_, most_workers(frame_), &plan), where);
    const std::unique_ptr<gce_plan, PlanDeleter> finishes(plan);
    work(frame_, plan);
  }

  // The next index, in C order; false behind the last.
  bool advance(std::vector<int64_t>* index) const {
    for (size_t d = index->size(); d-- > 0;) {
      if (++(*index)[d] < batch_shape_[d]) return true;
      (*index)[d] = 0;
    }
    return false;
  }

  const CallFrame& frame_;
  gce_problem problem_;
  int64_t own_ndim_ = 0;
  int32_t batch_ = 0;
  std::vector<int64_t> batch_shape_;
  std::vector<Member> members_;
};

void run_loss(const CallFrame& frame) {
  check_frame(frame);
  Call(frame).run();
}

// Arguments: log-probabilities and gamma of one shape, and float dtypes of their own; result: like the former.
void run_gamma_grad(const CallFrame& frame) {
  check_frame(frame);
  const Buffer& log_p = argument(frame, 0);
  const Buffer& gamma = argument(frame, 1);
  const Buffer& grad = result(frame, 0);
  int64_t size = 1;
  for (int64_t d = 0; d < log_p.rank; ++d) size *= log_p.dims[d];
  // The core takes gamma in double alone.
  std::vector<double> wide;
  if (dtype_of(gamma) == GCE_FLOAT32) {
    const auto* values = static_cast<const float*>(data_of(gamma));
    wide.assign(values, values + size);
  }
  const void* gammas = wide.empty() ? data_of(gamma) : wide.data();
  char* const args[] = {static_cast<char*>(data_of(log_p)),
                        const_cast<char*>(static_cast<const char*>(gammas)),  // only read
                        static_cast<char*>(data_of(grad))};
  const auto dtype = static_cast<gce_dtype>(dtype_of(log_p));
  const int64_t width = dtype == GCE_FLOAT64 ? sizeof(double) : sizeof(float);
  const int64_t strides[] = {width, sizeof(double), width};
  int64_t out_of_range = 0;
  check(gce_pointwise(GCE_POINTWISE_GAMMA_GRAD, dtype, size, args, strides, &out_of_range));
}

// XLA asks each handler for its version, by a call with this extension, when it is registered. It refuses what it
// does not support; an older one than ours is told its own version, as what is used here is the same in it. (Up to
// 0.1 it does not say which it is.)
bool answer_metadata(const CallFrame& frame) {
  Extension* const extension = frame.extension_start;
  if (extension == nullptr || extension->type != kMetadata) return false;
  Metadata* const metadata = reinterpret_cast<MetadataExtension*>(extension)->metadata;
  const int minor = frame.api != nullptr ? frame.api->version().minor_version : kOldestMinorVersion;
  metadata->api_version = sized<ApiVersion>();
  metadata->api_version.major_version = kMajorVersion;
  metadata->api_version.minor_version =
      std::min(std::max(minor, kOldestMinorVersion), kNewestMinorVersion);
  metadata->traits = 0;
  return true;
}

Error* handle(const CallFrame& frame, void (*action)(const CallFrame&)) {
  if (answer_metadata(frame)) return nullptr;
  return guarded(*frame.api, [&] { action(frame); });
}

}  // namespace
}  // namespace gce_xla

extern "C" {

__attribute__((visibility("default"))) gce_xla::Error* gce_xla_loss(gce_xla::CallFrame* frame) {
  return gce_xla::handle(*frame, gce_xla::run_loss);
}

__attribute__((visibility("default"))) gce_xla::Error* gce_xla_gamma_grad(
    gce_xla::CallFrame* frame) {
  return gce_xla::handle(*frame, gce_xla::run_gamma_grad);
}

}  // extern "C"
