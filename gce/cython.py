"""The C ABI of gce for Cython, and for any compiled code in the same process.

``from gce.cython cimport ...`` gives Cython code (Cython 3) the functions, structs and enums of
``gce.h``, to be called without the GIL. Nothing is linked: as in ``scipy.linalg.cython_blas``,
there is a capsule for each function in ``__pyx_capi__``, which a compiled module looks up when it
is imported. A build needs the header, which is where `gce.get_include` says::

    Extension("example", ["example.pyx"], include_dirs=[gce.get_include()])

With an editable install of gce it also needs ``cythonize(..., include_path=[the clone])``.

Beside what is in the header there are:

``loss(logits, targets, gamma, &loss)``, ``loss_and_grad(logits, targets, gamma, &loss, grad)``
    What Python's functions compute without options, on the calling thread, of memoryviews:
    ``[:, ::1]`` of float or double, ``[::1]`` of 32 or 64-bit integers. They give a ``gce_status``.
``check(status)``
    Raises the exception that a status stands for, with the core's message.
``view(data, dtype, ndim, shape, strides)``
    A ``gce_array`` for a field of ``gce_problem``, which takes all dtypes, layouts and options and
    gives all results.

A ``gce_problem`` begins with ``gce_problem_init``. ``gce_run`` works on the calling thread;
``gce_plan_create``, ``gce_plan_work`` and ``gce_plan_finish`` on as many threads as call them. No
result depends on how many.

C and C++ find the functions in the same capsules, with the GIL::

    PyObject* module = PyImport_ImportModule("gce.cython");
    PyObject* functions = PyObject_GetAttrString(module, "__pyx_capi__");
    PyObject* capsule = PyDict_GetItemString(functions, "gce_run");
    run = (gce_status (*)(const gce_problem*))PyCapsule_GetPointer(capsule, TYPE);

TYPE is the name of the capsule, as Python prints it. It differs between layouts of
``gce_problem``: Cython and PyCapsule_GetPointer refuse code that was compiled for another, which
then has to be compiled anew.
"""

from gce._native import __pyx_capi__

__all__ = ["__pyx_capi__"]
