// The options of the public functions: one table gives each its keyword, default, documentation and effect.
// Signatures and docstrings are made from it; adding an option to the Python face is adding one row, and for an
// array option the View that holds it.
#ifndef GCE_PYTHON_ARGUMENTS_H_
#define GCE_PYTHON_ARGUMENTS_H_

#include <string>
#include <tuple>
#include <vector>

#include "arrays.h"

namespace gce_python {

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

// One call: the problem for the core and the arrays that it points to.
struct Call {
  gce_problem problem;
  View logits, targets, vector, gamma, stats;
  View threshold, weight, sample_weight, pos_weight, grad_output;  // one for each array option
  View out;
  int num_threads = 0;  // 0: the process setting
  bool return_stats = false;

  Call() { gce_problem_init(&problem); }
  // Takes the vectorcall arguments of one function. Throws PythonError.
  void parse(const char* function, Takes takes, PyObject* const* args, Py_ssize_t positional,
             PyObject* keywords);
  // Puts the arrays into the problem; after the last Python code that parsing may run.
  void look_at_inputs();
  // The same of the binary form: its inputs and options, without outputs.
  gce_binary_problem look_at_binary_inputs();
  // What has one number per row is of this shape: an array without data.
  gce_array rows();

 private:
  int64_t rows_shape_[GCE_MAX_NDIM];
};

// The value of a num_threads argument. Throws PythonError.
int thread_count_of(PyObject* object);

// "loss(logits, targets, gamma, *, threshold=0.0, ...)" for inspect.signature, and the numpydoc section.
std::string signature_of(const char* function, Takes takes);
std::string parameters_of(Takes takes);

// Of each option: name, default, type, meaning in one line of Markdown, and the functions that take it.
using OptionSummary =
    std::tuple<std::string, std::string, std::string, std::string, std::vector<std::string>>;
std::vector<OptionSummary> option_summaries();

// Interns the keywords; once, at import.
void prepare_keywords();

}  // namespace gce_python

#endif  // GCE_PYTHON_ARGUMENTS_H_
