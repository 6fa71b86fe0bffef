// The benchmarks' passes at the limit of the machine, on the module's threads: see gce/limits.h.
#ifndef GCE_PYTHON_LIMITS_H_
#define GCE_PYTHON_LIMITS_H_

#include <pybind11/pybind11.h>

namespace gce_python {

// Arrays are contiguous float32 of any shape; each thread takes pieces until none is left.
// `cached`: as is best for arrays that are in the caches.
float limit_read(pybind11::handle array, int num_threads, bool cached);
void limit_copy(pybind11::handle out, pybind11::handle array, int num_threads, bool cached);
void limit_scale(pybind11::handle array, float factor, int num_threads);

}  // namespace gce_python

#endif  // GCE_PYTHON_LIMITS_H_
