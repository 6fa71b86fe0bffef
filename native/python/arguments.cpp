#include "arguments.h"

#include <iterator>
#include <vector>

#include "errors.h"

namespace gce_python {
namespace {

// The arguments without a default, in order.
struct Positional {
  const char* name;
  View Call::* view;
  Kind kind;
  unsigned takes;
};
constexpr Positional kPositional[] = {
    {"logits", &Call::logits, Kind::kFloat, ~0U},
    {"targets", &Call::targets, Kind::kTargets, ~kBinaryLosses},
    {"targets", &Call::targets, Kind::kReal, kBinaryLosses},
    {"vector", &Call::vector, Kind::kReal, kHvp},
    {"gamma", &Call::gamma, Kind::kReal, ~0U & ~(kRowStats | kPartialStats)},
    {"stats", &Call::stats, Kind::kReal, kShardedLoss},
};
constexpr int kMostPositional = std::size(kPositional);

std::vector<PyObject*> keywords_of_options;
PyObject* keywords_of_positional[kMostPositional];

// The index of a keyword among those of n names that are wanted. The names are interned, and nearly always the keyword is
// too: pointers are compared first.
template <class IsWanted>
int index_of(PyObject* keyword, PyObject* const* names, int n, IsWanted is_wanted) {
  for (int i = 0; i < n; ++i) {
    if (keyword == names[i] && is_wanted(i)) return i;
  }
  for (int i = 0; i < n; ++i) {
    if (is_wanted(i) && PyUnicode_Compare(keyword, names[i]) == 0) return i;
  }
  return -1;
}

// Sets the option with this keyword; false if this function has none.
bool take_keyword(Call* call, Takes takes, PyObject* keyword, PyObject* object) {
  const OptionTable table = options();
  const int i = index_of(keyword, keywords_of_options.data(), static_cast<int>(table.size),
                         [&](int option) { return (table[option].takes & takes) != 0; });
  if (i < 0) return false;
  set_option(call, table[i], object);
  return true;
}

PyObject* interned(const char* name) {
  PyObject* text = PyUnicode_InternFromString(name);
  if (text == nullptr) throw PythonError();
  return text;
}

}  // namespace

void prepare_keywords() {
  for (const Option& option : options()) keywords_of_options.push_back(interned(option.name));
  for (int i = 0; i < kMostPositional; ++i) {
    keywords_of_positional[i] = interned(kPositional[i].name);
  }
}

void Call::parse(const char* function, Takes takes, PyObject* const* args, Py_ssize_t positional,
                 PyObject* keywords) {
  problem.has_ignore_index = 1;
  problem.ignore_index = -100;
  PyObject* given[kMostPositional] = {};
  Py_ssize_t expected = 0;
  for (int i = 0; i < kMostPositional; ++i) {
    if ((kPositional[i].takes & takes) == 0) continue;
    if (expected < positional) given[i] = args[expected];
    ++expected;
  }
  if (positional > expected) {
    PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments but %zd were given",
                 function, expected, positional);
    throw PythonError();
  }
  const Py_ssize_t count = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
  for (Py_ssize_t k = 0; k < count; ++k) {
    PyObject* keyword = PyTuple_GET_ITEM(keywords, k);
    PyObject* object = args[positional + k];
    if (take_keyword(this, takes, keyword, object)) continue;
    const int i = index_of(keyword, keywords_of_positional, kMostPositional, [takes](int argument) {
      return (kPositional[argument].takes & takes) != 0;
    });
    const bool is_taken = i >= 0;
    if (!is_taken || given[i] != nullptr) {
      PyErr_Format(PyExc_TypeError,
                   is_taken ? "%s() got multiple values for argument '%U'"
                            : "%s() got an unexpected keyword argument '%U'",
                   function, keyword);
      throw PythonError();
    }
    given[i] = object;
  }
  for (int i = 0; i < kMostPositional; ++i) {
    const Positional& argument = kPositional[i];
    if ((argument.takes & takes) == 0) continue;
    if (given[i] == nullptr) {
      PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'", function, argument.name);
      throw PythonError();
    }
    (this->*argument.view).take(argument.name, given[i], argument.kind);
  }
}

void Call::look_at_inputs() {
  problem.logits = logits.look();
  problem.targets = targets.look();
  problem.vector = vector.look();
  problem.shard_stats = stats.look();
  problem.gamma = gamma.look();
  for (const Option& option : options()) {
    if (option.set.field != nullptr) problem.*option.set.field = (this->*option.set.view).look();
  }
}

gce_binary_problem Call::look_at_binary_inputs() {
  look_at_inputs();
  gce_binary_problem binary;
  gce_binary_problem_init(&binary);
  binary.logits = problem.logits;
  binary.targets = problem.targets;
  binary.gamma = problem.gamma;
  binary.threshold = problem.threshold;
  binary.weight = problem.weight;
  binary.pos_weight = pos_weight.look();
  binary.grad_output = problem.grad_output;
  binary.normalizer = problem.normalizer;
  binary.has_normalizer = problem.has_normalizer;
  binary.label_smoothing = problem.label_smoothing;
  binary.reduction = problem.reduction;
  binary.value = problem.value;
  return binary;
}

gce_array Call::rows() {
  if (problem.targets.dtype > GCE_FLOAT64) return problem.targets;
  // Probabilities. An axis that is none is for the core to refuse.
  const int32_t ndim = problem.logits.ndim;
  const int32_t axis = problem.axis < 0 ? problem.axis + ndim : problem.axis;
  int32_t kept = 0;
  for (int32_t d = 0; d < ndim; ++d) {
    if (d != axis) rows_shape_[kept++] = problem.logits.shape[d];
  }
  return {nullptr, rows_shape_, nullptr, kept, 0, 0};
}

std::string signature_of(const char* function, Takes takes) {
  std::string text = std::string(function) + "(";
  for (const Positional& argument : kPositional) {
    if ((argument.takes & takes) != 0) text += std::string(argument.name) + ", ";
  }
  text += "*";
  for (const Option& option : options()) {
    if ((option.takes & takes) != 0) {
      text += std::string(", ") + option.name + "=" + option.default_text;
    }
  }
  return text + ")";
}

}  // namespace gce_python
