// gce_xla_loss, the handler that gce.jax registers and the one symbol that the library exports: a gce_problem over
// XLA's own buffers, of which nothing is copied. Attributes name the arguments and the results, in their order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
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
  kFull,     // what has something for each row: the logits' axes, or those without the classes
  kRows,     // the latter, or none
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
    {"logits", Kind::kFull, &gce_problem::logits},
    {"targets", Kind::kFull, &gce_problem::targets},
    {"gamma", Kind::kRows, &gce_problem::gamma},
    {"threshold", Kind::kRows, &gce_problem::threshold},
    {"weight", Kind::kClasses, &gce_problem::weight},
    {"sample_weight", Kind::kFull, &gce_problem::sample_weight},
    {"grad_output", Kind::kRows, &gce_problem::grad_output},
    {"vector", Kind::kFull, &gce_problem::vector},
    {"label_smoothing", Kind::kNumber, nullptr, &gce_problem::label_smoothing},
    {"z_loss", Kind::kNumber, nullptr, &gce_problem::z_loss},
    {"softcap", Kind::kNumber, nullptr, &gce_problem::softcap},
    {"normalizer", Kind::kNumber, nullptr, &gce_problem::normalizer},
    {"loss", Kind::kRows, &gce_problem::loss},
    {"grad", Kind::kFull, &gce_problem::grad},
    {"gamma_grad", Kind::kRows, &gce_problem::gamma_grad},
};

const Field& field_named(const std::string& name) {
  const auto* const found = std::find_if(std::begin(kFields), std::end(kFields),
                                         [&](const Field& field) { return field.name == name; });
  if (found == std::end(kFields)) throw Failure(kInternal, "unknown array " + name);
  return *found;
}

// The same number, on XLA's threads too, which take subnormal ones for 0.
double widened(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7F800000) != 0) return x;
  const double magnitude = std::ldexp(static_cast<double>(bits & 0x007FFFFF), -149);
  return bits >> 31 != 0 ? -magnitude : magnitude;
}

double number_of(const gce_array& array) {
  if (array.dtype == GCE_FLOAT64) return *static_cast<const double*>(array.data);
  if (array.dtype == GCE_FLOAT32) return widened(*static_cast<const float*>(array.data));
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
    const int64_t* const own_shape = argument(frame, 0).dims + batch_;
    row_shape_.assign(own_shape, own_shape + own_ndim_);
    row_shape_.erase(row_shape_.begin() + problem_.axis);
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
    problem_.shift = static_cast<int32_t>(integer_of(attributes, "shift"));
    problem_.has_ignore_index = static_cast<int32_t>(integer_of(attributes, "has_ignore_index"));
    problem_.ignore_index = integer_of(attributes, "ignore_index");
    own_ndim_ = integer_of(attributes, "ndim");
    if (problem_.axis < 0 || problem_.axis >= own_ndim_) throw Failure(kInternal, "a wrong axis");
  }

  void add(const std::string& name, const Buffer& buffer) {
    members_.push_back({field_named(name), View(buffer, batch_shape_.data(), batch_)});
  }

  bool has_rows(const Member& member) const {
    const bool has_row_axes = member.view.own_ndim() == own_ndim_ - 1;
    return member.field.kind == Kind::kFull || (member.field.kind == Kind::kRows && has_row_axes);
  }

  // Rows know nothing of each other; but a reduction, class weights, numbers, and one gamma's derivative belong
  // to one call.
  bool can_be_one_problem() const {
    if (problem_.reduction != GCE_REDUCTION_NONE) return false;
    return std::all_of(members_.begin(), members_.end(), [this](const Member& member) {
      if (has_rows(member)) return true;
      const bool is_row_option =
          member.field.kind == Kind::kRows && member.field.array != &gce_problem::gamma_grad;
      return is_row_option || !member.view.is_mapped();
    });
  }

  // vmap's axes are axes of rows: those of one problem.
  void run_whole() {
    const std::vector<int64_t> first(batch_shape_.size(), 0);
    for (Member& member : members_) {
      if (!has_rows(member) && !member.view.is_mapped()) {
        set(member.field, member.view.at(first.data()));
        continue;
      }
      if (!has_rows(member)) member.view.append_axes(row_shape_);
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
  std::vector<int64_t> row_shape_;
  std::vector<Member> members_;
};

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

Error* handle(const CallFrame& frame) {
  if (answer_metadata(frame)) return nullptr;
  return guarded(*frame.api, [&] {
    check_frame(frame);
    Call(frame).run();
  });
}

}  // namespace
}  // namespace gce_xla

extern "C" __attribute__((visibility("default"))) gce_xla::Error* gce_xla_loss(
    gce_xla::CallFrame* frame) {
  return gce_xla::handle(*frame);
}
