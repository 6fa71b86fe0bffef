#include "capsules.h"

#include "gce/gce.h"

namespace py = pybind11;

namespace gce_python {

py::dict capsules() {
  py::dict functions;
#define CAPSULE(function, type) \
  functions[#function] = py::capsule(reinterpret_cast<void*>(&(function)), type);
#include "capsules.inc.h"
#undef CAPSULE
  return functions;
}

}  // namespace gce_python
