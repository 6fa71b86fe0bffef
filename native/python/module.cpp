// The extension module gce._native: a list of registrations.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#define GCE_IMPORTS_NUMPY
#include "numpy_api.h"

#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "capsules.h"
#include "errors.h"
#include "functions.h"
#include "gce/gce.h"
#include "limits.h"
#include "options.h"
#include "threads.h"
#include "ufuncs.h"

namespace py = pybind11;

namespace {

// Runs an action that reports errors by PythonError.
template <class Action>
auto translated(Action action) {
  try {
    return action();
  } catch (const gce_python::PythonError&) {
    throw py::error_already_set();
  }
}

void import_numpy() {
  if (_import_array() < 0 || _import_umath() < 0) throw py::error_already_set();
}

void set_num_threads(py::handle num_threads) {
  translated([&] { gce_python::set_num_threads(gce_python::thread_count_of(num_threads.ptr())); });
}

std::string isa_in_use() {
  const char* name = nullptr;
  translated([&] { gce_python::throw_if(gce_isa_in_use(&name)); });
  return name;
}

void select_isa(const std::optional<std::string>& name) {
  translated([&] { gce_python::throw_if(gce_isa_select(name ? name->c_str() : nullptr)); });
}

std::vector<std::string> isas(bool only_supported) {
  std::vector<std::string> names;
  int32_t supported = 0;
  for (int32_t i = 0;; ++i) {
    const char* name = gce_isa_name(i, &supported);
    if (name == nullptr) return names;
    if (supported || !only_supported) names.emplace_back(name);
  }
}

// The module's state is the process's own: interned keywords, types, numpy's functions. Another interpreter would put its own
// objects there, and end them.
constexpr char kRefusal[] = "gce does not support sub-interpreters: import it in the main one";

bool is_main_interpreter() { return PyInterpreterState_Get() == PyInterpreterState_Main(); }

}  // namespace

PYBIND11_MODULE(_native_body, m, py::mod_gil_not_used()) {
  if (!is_main_interpreter()) throw py::import_error(kRefusal);
  m.doc() = "The C++ core of gce; its public names are in the package gce.";
  import_numpy();
  gce_last_error();  // what the core keeps per thread is allocated now: where that fails, glibc ends the process
  translated([&] {
    gce_python::add_functions(m.ptr());
    gce_python::add_ufuncs(m.ptr());
  });

  m.def(
      "get_num_threads", &gce_python::num_threads,
      "Threads that a call may use.\n\n"
      "The value of `set_num_threads`, else of the environment variable GCE_NUM_THREADS, else of\n"
      "OMP_NUM_THREADS, else the number of CPUs that the process may use.\n\n"
      "Returns\n-------\nint\n\nRaises\n------\nValueError\n"
      "    GCE_NUM_THREADS is set to something else than an integer >= 1.\n\n"
      "Examples\n--------\n>>> import gce\n>>> gce.get_num_threads() >= 1\nTrue\n");
  m.def(
      "set_num_threads", &set_num_threads, py::arg("num_threads"),
      "Set how many threads a call may use from now on, in this process.\n\n"
      "No result depends on it, not in one bit. Small calls stay on the caller's thread anyway.\n\n"
      "Parameters\n----------\nnum_threads : int\n    At least 1.\n\n"
      "Raises\n------\nValueError\n    `num_threads` is below 1.\n\n"
      "Examples\n--------\n>>> import gce\n>>> before = gce.get_num_threads()\n"
      ">>> gce.set_num_threads(2)\n>>> gce.get_num_threads()\n2\n"
      ">>> gce.set_num_threads(before)\n");

  m.def("options", &gce_python::option_summaries,
        "Name, default, type, meaning and functions of each option (the README's table).");
  m.def("isa_name", &isa_in_use, "Name of the instruction set in use.");
  m.def("available_isas", [] { return isas(true); }, "Compiled in and on this CPU, best first.");
  m.def("compiled_isas", [] { return isas(false); }, "Compiled in, best first.");
  m.def("select_isa", &select_isa, py::arg("name").none(true),
        "Switch the instruction set (tests, benchmarks); None: the default choice.");
  m.def("limit_read", &gce_python::limit_read, py::arg("array"), py::arg("num_threads") = 1,
        py::arg("cached") = false,
        "The largest float32 of an array, by a streaming read (benchmarks).");
  m.def("limit_copy", &gce_python::limit_copy, py::arg("out"), py::arg("array"),
        py::arg("num_threads") = 1, py::arg("cached") = false,
        "out[...] = array, with non-temporal stores unless `cached` (benchmarks).");
  m.def("limit_scale", &gce_python::limit_scale, py::arg("array"), py::arg("factor"),
        py::arg("num_threads") = 1, "array *= factor (benchmarks).");
  m.attr("compiler") = py::str(
#if defined(__clang__)
      "clang " __clang_version__
#else
      "gcc " __VERSION__
#endif
  );
  m.attr("__pyx_capi__") = gce_python::capsules();
  m.attr("__version__") = GCE_VERSION;
}

// Asked before pybind11, which waits for the main interpreter's GIL; Python 3.13 runs this in the main one.
// NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming): Python's name for it
extern "C" PYBIND11_EXPORT PyObject* PyInit__native() {
  if (is_main_interpreter()) return PyInit__native_body();
  PyErr_SetString(PyExc_ImportError, kRefusal);
  return nullptr;
}
