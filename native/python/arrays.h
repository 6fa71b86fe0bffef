// From Python objects to gce_array views, and back to numpy results. Representation only (is it an array,
// has it a dtype that the core knows): what the numbers mean is the core's to check.
#ifndef GCE_PYTHON_ARRAYS_H_
#define GCE_PYTHON_ARRAYS_H_

#include "numpy_api.h"

#include "gce/gce.h"

namespace gce_python {

// Thrown when a Python exception is set.
struct PythonError {};

// Owns one reference.
class Ref {
 public:
  Ref() = default;
  explicit Ref(PyObject* object) : object_(object) {}
  Ref(Ref&& other) noexcept : object_(other.release()) {}
  Ref& operator=(Ref&& other) noexcept {
    Py_XSETREF(object_, other.release());
    return *this;
  }
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  PyArrayObject* array() const { return reinterpret_cast<PyArrayObject*>(object_); }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_ = nullptr;
};

// What an argument takes.
enum class Kind {
  kFloat,    // float16, bfloat16, float32, float64
  kInteger,  // any integer dtype
  kReal      // kFloat; integers, bool and longdouble are converted to float64
};

// An argument as the core sees it, and what keeps it alive.
struct View {
  gce_array array = {};
  Ref owner;
  double scalar = 0.0;  // what array.data points to for a Python number

  View() = default;
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  void set(const char* name, PyObject* object, Kind kind);
  // The output that a caller brought.
  void set_output(const char* name, PyObject* object);
};

// The value of a Python number; infinite where it is an int that no float can hold. Throws PythonError,
// with a message that names the argument, for anything else.
double number_of(const char* name, PyObject* object);

// New outputs. The first has the shape, dtype and memory order of `like`; the second the shape of `like`.
Ref new_like(PyArrayObject* like);
Ref new_rows(PyArrayObject* like, int typenum);
void view_output(PyArrayObject* array, View* view);

// The numpy type number of a loss for these logits.
int loss_typenum(const gce_array& logits);

}  // namespace gce_python

#endif  // GCE_PYTHON_ARRAYS_H_
