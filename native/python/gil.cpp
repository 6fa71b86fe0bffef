#include "gil.h"

#include <chrono>
#include <thread>

namespace gce_python {
namespace {

bool is_ended() {
#if PY_VERSION_HEX >= 0x030E0000
  return false;
#elif PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() && !PyGILState_Check();
#else
  return _Py_IsFinalizing() && !PyGILState_Check();
#endif
}

// Runs what may ask for the GIL.
template <class Action>
void or_sleep(Action action) noexcept {
  try {
    action();
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

}  // namespace

void take_gil(PyThreadState* state) noexcept {
  or_sleep([state] { PyEval_RestoreThread(state); });
}

void drop(PyObject* object) noexcept {
  // The last reference to an object may run Python code.
  if (!is_ended()) or_sleep([object] { Py_DECREF(object); });
}

}  // namespace gce_python
