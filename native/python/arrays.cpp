#include "arrays.h"

#include <atomic>
#include <cmath>
#include <cstring>

namespace gce_python {
namespace {

// ml_dtypes.bfloat16 registers itself with numpy under a type number of its own.
bool is_bfloat16(const PyArray_Descr* descr) {
  static std::atomic<int> known_typenum{-1};
  if (descr->type_num < NPY_USERDEF)
    return false;  // also those that have none, of numpy's newer kind
  if (descr->type_num == known_typenum) return true;
  const char* name = std::strrchr(descr->typeobj->tp_name, '.');
  name = name == nullptr ? descr->typeobj->tp_name : name + 1;
  if (std::strcmp(name, "bfloat16") != 0) return false;
  known_typenum = descr->type_num;
  return true;
}

int32_t integer_dtype(npy_intp size, bool is_signed) {
  switch (size) {
    case 1:
      return is_signed ? GCE_INT8 : GCE_UINT8;
    case 2:
      return is_signed ? GCE_INT16 : GCE_UINT16;
    case 4:
      return is_signed ? GCE_INT32 : GCE_UINT32;
    default:
      return is_signed ? GCE_INT64 : GCE_UINT64;
  }
}

// The core's name for an array's dtype; -1 if it has none.
int32_t dtype_of(PyArrayObject* array) {
  const int typenum = PyArray_TYPE(array);
  if (!PyArray_ISNOTSWAPPED(array)) return -1;
  if (typenum == NPY_FLOAT) return GCE_FLOAT32;
  if (typenum == NPY_DOUBLE) return GCE_FLOAT64;
  // It is no other type where the system's compiler has none, as on Windows and on Apple's own CPUs.
  if (typenum == NPY_LONGDOUBLE && PyArray_ITEMSIZE(array) == sizeof(double)) return GCE_FLOAT64;
  if (typenum == NPY_HALF) return GCE_FLOAT16;
  if (PyTypeNum_ISINTEGER(typenum)) {
    return integer_dtype(PyArray_ITEMSIZE(array), PyTypeNum_ISSIGNED(typenum));
  }
  return is_bfloat16(PyArray_DESCR(array)) ? GCE_BFLOAT16 : -1;
}

const char* expectation(Kind kind) {
  return kind == Kind::kTargets ? "an integer dtype, or a float dtype for probabilities"
                                : "float16, bfloat16, float32 or float64";
}

[[noreturn]] void fail_dtype(const char* name, PyArrayObject* array, const char* expected) {
  PyErr_Format(PyExc_TypeError, "%s has dtype %S, expected %s", name,
               reinterpret_cast<PyObject*>(PyArray_DESCR(array)), expected);
  throw PythonError();
}

bool is_convertible_to_float64(PyArrayObject* array) {
  const int typenum = PyArray_TYPE(array);
  return PyTypeNum_ISINTEGER(typenum) || PyTypeNum_ISBOOL(typenum) || PyTypeNum_ISFLOAT(typenum);
}

// Puts the argument's name before the message of numpy or of an object's own __array__.
[[noreturn]] void fail_conversion(const char* name) {
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  const bool plain =
      type == PyExc_TypeError || type == PyExc_ValueError || type == PyExc_RuntimeError;
  if (plain) {
    PyErr_Format(type, "%s is no array: %S", name, value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
  } else {
    PyErr_Restore(type, value, traceback);
  }
  throw PythonError();
}

Ref checked(PyObject* object) {
  if (object == nullptr) throw PythonError();
  return Ref(object);
}

}  // namespace

void View::take(const char* name, PyObject* object, Kind kind) {
  name_ = name;
  if (kind == Kind::kReal && (PyFloat_CheckExact(object) || PyLong_CheckExact(object))) {
    number_ = number_of(name, object);
    is_number_ = true;
    return;
  }
  owner_ = Ref(PyArray_Check(object) ? Py_NewRef(object) : PyArray_FROM_O(object));
  if (owner_.get() == nullptr) fail_conversion(name);
  const int32_t dtype = dtype_of(array());
  const bool is_float = dtype >= 0 && dtype <= GCE_FLOAT64;
  if (kind == Kind::kReal && !is_float && is_convertible_to_float64(array())) {
    owner_ = checked(PyArray_FROM_OTF(owner_.get(), NPY_DOUBLE, NPY_ARRAY_FORCECAST));
  } else if (dtype < 0) {
    fail_dtype(name, array(), expectation(kind));
  }
}

void View::take_output(const char* name, PyObject* object) {
  if (!PyArray_Check(object)) {
    PyErr_Format(PyExc_TypeError, "%s has type %s, expected numpy.ndarray", name,
                 Py_TYPE(object)->tp_name);
    throw PythonError();
  }
  name_ = name;
  owner_ = Ref(Py_NewRef(object));
  if (dtype_of(array()) < 0) fail_dtype(name, array(), "the dtype of logits");
}

gce_array View::look() {
  if (is_number_) return {&number_, nullptr, nullptr, 0, GCE_FLOAT64, 0};
  if (owner_.get() == nullptr) return {};
  const int32_t dtype = dtype_of(array());
  if (dtype < 0) fail_dtype(name_, array(), "the dtype that it had");
  const int ndim = PyArray_NDIM(array());
  for (int d = 0; d < ndim; ++d) {
    shape_[d] = PyArray_DIM(array(), d);
    strides_[d] = PyArray_STRIDE(array(), d);
  }
  return {PyArray_DATA(array()), shape_, strides_, ndim, dtype, !PyArray_ISWRITEABLE(array())};
}

double number_of(const char* name, PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  if (value != -1.0 || PyErr_Occurred() == nullptr) return value;
  if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
    PyErr_Clear();
    const Ref zero(PyLong_FromLong(0));
    const int is_negative = PyObject_RichCompareBool(object, zero.get(), Py_LT);
    if (is_negative < 0) throw PythonError();
    return is_negative == 1 ? -HUGE_VAL : HUGE_VAL;
  }
  // Any other error of the object's own __float__ stays what it is: it may be a KeyboardInterrupt.
  const bool is_no_number =
      PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError);
  if (!is_no_number) throw PythonError();
  PyErr_Format(PyExc_TypeError, "%s has type %s, expected float", name, Py_TYPE(object)->tp_name);
  throw PythonError();
}

Ref new_like(PyArrayObject* like) {
  return checked(PyArray_NewLikeArray(like, NPY_KEEPORDER, nullptr, 0));
}

Ref new_rows(const gce_array& like, int typenum, int fields) {
  npy_intp shape[GCE_MAX_NDIM + 1];
  for (int32_t d = 0; d < like.ndim; ++d) shape[d] = like.shape[d];
  shape[like.ndim] = fields;
  return checked(PyArray_SimpleNew(like.ndim + (fields > 0 ? 1 : 0), shape, typenum));
}

Ref new_number(int typenum, void* value) {
  PyArray_Descr* const dtype = PyArray_DescrFromType(typenum);
  Ref number(PyArray_Scalar(value, dtype, nullptr));
  Py_DECREF(dtype);
  return checked(number.release());
}

int loss_typenum(const gce_array& logits) {
  return logits.dtype == GCE_FLOAT64 ? NPY_DOUBLE : NPY_FLOAT;
}

}  // namespace gce_python
