// The elementwise functions as numpy ufuncs.
#ifndef GCE_PYTHON_UFUNCS_H_
#define GCE_PYTHON_UFUNCS_H_

#include "numpy_api.h"

namespace gce_python {

// Adds loss_from_log_prob, grad_weight and gamma_grad to the module. Throws PythonError.
void add_ufuncs(PyObject* module);

}  // namespace gce_python

#endif  // GCE_PYTHON_UFUNCS_H_
