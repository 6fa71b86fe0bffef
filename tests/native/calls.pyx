# A user of gce.cython: the short forms, the whole of gce_problem, threads of its own, errors.
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint16_t

from gce.cython cimport *


def mean_and_grad(const float[:, ::1] logits, const long[::1] targets, double gamma, float[:, ::1] grad):
    cdef float value
    with nogil:
        check(loss_and_grad(logits, targets, gamma, &value, grad))
    return value


def mean_and_grad_of_doubles(double[:, ::1] logits, int[::1] targets, double gamma, double[:, ::1] grad):
    cdef double value
    check(loss_and_grad(logits, targets, gamma, &value, grad))
    return value


def mean(const double[:, ::1] logits, const int64_t[::1] targets, double gamma):
    cdef double value
    with nogil:
        check(loss(logits, targets, gamma, &value))
    return value


# Option, and strides as they come.
def surrogate_losses(float[:, :] logits, long long[:] targets, float[:] gamma, double smoothing, float[:] out):
    cdef gce_problem problem
    gce_problem_init(&problem)
    check(gce_value_from_name("surrogate", <gce_value*> &problem.value))
    check(gce_reduction_from_name("none", <gce_reduction*> &problem.reduction))
    problem.logits = view(&logits[0, 0], GCE_FLOAT32, 2, logits.shape, logits.strides)
    problem.targets = view(&targets[0], GCE_INT64, 1, targets.shape, targets.strides)
    problem.gamma = view(&gamma[0], GCE_FLOAT32, 1, gamma.shape, gamma.strides)
    problem.label_smoothing = smoothing
    problem.loss = view(&out[0], GCE_FLOAT32, 1, out.shape, out.strides)
    with nogil:
        check(gce_run(&problem))


# The bits of bfloat16 numbers, in place, on `workers` threads.
def bfloat16_in_place(uint16_t[:, ::1] logits, const int64_t[::1] targets, double gamma, int workers):
    cdef gce_problem problem
    cdef gce_plan* plan = NULL
    cdef float value
    cdef int worker, used
    gce_problem_init(&problem)
    problem.logits = view(&logits[0, 0], GCE_BFLOAT16, 2, logits.shape, logits.strides)
    problem.targets = view(&targets[0], GCE_INT64, 1, targets.shape, targets.strides)
    problem.gamma = view(&gamma, GCE_FLOAT64, 0, NULL, NULL)
    problem.loss = view(&value, GCE_FLOAT32, 0, NULL, NULL)
    problem.grad = problem.logits
    check(gce_plan_create(&problem, workers, &plan))
    used = gce_plan_workers(plan)
    for worker in prange(used, nogil=True, schedule="static", chunksize=1, num_threads=used):
        gce_plan_work(plan, worker)
    gce_plan_finish(plan)
    return value, used


def grad_weights(const double[::1] log_p, double gamma, double threshold, double[::1] out):
    cdef char** arguments = [<char*> &log_p[0], <char*> &gamma, <char*> &threshold, <char*> &out[0]]
    cdef int64_t* strides = [8, 0, 0, 8]
    cdef int64_t out_of_range
    check(gce_pointwise(GCE_POINTWISE_GRAD_WEIGHT, GCE_FLOAT64, len(log_p), arguments, strides, &out_of_range))
    return out_of_range


def status_and_message(const float[:, ::1] logits, const long[::1] targets, double gamma):
    cdef float value = -7
    cdef gce_status status
    with nogil:
        status = loss(logits, targets, gamma, &value)
    return status, gce_last_error().decode(), value


def raised(int status):
    check(<gce_status> status)


def isa():
    cdef const char* name
    check(gce_isa_in_use(&name))
    return name.decode()


def element(float[::1] array, int index):  # with the checks of this module, whatever the pxd's
    return array[index]


def constants():
    return {
        "GCE_OK": GCE_OK, "GCE_INDEX_ERROR": GCE_INDEX_ERROR, "GCE_UINT64": GCE_UINT64,
        "GCE_VALUE_SURROGATE": GCE_VALUE_SURROGATE, "GCE_MAX_NDIM": GCE_MAX_NDIM,
        "sizeof(gce_problem)": sizeof(gce_problem), "sizeof(gce_array)": sizeof(gce_array),
    }
