#include "arrays.h"

#include <cmath>
#include <cstring>

namespace gce_python {
namespace {

static_assert(sizeof(npy_intp) == sizeof(int64_t), "numpy's shapes are passed on as they are");

// ml_dtypes.bfloat16 registers itself with numpy under a type number of its own.
bool is_bfloat16(const PyArray_Descr* descr) {
  static int known_typenum = -1;
  if (descr->type_num == known_typenum) return true;
  if (descr->type_num < NPY_USERDEF) return false;
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
  if (typenum == NPY_HALF) return GCE_FLOAT16;
  if (PyTypeNum_ISINTEGER(typenum)) {
    return integer_dtype(PyArray_ITEMSIZE(array), PyTypeNum_ISSIGNED(typenum));
  }
  return is_bfloat16(PyArray_DESCR(array)) ? GCE_BFLOAT16 : -1;
}

[[noreturn]] void fail_dtype(const char* name, PyArrayObject* array, const char* expected) {
  PyErr_Format(PyExc_TypeError, "%s has dtype %S, expected %s", name,
               reinterpret_cast<PyObject*>(PyArray_DESCR(array)), expected);
  throw PythonError();
}

const char* expectation(Kind kind) {
  return kind == Kind::kInteger ? "an integer dtype" : "float16, bfloat16, float32 or float64";
}

bool is_convertible_to_float64(PyArrayObject* array) {
  const int typenum = PyArray_TYPE(array);
  return PyTypeNum_ISINTEGER(typenum) || PyTypeNum_ISBOOL(typenum) || PyTypeNum_ISFLOAT(typenum);
}

void fill(PyArrayObject* array, int32_t dtype, gce_array* out) {
  out->data = PyArray_DATA(array);
  out->shape = reinterpret_cast<const int64_t*>(PyArray_DIMS(array));
  out->strides = reinterpret_cast<const int64_t*>(PyArray_STRIDES(array));
  out->ndim = PyArray_NDIM(array);
  out->dtype = dtype;
  out->readonly = !PyArray_ISWRITEABLE(array);
}

Ref checked(PyObject* object) {
  if (object == nullptr) throw PythonError();
  return Ref(object);
}

}  // namespace

void View::set(const char* name, PyObject* object, Kind kind) {
  if (kind == Kind::kReal && (PyFloat_CheckExact(object) || PyLong_CheckExact(object))) {
    scalar = number_of(name, object);
    array = {&scalar, nullptr, nullptr, 0, GCE_FLOAT64, 0};
    return;
  }
  owner = PyArray_Check(object) ? Ref(Py_NewRef(object)) : checked(PyArray_FROM_O(object));
  const int32_t dtype = dtype_of(owner.array());
  const bool is_float = dtype >= 0 && dtype <= GCE_FLOAT64;
  if (kind == Kind::kReal && !is_float && is_convertible_to_float64(owner.array())) {
    owner = checked(PyArray_FROM_OTF(owner.get(), NPY_DOUBLE, NPY_ARRAY_FORCECAST));
    fill(owner.array(), GCE_FLOAT64, &array);
    return;
  }
  if (dtype < 0) fail_dtype(name, owner.array(), expectation(kind));
  fill(owner.array(), dtype, &array);
}

double number_of(const char* name, PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  if (value != -1.0 || PyErr_Occurred() == nullptr) return value;
  if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
    PyErr_Clear();
    return HUGE_VAL;
  }
  PyErr_Format(PyExc_TypeError, "%s has type %s, expected float", name, Py_TYPE(object)->tp_name);
  throw PythonError();
}

void View::set_output(const char* name, PyObject* object) {
  if (!PyArray_Check(object)) {
    PyErr_Format(PyExc_TypeError, "%s has type %s, expected numpy.ndarray", name,
                 Py_TYPE(object)->tp_name);
    throw PythonError();
  }
  owner = Ref(Py_NewRef(object));
  const int32_t dtype = dtype_of(owner.array());
  if (dtype < 0) fail_dtype(name, owner.array(), "the dtype of logits");
  fill(owner.array(), dtype, &array);
}

Ref new_like(PyArrayObject* like) {
  return checked(PyArray_NewLikeArray(like, NPY_KEEPORDER, nullptr, 0));
}

Ref new_rows(PyArrayObject* like, int typenum) {
  return checked(PyArray_SimpleNew(PyArray_NDIM(like), PyArray_DIMS(like), typenum));
}

void view_output(PyArrayObject* array, View* view) { fill(array, dtype_of(array), &view->array); }

int loss_typenum(const gce_array& logits) {
  return logits.dtype == GCE_FLOAT64 ? NPY_DOUBLE : NPY_FLOAT;
}

}  // namespace gce_python
