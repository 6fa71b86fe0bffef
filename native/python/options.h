// The options of the public functions: one table gives each its keyword, default, documentation and effect.
// Signatures and docstrings are made from it; adding an option to the Python face is adding one row, and for an
// array option the View of Call (arguments.h) that holds it.
#ifndef GCE_PYTHON_OPTIONS_H_
#define GCE_PYTHON_OPTIONS_H_

#include <string>
#include <tuple>
#include <vector>

#include "arrays.h"

namespace gce_python {

struct Call;

// Which functions take an option: a set of bits.
enum Takes : unsigned {
  kLossFunction = 1,
  kLossAndGrad = 2,
  kRowStats = 4,
  kLossGammaGrad = 8,
  kHvp = 16,
  kBinaryLoss = 32,
  kBinaryLossAndGrad = 64,
  kPartialStats = 1024,
  kShardedLoss = 2048
};
constexpr unsigned kLosses = kLossFunction | kLossAndGrad;
constexpr unsigned kOfLosses = kLosses | kLossGammaGrad | kHvp;  // and of their derivatives
constexpr unsigned kShards = kPartialStats | kShardedLoss;
constexpr unsigned kBinaryLosses = kBinaryLoss | kBinaryLossAndGrad;

// What None means for an option.
enum class None { kAbsent, kIsAnError };

// How an option is taken: by a function, or as an array that goes into this field of the problem.
struct Setter {
  void (*function)(Call*, PyObject*);
  View Call::* view = nullptr;
  gce_array gce_problem::* field = nullptr;  // unless it is of the binary form alone
};

struct Option {
  const char* name;
  const char* default_text;
  None none;
  Setter set;
  unsigned takes;
  const char* type;
  const char* documentation;  // lines of the numpydoc entry
  const char* summary;        // in Markdown: the README's table (native/tools/options_table.py)
};

// The table.
struct OptionTable {
  const Option* first;
  size_t size;

  const Option* begin() const { return first; }
  const Option* end() const { return first + size; }
  const Option& operator[](size_t i) const { return first[i]; }
};
OptionTable options();

// Puts the value of a keyword into the call. Throws PythonError.
void set_option(Call* call, const Option& option, PyObject* object);

// The value of a num_threads argument. Throws PythonError.
int thread_count_of(PyObject* object);

// The section of a docstring in numpydoc.
std::string parameters_of(Takes takes);

// Of each option: name, default, type, meaning in one line of Markdown, and the functions that take it.
using OptionSummary =
    std::tuple<std::string, std::string, std::string, std::string, std::vector<std::string>>;
std::vector<OptionSummary> option_summaries();

}  // namespace gce_python

#endif  // GCE_PYTHON_OPTIONS_H_
