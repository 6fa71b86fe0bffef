// The numpy C API, shared by the files of this folder (module.cpp imports it once).
#ifndef GCE_PYTHON_NUMPY_API_H_
#define GCE_PYTHON_NUMPY_API_H_

#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL gce_array_api
#define PY_UFUNC_UNIQUE_SYMBOL gce_ufunc_api
#ifndef GCE_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#define NO_IMPORT_UFUNC
#endif
#include <numpy/arrayobject.h>
#include <numpy/ufuncobject.h>

#endif  // GCE_PYTHON_NUMPY_API_H_
