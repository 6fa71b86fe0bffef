#include "validate.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <string>

#include "checks.h"
#include "error.h"
#include "row_options.h"
#include "row_runs.h"
#include "storage.h"

namespace gce {
namespace {

void check_logits(const gce_problem& p) {
  const gce_array& logits = p.logits;
  require_float("logits", logits);
  if (p.axis < -logits.ndim || p.axis >= logits.ndim) {
    fail(GCE_VALUE_ERROR, "axis = ", p.axis, ", expected ", -logits.ndim, " <= axis < ",
         logits.ndim, " for logits of shape ", shape_text(logits));
  }
  if (logits.shape[class_axis(p)] < 1) {
    fail(GCE_VALUE_ERROR, "logits has shape ", shape_text(logits),
         ", expected at least 1 class along axis ", class_axis(p));
  }
  require_few_elements(logits);
}

bool is_shape_of_rows(const gce_array& a, const gce_array& logits, int32_t axis) {
  bool same = a.ndim == logits.ndim - 1;
  for (int32_t d = 0; same && d < a.ndim; ++d) {
    same = a.shape[d] == logits.shape[d < axis ? d : d + 1];
  }
  return same;
}

void check_probabilities(const gce_problem& p) {
  const int32_t axis = class_axis(p);
  if (is_shape_of_rows(p.targets, p.logits, axis)) {
    fail(GCE_TYPE_ERROR, "targets has dtype ", name_of(p.targets.dtype),
         ", expected an integer dtype for one class per row, or probabilities of the shape of "
         "logits ",
         shape_text(p.logits));
  }
  if (!same_shape(p.targets, p.logits)) {
    fail(GCE_VALUE_ERROR, "targets has shape ", shape_text(p.targets), ", expected ",
         shape_text(p.logits), " of probabilities, the shape of logits");
  }
  if (p.has_ignore_index && p.ignore_index >= 0) {
    fail(GCE_VALUE_ERROR, "ignore_index = ", p.ignore_index,
         ", expected none, or a negative one, for targets that are probabilities: no class stands "
         "for a "
         "row there; use sample_weight");
  }
}

void check_targets(const gce_problem& p) {
  if (are_probabilities(p)) return check_probabilities(p);
  if (!is_integer(p.targets.dtype)) {
    fail(GCE_TYPE_ERROR, "targets has dtype ", name_of(p.targets.dtype),
         ", expected an integer dtype, or a float dtype for probabilities");
  }
  const int32_t axis = class_axis(p);
  if (!is_shape_of_rows(p.targets, p.logits, axis)) {
    const bool are_one_hot = p.shard == GCE_SHARD_NONE && same_shape(p.targets, p.logits);
    fail(GCE_VALUE_ERROR, "targets has shape ", shape_text(p.targets), ", expected ",
         shape_text(p.logits, axis), ": the shape of logits ", shape_text(p.logits),
         " without axis ", axis, are_one_hot ? ", or a float dtype for probabilities" : "");
  }
}

const char* said_of_rows(const gce_problem& p) {
  return are_probabilities(p) ? ", the shape of targets without the class axis"
                              : ", the shape of targets";
}

void require_row_shape(const char* name, const gce_array& a, const gce_problem& p,
                       const gce_array& rows, bool scalar_allowed) {
  if (same_shape(a, rows) || (scalar_allowed && a.ndim == 0)) return;
  fail(GCE_VALUE_ERROR, name, " has shape ", shape_text(a), ", expected ",
       scalar_allowed ? "a scalar or " : "", shape_text(rows), said_of_rows(p));
}

void check_softcap(double softcap) {
  if (softcap >= 0.0 && !std::isinf(softcap)) return;
  fail(GCE_VALUE_ERROR, "softcap = ", softcap, ", expected a finite number > 0");
}

void check_shift(const gce_problem& p) {
  if (p.shift < 0) fail(GCE_VALUE_ERROR, "shift = ", p.shift, ", expected >= 0");
  if (p.shift > 0 && p.logits.ndim < 2) {
    fail(GCE_VALUE_ERROR, "shift = ", p.shift, ", expected 0 for logits of shape ",
         shape_text(p.logits), ": there is no axis of rows");
  }
}

// Of the whole vocabulary, where the logits are a slice of it.
int64_t number_of_classes(const gce_problem& p) {
  return p.shard == GCE_SHARD_NONE ? p.logits.shape[class_axis(p)] : p.all_classes;
}

// What a Hessian is multiplied with.
void check_vector(const gce_problem& p) {
  if (!is_given(p.vector)) {
    if (!p.gauss_newton) return;
    fail(GCE_VALUE_ERROR, "gauss_newton = ", p.gauss_newton,
         ", expected 0 where vector is missing");
  }
  require_float("vector", p.vector);
  if (!same_shape(p.vector, p.logits)) {
    fail(GCE_VALUE_ERROR, "vector has shape ", shape_text(p.vector), ", expected ",
         shape_text(p.logits), ", the shape of logits");
  }
}

void check_options(const gce_problem& p, const gce_array& rows) {
  const bool wants_gamma =
      is_given(p.loss) || is_given(p.grad) || is_given(p.grad_weight) || is_given(p.gamma_grad);
  if (wants_gamma && !is_given(p.gamma)) {
    fail(GCE_VALUE_ERROR, "gamma is missing, expected a number from 0 to 1, or one per row");
  }
  for (const RowOption& option : kRowOptions) {
    const gce_array& array = p.*option.array;
    if (!is_given(array)) continue;
    require_float(option.name, array);
    require_row_shape(option.name, array, p, rows, option.scalar_allowed);
  }
  require_scalar_unless_none(p.grad_output, p.reduction);
  if (is_given(p.weight)) {
    require_float("weight", p.weight);
    const int64_t classes = number_of_classes(p);
    if (p.weight.ndim != 1 || p.weight.shape[0] != classes) {
      fail(GCE_VALUE_ERROR, "weight has shape ", shape_text(p.weight), ", expected (", classes,
           p.shard == GCE_SHARD_NONE ? ",): one per class of logits "
                                     : ",): one per class, beside logits ",
           shape_text(p.logits));
    }
  }
  if (is_given(p.gamma_grad) && p.value == GCE_VALUE_SURROGATE) {
    fail(GCE_VALUE_ERROR,
         "value = \"surrogate\", expected \"primitive\" for a derivative in gamma: the surrogate's "
         "weight, all of it that depends on gamma, counts as a constant");
  }
  require_unit_range("label_smoothing", p.label_smoothing);
  if (!(p.z_loss >= 0.0) || std::isinf(p.z_loss)) {
    fail(GCE_VALUE_ERROR, "z_loss = ", p.z_loss, ", expected a finite number >= 0");
  }
  check_softcap(p.softcap);
  check_shift(p);
  check_vector(p);
  if (p.has_normalizer) require_normalizer(p.reduction, p.normalizer);
}

// Every array, before anything else of it is looked at.
void check_arrays(const gce_problem& p) {
  require_sound("logits", p.logits, 1);
  require_sound("targets", p.targets);
  require_sound_if_given("weight", p.weight);
  require_sound_if_given("vector", p.vector);
  if (p.shard != GCE_SHARD_NONE) require_sound("stats", p.shard_stats);
  for (const RowOption& option : kRowOptions) require_sound_if_given(option.name, p.*option.array);
  require_sound_if_given("loss", p.loss);
  require_sound_if_given("out", p.grad);
  for (const RowOutput& output : kRowOutputs) require_sound_if_given(output.name, p.*output.array);
  require_sound_if_given("gamma_grad", p.gamma_grad);
}

void require_apart_from_inputs(const char* out_name, const gce_array& out, const gce_problem& p) {
  require_apart(out_name, out, "targets", p.targets);
  require_apart(out_name, out, "weight", p.weight);
  require_apart(out_name, out, "vector", p.vector);
  if (p.shard == GCE_SHARD_MERGED) require_apart(out_name, out, "stats", p.shard_stats);
  for (const RowOption& option : kRowOptions) {
    require_apart(out_name, out, option.name, p.*option.array);
  }
}

// The statistics of slices.
void check_shard_stats(const gce_problem& p, const gce_array& rows) {
  const gce_array& stats = p.shard_stats;
  bool same = stats.ndim == rows.ndim + 1 && stats.shape[rows.ndim] == GCE_SHARD_FIELDS;
  for (int32_t d = 0; same && d < rows.ndim; ++d) same = stats.shape[d] == rows.shape[d];
  if (!same) {
    fail(GCE_VALUE_ERROR, "stats has shape ", shape_text(stats), ", expected that of targets, ",
         shape_text(rows), ", and ", static_cast<int>(GCE_SHARD_FIELDS), " more");
  }
  require_given("stats", stats);
  if (p.shard == GCE_SHARD_PARTIAL) {
    require_output("stats", stats, GCE_FLOAT64, "");
    require_apart("stats", stats, "logits", p.logits);
    require_apart_from_inputs("stats", stats, p);
  } else if (stats.dtype != GCE_FLOAT64) {
    fail(GCE_TYPE_ERROR, "stats has dtype ", name_of(stats.dtype), ", expected float64");
  }
}

void check_shard(const gce_problem& p, const gce_array& rows) {
  if (p.shard == GCE_SHARD_NONE) {
    if (!is_given(p.shard_stats)) return;
    fail(GCE_VALUE_ERROR, "stats is given, expected none where shard is none");
  }
  if (p.shard != GCE_SHARD_PARTIAL && p.shard != GCE_SHARD_MERGED) {
    fail(GCE_VALUE_ERROR, "shard = ", p.shard, ", expected a gce_shard");
  }
  const int64_t classes = p.logits.shape[class_axis(p)];
  const bool has_room = p.all_classes >= classes && p.all_classes <= kMostElements;
  if (!has_room || p.first_class < 0 || p.first_class > p.all_classes - classes) {
    fail(GCE_VALUE_ERROR, "first_class = ", p.first_class, " and num_classes = ", p.all_classes,
         ", expected 0 <= first_class <= num_classes - ", classes, " for a slice of ", classes,
         " classes");
  }
  if (are_probabilities(p)) {
    fail(GCE_TYPE_ERROR, "targets has dtype ", name_of(p.targets.dtype),
         ", expected an integer dtype for a slice of the classes");
  }
  if (p.softcap != 0.0) {
    fail(GCE_VALUE_ERROR, "softcap = ", p.softcap,
         ", expected none for a slice of the classes: cap its logits first");
  }
  if (is_given(p.vector)) {
    fail(GCE_VALUE_ERROR, "vector is given, expected none for a slice of the classes");
  }
  bool wants_more = is_given(p.loss) || is_given(p.grad) || is_given(p.gamma_grad);
  for (const RowOutput& output : kRowOutputs) wants_more = wants_more || is_given(p.*output.array);
  if (p.shard == GCE_SHARD_PARTIAL && wants_more) {
    fail(GCE_VALUE_ERROR,
         "another output than shard_stats is given, expected none before slices are merged");
  }
  check_shard_stats(p, rows);
}

void require_apart_from_all(const char* out_name, const gce_array& out, const gce_problem& p) {
  require_apart(out_name, out, "logits", p.logits);
  require_apart_from_inputs(out_name, out, p);
  require_apart(out_name, out, "loss", p.loss);
  require_apart(out_name, out, "out", p.grad);
}

void check_grad(const gce_problem& p) {
  if (!is_given(p.grad)) return;
  require_grad(p.grad, p.logits);
  require_apart_from_inputs("out", p.grad, p);
}

void check_loss(const gce_problem& p, const gce_array& rows) {
  if (!is_given(p.loss)) return;
  require_loss(p.loss, p.reduction, p.logits, rows, said_of_rows(p));
  require_apart("loss", p.loss, "out", p.grad);
  require_apart_from_inputs("loss", p.loss, p);
}

void check_outputs(const gce_problem& p, const gce_array& rows) {
  const int32_t wide_dtype = p.logits.dtype == GCE_FLOAT64 ? GCE_FLOAT64 : GCE_FLOAT32;
  check_loss(p, rows);
  for (const RowOutput& output : kRowOutputs) {
    const int32_t dtype = output.dtype == kLossDtype ? wide_dtype : output.dtype;
    if (!is_given(p.*output.array)) continue;
    require_row_output(output.name, p.*output.array, dtype, rows, said_of_rows(p));
    require_apart_from_all(output.name, p.*output.array, p);
    for (const RowOutput* other = kRowOutputs; other != &output; ++other) {
      require_apart(output.name, p.*output.array, other->name, p.*other->array);
    }
  }
  if (is_given(p.gamma_grad)) {
    if (!same_shape(p.gamma_grad, p.gamma)) {
      fail(GCE_VALUE_ERROR, "gamma_grad has shape ", shape_text(p.gamma_grad), ", expected ",
           shape_text(p.gamma), ", the shape of gamma");
    }
    require_output("gamma_grad", p.gamma_grad, GCE_FLOAT64, "");
    require_apart_from_all("gamma_grad", p.gamma_grad, p);
    for (const RowOutput& other : kRowOutputs) {
      require_apart("gamma_grad", p.gamma_grad, other.name, p.*other.array);
    }
  }
  check_grad(p);
}

// index_text for a class of a row, in an array of the logits' shape.
std::string index_of_class(const gce_problem& p, int64_t row, int64_t of_class) {
  const int32_t axis = class_axis(p);
  std::string text;
  int64_t shift = p.shift;  // of the last axis that is not the classes'
  for (int32_t d = p.logits.ndim - 1; d >= 0; --d) {
    const int64_t index = d == axis ? of_class : row % p.logits.shape[d] + shift;
    if (d != axis) {
      row /= p.logits.shape[d];
      shift = 0;
    }
    text = std::to_string(index) + (text.empty() ? "" : ", ") + text;
  }
  return "[" + text + "]";
}

[[noreturn]] void fail_target(const gce_problem& p, const char* element, int64_t row,
                              int64_t classes) {
  const std::string value = p.targets.dtype == GCE_UINT64
                                ? std::to_string(read<uint64_t>(element))
                                : std::to_string(read_target(element, p.targets.dtype));
  fail(GCE_INDEX_ERROR, "targets", index_text(p.targets, row, p.shift), " = ", value,
       ", expected 0 <= target < ", classes);
}

void check_probability_values(const gce_problem& p, const RowProblem& rows,
                              const KernelTable& kernels) {
  const RowArray& targets = rows.arrays[kTargets];
  const int64_t stride = targets.strides[rows.ndim - 1];
  const int64_t class_stride = rows.targets_class_stride;
  for_each_run(rows, [&](int64_t row, int64_t n, const int64_t* offsets) {
    const char* const run = targets.data + offsets[kTargets];
    const bool rows_follow = stride == rows.classes * class_stride;  // one upon the other
    const bool classes_follow = class_stride == n * stride;
    const int64_t step = rows_follow ? class_stride : stride;  // either may be negative
    const int64_t all = n * rows.classes;
    if ((rows_follow || classes_follow) &&
        kernels.check_probabilities(run, targets.dtype, step, all) == all) {
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      const char* first = run + i * stride;
      const int64_t invalid =
          kernels.check_probabilities(first, targets.dtype, class_stride, rows.classes);
      if (invalid == rows.classes) continue;
      const double found = read_real(first + invalid * class_stride, targets.dtype);
      fail(GCE_VALUE_ERROR, "targets", index_of_class(p, row + i, invalid), " = ",
           std::isnan(found) ? NAN : found, ", expected a probability: finite and >= 0");
    }
  });
}

// Returns how many targets are counted.
int64_t check_target_values(const gce_problem& p, const RowProblem& rows,
                            const KernelTable& kernels) {
  const RowArray& targets = rows.arrays[kTargets];
  const int64_t stride = targets.strides[rows.ndim - 1];
  int64_t counted = 0;
  for_each_run(rows, [&](int64_t row, int64_t n, const int64_t* offsets) {
    const char* first = targets.data + offsets[kTargets];
    const TargetCheck check =
        kernels.check_targets(first, targets.dtype, stride, n, rows.all_classes,
                              rows.has_ignore_index, rows.ignore_index);
    if (check.first_invalid < n) {
      fail_target(p, first + check.first_invalid * stride, row + check.first_invalid,
                  rows.all_classes);
    }
    counted += check.counted;
  });
  return counted;
}

// Whether class weights cannot have a sum of 0.
bool weights_have_one_sign(const RowProblem& rows) {
  bool any_positive = false;
  bool any_negative = false;
  for (int64_t v = 0; v < weights_to_look_at(rows); ++v) {
    any_positive = any_positive || class_weight_of(rows, v) > 0.0;
    any_negative = any_negative || class_weight_of(rows, v) < 0.0;
  }
  return any_positive != any_negative;
}

// Whether those of all slices were merged; with label smoothing, whether they were found with it.
void check_merged_stats(const gce_problem& p, const RowProblem& rows) {
  std::optional<bool> have_a_sum;  // of class weights, asked only where they seem to have none
  const RowArray& stats = rows.arrays[kShardStats];
  for_each_run(rows, [&](int64_t row, int64_t n, const int64_t* offsets) {
    for (int64_t i = 0; i < n; ++i) {
      const char* of_row = stats.data + offsets[kShardStats] + i * stats.strides[rows.ndim - 1];
      const auto get = [&](gce_shard_field field) {
        return read<double>(of_row + field * rows.shard_field_stride);
      };
      const double first = get(GCE_SHARD_FIRST_CLASS);
      const double classes = get(GCE_SHARD_CLASSES);
      if (first != 0.0 || classes != static_cast<double>(rows.all_classes)) {
        fail(GCE_VALUE_ERROR, "stats", index_text(p.targets, row + i, p.shift), " is of ", classes,
             " classes from ", first, " on, expected of all ", rows.all_classes,
             ": those of all slices are to be merged");
      }
      if (p.label_smoothing == 0.0 || get(GCE_SHARD_WEIGHT_SUM) != 0.0) continue;
      if (!have_a_sum) have_a_sum = weights_have_one_sign(rows);
      if (*have_a_sum) {
        fail(GCE_VALUE_ERROR, "stats", index_text(p.targets, row + i, p.shift),
             " was found without label_smoothing, expected with it, as label_smoothing = ",
             p.label_smoothing);
      }
    }
  });
}

// Over the counted rows, of class weight times sample weight.
RowWeights sum_of_weights(const RowProblem& rows) {
  PairSum sum = {0.0, 0.0};
  bool any = false;
  const RowArray& targets = rows.arrays[kTargets];
  const RowArray& sample = rows.arrays[kSampleWeight];
  const int d = rows.ndim - 1;
  for_each_run(rows, [&](int64_t, int64_t n, const int64_t* offsets) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t target =
          read_target(targets.data + offsets[kTargets] + i * targets.strides[d], targets.dtype);
      if (rows.has_ignore_index && target == rows.ignore_index) continue;
      if (target < 0 || target >= rows.all_classes) continue;  // changed since it was checked
      double weight = class_weight_of(rows, target);
      if (sample.data != nullptr) {
        weight *=
            read_real(sample.data + offsets[kSampleWeight] + i * sample.strides[d], sample.dtype);
      }
      any = any || weight != 0.0;
      add_exactly(&sum, weight);
    }
  });
  return {value_of(sum), any};
}

void require_name(const char* option, const char* name) {
  if (name == nullptr) fail(GCE_VALUE_ERROR, option, " is NULL, expected a name");
}

}  // namespace

int32_t class_axis(const gce_problem& problem) {
  return problem.axis < 0 ? problem.axis + problem.logits.ndim : problem.axis;
}

bool are_probabilities(const gce_problem& problem) { return is_float(problem.targets.dtype); }

RowShape::RowShape(const gce_problem& problem) : array_(problem.targets) {
  if (!are_probabilities(problem)) return;
  const int32_t axis = class_axis(problem);
  array_ = {nullptr, shape_, nullptr, problem.logits.ndim - 1, 0, 0};
  for (int32_t d = 0; d < array_.ndim; ++d) {
    shape_[d] = problem.logits.shape[d < axis ? d : d + 1];
  }
}

void validate_arguments(const gce_problem& problem) {
  check_arrays(problem);
  check_logits(problem);
  check_targets(problem);
  require_given("logits", problem.logits);
  require_given("targets", problem.targets);
  require_reduction_and_value(problem.reduction, problem.value);
  const RowShape rows(problem);
  check_options(problem, rows.array());
  check_shard(problem, rows.array());
  check_outputs(problem, rows.array());
}

void validate_pointwise(int32_t op, int32_t dtype, int64_t n, char* const* args) {
  require_enum("op", "gce_pointwise_op", op, GCE_POINTWISE_GAMMA_GRAD);
  if (dtype != GCE_FLOAT32 && dtype != GCE_FLOAT64) {
    fail(GCE_TYPE_ERROR, "dtype = ", dtype, " (", name_of(dtype), "), expected float32 or float64");
  }
  if (n < 0) fail(GCE_VALUE_ERROR, "n = ", n, ", expected >= 0");
  for (int i = 0; n > 0 && i <= inputs_of(op); ++i) {
    if (args[i] == nullptr) fail(GCE_VALUE_ERROR, "args[", i, "] is NULL, expected its address");
  }
}

RowWeights validate_elements(const gce_problem& problem, const RowProblem& rows,
                             const KernelTable& kernels) {
  const RowShape shape(problem);
  const auto check_range = [&](const char* name, const gce_array& a, RowArrayId id) {
    require_unit_range(name, name, a, shape.array(), problem.shift, rows, id, kernels);
  };
  check_range("gamma", problem.gamma, kGamma);
  check_range("threshold", problem.threshold, kThreshold);
  if (rows.targets_are_probabilities) {
    check_probability_values(problem, rows, kernels);
    return {static_cast<double>(rows.rows), rows.rows > 0};
  }
  const int64_t counted = check_target_values(problem, rows, kernels);
  if (problem.shard == GCE_SHARD_MERGED) check_merged_stats(problem, rows);
  const bool weighted = rows.weight != nullptr || rows.arrays[kSampleWeight].data != nullptr;
  if (weighted && problem.reduction == GCE_REDUCTION_MEAN && !problem.has_normalizer) {
    return sum_of_weights(rows);
  }
  return {static_cast<double>(counted), counted > 0};
}

gce_reduction reduction_from_name(const char* name) {
  require_name("reduction", name);
  if (std::strcmp(name, "mean") == 0) return GCE_REDUCTION_MEAN;
  if (std::strcmp(name, "sum") == 0) return GCE_REDUCTION_SUM;
  if (std::strcmp(name, "none") == 0) return GCE_REDUCTION_NONE;
  fail(GCE_VALUE_ERROR, "reduction = \"", name, R"(", expected "mean", "sum" or "none")");
}

gce_value value_from_name(const char* name) {
  require_name("value", name);
  if (std::strcmp(name, "primitive") == 0) return GCE_VALUE_PRIMITIVE;
  if (std::strcmp(name, "surrogate") == 0) return GCE_VALUE_SURROGATE;
  fail(GCE_VALUE_ERROR, "value = \"", name, R"(", expected "primitive" or "surrogate")");
}

}  // namespace gce
