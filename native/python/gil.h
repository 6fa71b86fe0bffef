// Threads that Python ends in the middle of a call: daemon threads, when the interpreter ends.
//
// Up to Python 3.13 one that asks for the GIL then, in a call or in Python code that the call runs, is ended by pthread_exit,
// which glibc makes an exception of: destructors run, without the GIL. From 3.14 on it sleeps for ever.
#ifndef GCE_PYTHON_GIL_H_
#define GCE_PYTHON_GIL_H_

#include "numpy_api.h"

namespace gce_python {

// PyEval_RestoreThread, where a thread that is to be ended sleeps instead.
void take_gil(PyThreadState* state) noexcept;

// Drops a reference, unless the thread that holds it is ending.
void drop(PyObject* object) noexcept;

}  // namespace gce_python

#endif  // GCE_PYTHON_GIL_H_
