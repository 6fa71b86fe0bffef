#include "checks.h"
#include "error.h"
#include "row_options.h"
#include "validate.h"

namespace gce {
namespace {

void check_arrays(const gce_binary_problem& p) {
  require_sound("logits", p.logits);
  require_sound("targets", p.targets);
  for (const ElementOption& option : kElementOptions)
    require_sound_if_given(option.name, p.*option.array);
  require_sound_if_given("loss", p.loss);
  require_sound_if_given("out", p.grad);
}

void check_logits(const gce_array& logits) {
  require_float("logits", logits);
  require_few_elements(logits);
}

void check_targets(const gce_binary_problem& p) {
  require_float("targets", p.targets);
  if (!same_shape(p.targets, p.logits)) {
    fail(GCE_VALUE_ERROR, "targets has shape ", shape_text(p.targets), ", expected ",
         shape_text(p.logits), ", the shape of logits");
  }
}

// As numpy and PyTorch broadcast: axes are matched from the last on, and an axis of length 1 fits any.
bool broadcasts_to(const gce_array& a, const gce_array& logits) {
  const int32_t missing = logits.ndim - a.ndim;
  if (missing < 0) return false;
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != 1 && a.shape[d] != logits.shape[missing + d]) return false;
  }
  return true;
}

void require_shape(const ElementOption& option, const gce_array& a, const gce_array& logits) {
  const bool fits =
      option.broadcasts ? broadcasts_to(a, logits) : a.ndim == 0 || same_shape(a, logits);
  if (fits) return;
  fail(GCE_VALUE_ERROR, option.name, " has shape ", shape_text(a), ", expected a scalar or ",
       option.broadcasts ? "a shape that broadcasts to " : "", shape_text(logits),
       ", the shape of logits");
}

void check_options(const gce_binary_problem& p) {
  if (!is_given(p.gamma)) {
    fail(GCE_VALUE_ERROR, "gamma is missing, expected a number from 0 to 1, or one per element");
  }
  for (const ElementOption& option : kElementOptions) {
    const gce_array& array = p.*option.array;
    if (!is_given(array)) continue;
    require_float(option.name, array);
    require_shape(option, array, p.logits);
  }
  require_scalar_unless_none(p.grad_output, p.reduction);
  require_unit_range("label_smoothing", p.label_smoothing);
  if (p.has_normalizer) require_normalizer(p.reduction, p.normalizer);
}

void require_apart_from_inputs(const char* out_name, const gce_array& out,
                               const gce_binary_problem& p) {
  require_apart(out_name, out, "targets", p.targets);
  for (const ElementOption& option : kElementOptions) {
    require_apart(out_name, out, option.name, p.*option.array);
  }
}

void check_outputs(const gce_binary_problem& p) {
  if (is_given(p.loss)) {
    require_loss(p.loss, p.reduction, p.logits, p.logits, ", the shape of logits");
    require_apart("loss", p.loss, "out", p.grad);
    require_apart_from_inputs("loss", p.loss, p);
  }
  if (is_given(p.grad)) {
    require_grad(p.grad, p.logits);
    require_apart_from_inputs("out", p.grad, p);
  }
}

}  // namespace

void validate_arguments(const gce_binary_problem& problem) {
  check_arrays(problem);
  check_logits(problem.logits);
  check_targets(problem);
  require_given("logits", problem.logits);
  require_given("targets", problem.targets);
  require_reduction_and_value(problem.reduction, problem.value);
  check_options(problem);
  check_outputs(problem);
}

void validate_elements(const gce_binary_problem& problem, const RowProblem& rows,
                       const KernelTable& kernels) {
  const auto check_range = [&](const char* name, const char* one, const gce_array& a,
                               RowArrayId id) {
    require_unit_range(name, one, a, problem.logits, 0, rows, id, kernels);
  };
  check_range("gamma", "gamma", problem.gamma, kGamma);
  check_range("threshold", "threshold", problem.threshold, kThreshold);
  check_range("targets", "target", problem.targets, kTargets);
}

}  // namespace gce
