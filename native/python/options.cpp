#include "options.h"

#include <climits>
#include <cstring>
#include <iterator>
#include <utility>

#include "arguments.h"
#include "errors.h"

namespace gce_python {
namespace {

int64_t integer_of(const char* name, PyObject* object) {
  const Ref index(PyNumber_Index(object));
  if (index.get() == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw PythonError();
    PyErr_Format(PyExc_TypeError, "%s has type %s, expected int", name, Py_TYPE(object)->tp_name);
    throw PythonError();
  }
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(index.get(), &overflow);
  if (overflow == 0) return value;
  const Ref text(PyObject_Str(index.get()));
  if (text.get() != nullptr) {
    PyErr_Format(PyExc_ValueError, "%s = %S, expected a 64-bit integer", name, text.get());
  } else {  // Python prints integers up to some thousand digits
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "%s = an integer of too many digits, expected a 64-bit integer",
                 name);
  }
  throw PythonError();
}

int small_integer_of(const char* name, PyObject* object) {
  const int64_t value = integer_of(name, object);
  if (value >= INT_MIN && value <= INT_MAX) return static_cast<int>(value);
  PyErr_Format(PyExc_ValueError, "%s = %S, expected a 32-bit integer", name, object);
  throw PythonError();
}

bool flag_of(const char* name, PyObject* object) {
  if (PyBool_Check(object)) return object == Py_True;
  PyErr_Format(PyExc_TypeError, "%s has type %s, expected bool", name, Py_TYPE(object)->tp_name);
  throw PythonError();
}

// The text of a name option. One that C cannot hold is shown to the core as Python writes it, for the
// core's message.
template <class Enum>
int32_t name_of(PyObject* object, gce_status (*from_name)(const char*, Enum*)) {
  Ref text(PyObject_Str(object));
  if (text.get() == nullptr && PyLong_CheckExact(object)) {  // of too many decimal digits
    PyErr_Clear();
    text = Ref(PyNumber_ToBase(object, 16));
  }
  if (text.get() == nullptr) throw PythonError();
  Py_ssize_t size = 0;
  const char* name = PyUnicode_AsUTF8AndSize(text.get(), &size);
  if (name == nullptr || std::strlen(name) != static_cast<size_t>(size)) {
    PyErr_Clear();
    text = Ref(PyObject_ASCII(text.get()));
    name = text.get() != nullptr ? PyUnicode_AsUTF8(text.get()) : nullptr;
    if (name == nullptr) throw PythonError();
  }
  Enum value;
  throw_if(from_name(name, &value));
  return value;
}

void set_value(Call* c, PyObject* o) { c->problem.value = name_of(o, gce_value_from_name); }
void set_ignore_index(Call* c, PyObject* o) {
  c->problem.has_ignore_index = 1;
  c->problem.ignore_index = integer_of("ignore_index", o);
}
void set_reduction(Call* c, PyObject* o) {
  c->problem.reduction = name_of(o, gce_reduction_from_name);
}
void set_normalizer(Call* c, PyObject* o) {
  c->problem.normalizer = number_of("normalizer", o);
  c->problem.has_normalizer = 1;
}
void set_label_smoothing(Call* c, PyObject* o) {
  c->problem.label_smoothing = number_of("label_smoothing", o);
}
void set_z_loss(Call* c, PyObject* o) { c->problem.z_loss = number_of("z_loss", o); }
void set_return_stats(Call* c, PyObject* o) { c->return_stats = flag_of("return_stats", o); }
void set_softcap(Call* c, PyObject* o) { c->problem.softcap = number_of("softcap", o); }
void set_gauss_newton(Call* c, PyObject* o) {
  c->problem.gauss_newton = flag_of("gauss_newton", o) ? 1 : 0;
}
void set_shift(Call* c, PyObject* o) { c->problem.shift = small_integer_of("shift", o); }
void set_first_class(Call* c, PyObject* o) {
  c->problem.first_class = integer_of("first_class", o);
}
void set_num_classes(Call* c, PyObject* o) {
  c->problem.all_classes = integer_of("num_classes", o);
}
void set_axis(Call* c, PyObject* o) { c->problem.axis = small_integer_of("axis", o); }
void set_out(Call* c, PyObject* o) { c->out.take_output("out", o); }
void set_num_threads(Call* c, PyObject* o) { c->num_threads = thread_count_of(o); }

constexpr Setter array_option(View Call::* view, gce_array gce_problem::* field = nullptr) {
  return {nullptr, view, field};
}

// In the order of the signatures. An option that means something else in the binary form has two rows.
constexpr Option kOptions[] = {
    {"threshold", "0.0", None::kIsAnError, array_option(&Call::threshold, &gce_problem::threshold),
     kOfLosses | kShardedLoss, "float or array of float",
     "Threshold b on the gradient weight, 0 <= b <= 1: a scalar, or one per row (the shape of\n"
     "`targets`). b = 1 is cross-entropy for every `gamma`.",
     "lower bound b on the gradient weight, 0 to 1: a scalar, or one per row; b = 1 is "
     "cross-entropy"},
    {"threshold", "0.0", None::kIsAnError, array_option(&Call::threshold, &gce_problem::threshold),
     kBinaryLosses, "float or array of float",
     "Threshold b on the gradient weight, 0 <= b <= 1: a scalar, or one per element (the shape of\n"
     "`logits`). b = 1 is binary cross-entropy for every `gamma`.",
     "lower bound b on the gradient weight, 0 to 1: a scalar, or one per element; b = 1 is binary "
     "cross-entropy"},
    {"value",
     "\"primitive\"",
     None::kIsAnError,
     {set_value},
     kOfLosses | kShardedLoss | kBinaryLosses,
     "{\"primitive\", \"surrogate\"}",
     "``\"primitive\"``: the antiderivative, so that finite differences of the loss give the\n"
     "gradient. ``\"surrogate\"``: ``w_b * -log(p)`` with ``w_b`` held constant, as in the paper.\n"
     "The gradient is the same.",
     "`\"primitive\"`: the antiderivative, so finite differences give the gradient; "
     "`\"surrogate\"`: `w · −log p`, w held constant"},
    {"weight", "None", None::kAbsent, array_option(&Call::weight, &gce_problem::weight),
     kOfLosses | kShards, "array of float, shape (V,), optional",
     "Class weights: a row's loss and gradient are multiplied by ``weight[target]``.",
     "class weights, shape (V,)"},
    {"weight", "None", None::kAbsent, array_option(&Call::weight, &gce_problem::weight),
     kBinaryLosses, "array of float, optional",
     "Multiplies each element's loss and gradient: a shape that broadcasts to that of `logits`.\n"
     "The mean's divisor stays the same. A weight of 0 is a mask: such an element's loss is 0 "
     "even\n"
     "where it would be infinite, but NaN stays NaN.",
     "multiplies each element's loss and gradient; any shape that broadcasts to the logits'. 0 "
     "masks "
     "an element whose logit is not NaN"},
    {"pos_weight", "None", None::kAbsent, array_option(&Call::pos_weight), kBinaryLosses,
     "array of float, optional",
     "c, multiplies the part ``t L(p)`` of the positive outcome: a shape that broadcasts to that "
     "of\n"
     "`logits`, such as one number per class on the last axis.",
     "c, multiplies the part of the positive outcome; any shape that broadcasts to the logits', "
     "such "
     "as (V,)"},
    {"sample_weight", "None", None::kAbsent,
     array_option(&Call::sample_weight, &gce_problem::sample_weight), kOfLosses | kShardedLoss,
     "array of float, shape of `targets`, optional", "Multiplies each row's loss and gradient.",
     "one per row; multiplies loss and gradient"},
    {"ignore_index",
     "-100",
     None::kAbsent,
     {set_ignore_index},
     kOfLosses | kRowStats | kShards,
     "int or None",
     "Rows with this target have loss 0 and gradient 0 and are not counted by the mean. None: no\n"
     "row is ignored.",
     "rows with this target have loss 0 and gradient 0 and are not counted; `None`: no row is "
     "ignored"},
    {"label_smoothing",
     "0.0",
     None::kIsAnError,
     {set_label_smoothing},
     kOfLosses | kShards,
     "float",
     "eps, 0 <= eps <= 1: the part of each row's loss that is spread over all classes, which\n"
     "becomes ``(1 - eps) weight[target] L + (eps / V) sum(weight * -log(softmax(z)))``: TaiLr's\n"
     "form, and PyTorch's at gamma = 0. The mean's divisor stays the same.",
     "ε, 0 to 1: `(1 − ε) L + (ε/V) Σ −log q` of each row, class weights included; PyTorch's at γ "
     "= 0"},
    {"label_smoothing",
     "0.0",
     None::kIsAnError,
     {set_label_smoothing},
     kBinaryLosses,
     "float",
     "eps, 0 <= eps <= 1: targets t become ``(1 - eps) t + eps / 2`` first.",
     "ε, 0 to 1: t becomes `(1 − ε) t + ε/2`"},
    {"z_loss",
     "0.0",
     None::kIsAnError,
     {set_z_loss},
     kOfLosses | kShardedLoss,
     "float",
     "lambda >= 0: adds ``lambda logsumexp(z)**2`` to each row's loss, so that logits do not\n"
     "drift. `sample_weight` multiplies it, class weights do not; the mean has one divisor for "
     "all.",
     "λ ≥ 0: adds `λ logsumexp(z)²` to each row's loss; sample weights multiply it, class weights "
     "do not, though the mean divides it by their sum, as all else"},
    {"softcap",
     "None",
     None::kAbsent,
     {set_softcap},
     kOfLosses | kRowStats,
     "float, optional",
     "kappa > 0: logits become ``kappa tanh(logits / kappa)`` first, infinite ones ``+-kappa``. 0 "
     "is as\n"
     "None: no cap.",
     "κ > 0: logits become `κ tanh(z/κ)` first; `None` or 0: no cap"},
    {"shift",
     "0",
     None::kIsAnError,
     {set_shift},
     kOfLosses | kRowStats | kShards,
     "int",
     "s >= 0: row t along the last axis of rows predicts target t + s, as in a causal language "
     "model\n"
     "with token ids for `targets` (s = 1). What there is one of per row stands where the target "
     "is; the\n"
     "first s, which no row predicts, are not counted: 0, and -1 for argmax.",
     "s ≥ 0: row t predicts target t + s along the last axis of rows, as causal language models do "
     "with token ids (s = 1)"},
    {"reduction",
     "\"mean\"",
     None::kIsAnError,
     {set_reduction},
     kOfLosses | kShardedLoss,
     "{\"mean\", \"sum\", \"none\"}",
     "What is made of the rows' losses. ``\"mean\"`` divides by the sum of the counted rows' "
     "weights\n"
     "(`weight` times `sample_weight`), or by `normalizer`.",
     "`\"mean\"`, `\"sum\"`, `\"none\"`"},
    {"reduction",
     "\"mean\"",
     None::kIsAnError,
     {set_reduction},
     kBinaryLosses,
     "{\"mean\", \"sum\", \"none\"}",
     "What is made of the elements' losses. ``\"mean\"`` divides by the number of elements, "
     "whatever\n"
     "their weights, or by `normalizer`.",
     "`\"mean\"`, `\"sum\"`, `\"none\"`"},
    {"normalizer",
     "None",
     None::kAbsent,
     {set_normalizer},
     kOfLosses | kShardedLoss,
     "float, optional",
     "The divisor of ``reduction=\"mean\"`` in place of the sum of weights; finite, > 0.",
     "the mean's divisor, instead of the sum of the counted rows' weights"},
    {"normalizer",
     "None",
     None::kAbsent,
     {set_normalizer},
     kBinaryLosses,
     "float, optional",
     "The divisor of ``reduction=\"mean\"`` in place of the number of elements; finite, > 0.",
     "the mean's divisor, instead of the number of elements"},
    {"axis",
     "-1",
     None::kIsAnError,
     {set_axis},
     kOfLosses | kRowStats | kShards,
     "int",
     "The class axis of `logits`.",
     "the class axis"},
    {"first_class",
     "0",
     None::kIsAnError,
     {set_first_class},
     kShards,
     "int",
     "The class of the slice's first logits.",
     "the class of the slice's first logits"},
    {"num_classes",
     "0",
     None::kIsAnError,
     {set_num_classes},
     kShards,
     "int",
     "V, the number of all classes; required.",
     "the number of all classes; required"},
    {"grad_output", "1.0", None::kIsAnError,
     array_option(&Call::grad_output, &gce_problem::grad_output),
     kLossAndGrad | kLossGammaGrad | kHvp | kShardedLoss, "float or array of float",
     "Upstream gradient, multiplies the gradient: a scalar, or with ``reduction=\"none\"`` one "
     "per\n"
     "row.",
     "upstream gradient: a scalar, or one per row with `reduction=\"none\"`"},
    {"grad_output", "1.0", None::kIsAnError,
     array_option(&Call::grad_output, &gce_problem::grad_output), kBinaryLossAndGrad,
     "float or array of float",
     "Upstream gradient, multiplies the gradient: a scalar, or with ``reduction=\"none\"`` one "
     "per\n"
     "element (the shape of `logits`).",
     "upstream gradient: a scalar, or one per element with `reduction=\"none\"`"},
    {"gauss_newton",
     "False",
     None::kIsAnError,
     {set_gauss_newton},
     kHvp,
     "bool",
     "Whether to multiply with the Hessian's positive semi-definite part in place of it: the "
     "gradient\n"
     "weight counts as a constant, as for ``value=\"surrogate\"``; so does the slope of a softcap; "
     "and\n"
     "z-loss has no less than 0 for its logsumexp.",
     "the Hessian's positive semi-definite part in place of the Hessian: the gradient weight "
     "counts as a constant"},
    {"out",
     "None",
     None::kAbsent,
     {set_out},
     kLossAndGrad | kHvp | kShardedLoss | kBinaryLossAndGrad,
     "numpy.ndarray, optional",
     "Receives the gradient and is returned: dtype and shape of `logits`. It may be `logits`\n"
     "itself (in place), but not overlap it or another argument otherwise.",
     "array that receives the gradient, else a new one; may be `logits` itself"},
    {"return_stats",
     "False",
     None::kIsAnError,
     {set_return_stats},
     kLosses | kShardedLoss,
     "bool",
     "Whether to return a `LossStats` of the same pass, last: log-probability of the target,\n"
     "logsumexp, argmax and gradient weight of each row. The loss has the same bits either way.",
     "a `LossStats` of the same pass, last: target log-probability, logsumexp, argmax and gradient "
     "weight of each row"},
    {"num_threads",
     "None",
     None::kAbsent,
     {set_num_threads},
     kOfLosses | kRowStats | kShards | kBinaryLosses,
     "int, optional",
     "Threads for this call at most; see `set_num_threads`. No result depends on it.",
     "threads for this call, else the process setting"},
};

constexpr bool all_have_a_summary() {
  for (const Option& option : kOptions) {
    if (option.summary == nullptr) return false;
  }
  return true;
}
static_assert(all_have_a_summary(), "an option of kOptions lacks its last column, the summary");

constexpr struct {
  Takes bit;
  const char* name;
} kFunctions[] = {{kLossFunction, "loss"},
                  {kLossAndGrad, "loss_and_grad"},
                  {kLossGammaGrad, "loss_gamma_grad"},
                  {kHvp, "hvp"},
                  {kRowStats, "row_stats"},
                  {kPartialStats, "partial_stats"},
                  {kShardedLoss, "sharded_loss_and_grad"},
                  {kBinaryLoss, "binary_loss"},
                  {kBinaryLossAndGrad, "binary_loss_and_grad"}};

}  // namespace

OptionTable options() { return {kOptions, std::size(kOptions)}; }

void set_option(Call* call, const Option& option, PyObject* object) {
  if (object != Py_None && option.set.view != nullptr) {
    (call->*option.set.view).take(option.name, object, Kind::kReal);
  } else if (object != Py_None) {
    option.set.function(call, object);
  } else if (option.none == None::kIsAnError) {
    PyErr_Format(PyExc_TypeError, "%s = None, expected %s", option.name, option.type);
    throw PythonError();
  } else if (option.set.function == set_ignore_index) {
    call->problem.has_ignore_index = 0;
  }
}

int thread_count_of(PyObject* object) {
  const int64_t count = integer_of("num_threads", object);
  if (count >= 1) return static_cast<int>(count < INT_MAX ? count : INT_MAX);
  PyErr_Format(PyExc_ValueError, "num_threads = %S, expected at least 1", object);
  throw PythonError();
}

std::string parameters_of(Takes takes) {
  std::string text;
  for (const Option& option : kOptions) {
    if ((option.takes & takes) == 0) continue;
    text += std::string(option.name) + " : " + option.type + ", default " + option.default_text +
            "\n    ";
    for (const char* c = option.documentation; *c != '\0'; ++c) {
      text += *c;
      if (*c == '\n') text += "    ";
    }
    text += "\n";
  }
  return text;
}

std::vector<OptionSummary> option_summaries() {
  std::vector<OptionSummary> summaries;
  for (const Option& option : kOptions) {
    std::vector<std::string> functions;
    for (const auto& function : kFunctions) {
      if ((option.takes & function.bit) != 0) functions.emplace_back(function.name);
    }
    summaries.emplace_back(option.name, option.default_text, option.type, option.summary,
                           std::move(functions));
  }
  return summaries;
}

}  // namespace gce_python
