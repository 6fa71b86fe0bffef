// The C ABI for other compiled modules: what Cython finds a module's functions by.
#ifndef GCE_PYTHON_CAPSULES_H_
#define GCE_PYTHON_CAPSULES_H_

#include <pybind11/pybind11.h>

namespace gce_python {

// __pyx_capi__: the name of each function of gce.h to a capsule with its address, whose name is its type as Cython
// spells it. Cython compares that name, so that a caller of another type is refused at its import.
pybind11::dict capsules();

}  // namespace gce_python

#endif  // GCE_PYTHON_CAPSULES_H_
