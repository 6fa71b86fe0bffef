// loss, loss_and_grad and row_stats as Python functions.
#ifndef GCE_PYTHON_FUNCTIONS_H_
#define GCE_PYTHON_FUNCTIONS_H_

#include "numpy_api.h"

namespace gce_python {

// Adds the functions to the module. Throws PythonError.
void add_functions(PyObject* module);

}  // namespace gce_python

#endif  // GCE_PYTHON_FUNCTIONS_H_
