// From Python objects to gce_array views, and back to numpy results. Representation only (is it an array,
// has it a dtype that the core knows): what the numbers mean is the core's to check.
#ifndef GCE_PYTHON_ARRAYS_H_
#define GCE_PYTHON_ARRAYS_H_

#include "numpy_api.h"

#include <utility>

#include "gce/gce.h"
#include "gil.h"

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
  ~Ref() {
    if (object_ != nullptr) drop(object_);
  }

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
  kTargets,  // any integer dtype, or kFloat
  kReal      // kFloat; integers, bool and longdouble are converted to float64
};

// An argument. Taking it may run Python code (__array__), which may change arrays taken before: so every
// argument is taken first, and only then looked at. What was seen is copied, as Python code on another
// thread may go on changing the array's shape.
class View {
 public:
  View() = default;
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  // Makes an array of the object if it is none.
  void take(const char* name, PyObject* object, Kind kind);
  // The output that a caller brought.
  void take_output(const char* name, PyObject* object);
  // An array of the module's own.
  void take_new(Ref array) { owner_ = std::move(array); }

  bool is_given() const { return owner_.get() != nullptr || is_number_; }
  PyArrayObject* array() const { return owner_.array(); }
  PyObject* object() const { return owner_.get(); }
  // As the core sees it; absent if nothing was taken. It lasts as long as the View.
  gce_array look();

 private:
  const char* name_ = "";
  Ref owner_;
  double number_ = 0.0;  // a Python number, which needs no array
  bool is_number_ = false;
  int64_t shape_[GCE_MAX_NDIM];
  int64_t strides_[GCE_MAX_NDIM];
};

// The value of a Python number; infinite where it is an int that no float can hold. Throws PythonError,
// with a message that names the argument, for anything else.
double number_of(const char* name, PyObject* object);

// New outputs: of the shape, dtype and memory order of an array; of the shape of one, with several numbers for each
// element if `fields` says so; a numpy number.
Ref new_like(PyArrayObject* like);
Ref new_rows(const gce_array& like, int typenum, int fields = 0);
Ref new_number(int typenum, void* value);

// The numpy type number of a loss for these logits.
int loss_typenum(const gce_array& logits);

}  // namespace gce_python

#endif  // GCE_PYTHON_ARRAYS_H_
