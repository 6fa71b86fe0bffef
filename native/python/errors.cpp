#include "errors.h"

#include "arrays.h"

namespace gce_python {

void set_error(gce_status status) {
  PyObject* type = PyExc_RuntimeError;
  if (status == GCE_TYPE_ERROR) type = PyExc_TypeError;
  if (status == GCE_VALUE_ERROR) type = PyExc_ValueError;
  if (status == GCE_INDEX_ERROR) type = PyExc_IndexError;
  if (status == GCE_OUT_OF_MEMORY) {
    PyErr_NoMemory();
  } else {
    PyErr_SetString(type, gce_last_error());
  }
}

void throw_if(gce_status status) {
  if (status == GCE_OK) return;
  set_error(status);
  throw PythonError();
}

}  // namespace gce_python
