// The core's statuses as Python exceptions.
#ifndef GCE_PYTHON_ERRORS_H_
#define GCE_PYTHON_ERRORS_H_

#include "gce/gce.h"

namespace gce_python {

// Sets the exception of a status that is not GCE_OK, with the core's own message.
void set_error(gce_status status);

// Sets the exception and throws PythonError, unless status is GCE_OK.
void throw_if(gce_status status);

}  // namespace gce_python

#endif  // GCE_PYTHON_ERRORS_H_
