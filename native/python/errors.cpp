#include "errors.h"

#include "arrays.h"

namespace gce_python {

void throw_if(gce_status status) {
  switch (status) {
    case GCE_OK:
      return;
    case GCE_TYPE_ERROR:
      PyErr_SetString(PyExc_TypeError, gce_last_error());
      break;
    case GCE_VALUE_ERROR:
      PyErr_SetString(PyExc_ValueError, gce_last_error());
      break;
    case GCE_INDEX_ERROR:
      PyErr_SetString(PyExc_IndexError, gce_last_error());
      break;
    case GCE_OUT_OF_MEMORY:
      PyErr_NoMemory();
      break;
    case GCE_RUNTIME_ERROR:
      PyErr_SetString(PyExc_RuntimeError, gce_last_error());
      break;
  }
  throw PythonError();
}

}  // namespace gce_python
