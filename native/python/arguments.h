// The parsing of calls: arguments in vectorcall's form to a problem for the core.
#ifndef GCE_PYTHON_ARGUMENTS_H_
#define GCE_PYTHON_ARGUMENTS_H_

#include <string>

#include "arrays.h"
#include "options.h"

namespace gce_python {

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

// "loss(logits, targets, gamma, *, threshold=0.0, ...)" for inspect.signature.
std::string signature_of(const char* function, Takes takes);

// Interns the keywords; once, at import.
void prepare_keywords();

}  // namespace gce_python

#endif  // GCE_PYTHON_ARGUMENTS_H_
