#include "arguments.h"

#include <climits>
#include <cstring>
#include <iterator>

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
  if (overflow != 0) {
    PyErr_Format(PyExc_ValueError, "%s = %S, expected a 64-bit integer", name, object);
    throw PythonError();
  }
  return value;
}

int small_integer_of(const char* name, PyObject* object) {
  const int64_t value = integer_of(name, object);
  if (value >= INT_MIN && value <= INT_MAX) return static_cast<int>(value);
  PyErr_Format(PyExc_ValueError, "%s = %S, expected a 32-bit integer", name, object);
  throw PythonError();
}

// The text of a name option. One that C cannot hold is shown to the core as Python writes it, for the
// core's message.
template <class Enum>
int32_t name_of(PyObject* object, gce_status (*from_name)(const char*, Enum*)) {
  Ref text(PyObject_Str(object));
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
void set_axis(Call* c, PyObject* o) { c->problem.axis = small_integer_of("axis", o); }
void set_out(Call* c, PyObject* o) { c->out.take_output("out", o); }
void set_num_threads(Call* c, PyObject* o) { c->num_threads = thread_count_of(o); }

// What None means for an option.
enum class None { kAbsent, kIsAnError };

// How an option is taken: by a function, or as an array that goes into this field of the problem.
struct Setter {
  void (*function)(Call*, PyObject*);
  View Call::* view = nullptr;
  gce_array gce_problem::* field = nullptr;
};
constexpr Setter array_option(View Call::* view, gce_array gce_problem::* field) {
  return {nullptr, view, field};
}

struct Option {
  const char* name;
  const char* default_text;
  None none;
  Setter set;
  unsigned takes;
  const char* type;
  const char* documentation;  // lines of the numpydoc entry
};

constexpr unsigned kLosses = kLossFunction | kLossAndGrad;

constexpr Option kOptions[] = {
    {"threshold", "0.0", None::kIsAnError, array_option(&Call::threshold, &gce_problem::threshold),
     kLosses, "float or array of float",
     "Threshold b on the gradient weight, 0 <= b <= 1: a scalar, or one per row (the shape of\n"
     "`targets`). b = 1 is cross-entropy for every `gamma`."},
    {"value",
     "\"primitive\"",
     None::kIsAnError,
     {set_value},
     kLosses,
     "{\"primitive\", \"surrogate\"}",
     "``\"primitive\"``: the antiderivative, so that finite differences of the loss give the\n"
     "gradient. ``\"surrogate\"``: ``w_b * -log(p)`` with ``w_b`` held constant, as in the paper.\n"
     "The gradient is the same."},
    {"weight", "None", None::kAbsent, array_option(&Call::weight, &gce_problem::weight), kLosses,
     "array of float, shape (V,), optional",
     "Class weights: a row's loss and gradient are multiplied by ``weight[target]``."},
    {"sample_weight", "None", None::kAbsent,
     array_option(&Call::sample_weight, &gce_problem::sample_weight), kLosses,
     "array of float, shape of `targets`, optional", "Multiplies each row's loss and gradient."},
    {"ignore_index",
     "-100",
     None::kAbsent,
     {set_ignore_index},
     kLosses | kRowStats,
     "int or None",
     "Rows with this target have loss 0 and gradient 0 and are not counted by the mean. None: no\n"
     "row is ignored."},
    {"label_smoothing",
     "0.0",
     None::kIsAnError,
     {set_label_smoothing},
     kLosses,
     "float",
     "eps, 0 <= eps <= 1: the part of each row's loss that is spread over all classes, which\n"
     "becomes ``(1 - eps) weight[target] L + (eps / V) sum(weight * -log(softmax(z)))``: TaiLr's\n"
     "form, and PyTorch's at gamma = 0. The mean's divisor stays the same."},
    {"z_loss",
     "0.0",
     None::kIsAnError,
     {set_z_loss},
     kLosses,
     "float",
     "lambda >= 0: adds ``lambda logsumexp(z)**2`` to each row's loss, so that logits do not\n"
     "drift. `sample_weight` multiplies it, class weights do not."},
    {"reduction",
     "\"mean\"",
     None::kIsAnError,
     {set_reduction},
     kLosses,
     "{\"mean\", \"sum\", \"none\"}",
     "What is made of the rows' losses. ``\"mean\"`` divides by the sum of the counted rows' "
     "weights\n"
     "(`weight` times `sample_weight`), or by `normalizer`."},
    {"normalizer",
     "None",
     None::kAbsent,
     {set_normalizer},
     kLosses,
     "float, optional",
     "The divisor of ``reduction=\"mean\"`` in place of the sum of weights; finite, > 0."},
    {"axis",
     "-1",
     None::kIsAnError,
     {set_axis},
     kLosses | kRowStats,
     "int",
     "The class axis of `logits`."},
    {"grad_output", "1.0", None::kIsAnError,
     array_option(&Call::grad_output, &gce_problem::grad_output), kLossAndGrad,
     "float or array of float",
     "Upstream gradient, multiplies the gradient: a scalar, or with ``reduction=\"none\"`` one "
     "per\n"
     "row."},
    {"out",
     "None",
     None::kAbsent,
     {set_out},
     kLossAndGrad,
     "numpy.ndarray, optional",
     "Receives the gradient and is returned: dtype and shape of `logits`. It may be `logits`\n"
     "itself (in place), but not overlap it or another argument otherwise."},
    {"num_threads",
     "None",
     None::kAbsent,
     {set_num_threads},
     kLosses | kRowStats,
     "int, optional",
     "Threads for this call at most; see `set_num_threads`. No result depends on it."},
};
constexpr size_t kOptionCount = std::size(kOptions);

PyObject* keywords_of_options[kOptionCount];
constexpr const char* kPositional[] = {"logits", "targets", "gamma"};
PyObject* keywords_of_positional[3];

int positional_count(Takes takes) { return takes == kRowStats ? 2 : 3; }

// The index of a keyword among n names that are interned. Nearly always it is interned too: pointers are compared
// first.
int index_of(PyObject* keyword, PyObject* const* names, int n) {
  for (int i = 0; i < n; ++i) {
    if (keyword == names[i]) return i;
  }
  for (int i = 0; i < n; ++i) {
    if (PyUnicode_Compare(keyword, names[i]) == 0) return i;
  }
  return -1;
}

void set_positional(Call* call, int i, PyObject* object) {
  if (i == 0) {
    call->logits.take("logits", object, Kind::kFloat);
  } else if (i == 1) {
    call->targets.take("targets", object, Kind::kInteger);
  } else {
    call->gamma.take("gamma", object, Kind::kReal);
  }
}

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

// Sets the option with this keyword; false if this function has none.
bool take_keyword(Call* call, Takes takes, PyObject* keyword, PyObject* object) {
  const int i = index_of(keyword, keywords_of_options, static_cast<int>(kOptionCount));
  if (i < 0 || (kOptions[i].takes & takes) == 0) return false;
  set_option(call, kOptions[i], object);
  return true;
}

int positional_named(Takes takes, PyObject* keyword) {
  return index_of(keyword, keywords_of_positional, positional_count(takes));
}

}  // namespace

int thread_count_of(PyObject* object) {
  const int64_t count = integer_of("num_threads", object);
  if (count >= 1) return static_cast<int>(count < INT_MAX ? count : INT_MAX);
  PyErr_Format(PyExc_ValueError, "num_threads = %S, expected at least 1", object);
  throw PythonError();
}

void prepare_keywords() {
  for (size_t i = 0; i < kOptionCount; ++i) {
    keywords_of_options[i] = PyUnicode_InternFromString(kOptions[i].name);
  }
  for (int i = 0; i < 3; ++i)
    keywords_of_positional[i] = PyUnicode_InternFromString(kPositional[i]);
}

void Call::parse(const char* function, Takes takes, PyObject* const* args, Py_ssize_t positional,
                 PyObject* keywords) {
  const int expected = positional_count(takes);
  if (positional > expected) {
    PyErr_Format(PyExc_TypeError, "%s() takes %d positional arguments but %zd were given", function,
                 expected, positional);
    throw PythonError();
  }
  problem.has_ignore_index = 1;
  problem.ignore_index = -100;
  PyObject* given[3] = {};
  for (Py_ssize_t i = 0; i < positional; ++i) given[i] = args[i];
  const Py_ssize_t count = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
  for (Py_ssize_t k = 0; k < count; ++k) {
    PyObject* keyword = PyTuple_GET_ITEM(keywords, k);
    PyObject* object = args[positional + k];
    if (take_keyword(this, takes, keyword, object)) continue;
    const int i = positional_named(takes, keyword);
    if (i < 0 || given[i] != nullptr) {
      PyErr_Format(PyExc_TypeError,
                   i < 0 ? "%s() got an unexpected keyword argument '%U'"
                         : "%s() got multiple values for argument '%U'",
                   function, keyword);
      throw PythonError();
    }
    given[i] = object;
  }
  for (int i = 0; i < expected; ++i) {
    if (given[i] == nullptr) {
      PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'", function,
                   kPositional[i]);
      throw PythonError();
    }
    set_positional(this, i, given[i]);
  }
}

void Call::look_at_inputs() {
  problem.logits = logits.look();
  problem.targets = targets.look();
  problem.gamma = gamma.look();
  for (const Option& option : kOptions) {
    if (option.set.view != nullptr) problem.*option.set.field = (this->*option.set.view).look();
  }
}

std::string signature_of(const char* function, Takes takes) {
  std::string text = std::string(function) + "(";
  for (int i = 0; i < positional_count(takes); ++i) text += std::string(kPositional[i]) + ", ";
  text += "*";
  for (const Option& option : kOptions) {
    if ((option.takes & takes) != 0) {
      text += std::string(", ") + option.name + "=" + option.default_text;
    }
  }
  return text + ")";
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

}  // namespace gce_python
