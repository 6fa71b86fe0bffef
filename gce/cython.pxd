# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# The C ABI for Cython: every function of gce.h, and short forms of the common call. gce/cython.py says how to use them.
from libc.stdint cimport int32_t, int64_t

# --- from gce.h, by native/tools/cython_pxd.py

cdef extern from "gce/gce.h":
    """
    typedef gce_array gce_array_beecc149;
    typedef gce_problem gce_problem_beecc149;
    typedef gce_binary_problem gce_binary_problem_beecc149;
    """
    const int GCE_MAX_NDIM

    ctypedef enum gce_status:
        GCE_OK
        GCE_TYPE_ERROR
        GCE_VALUE_ERROR
        GCE_INDEX_ERROR
        GCE_OUT_OF_MEMORY
        GCE_RUNTIME_ERROR

    ctypedef enum gce_dtype:
        GCE_FLOAT16
        GCE_BFLOAT16
        GCE_FLOAT32
        GCE_FLOAT64
        GCE_INT8
        GCE_INT16
        GCE_INT32
        GCE_INT64
        GCE_UINT8
        GCE_UINT16
        GCE_UINT32
        GCE_UINT64

    ctypedef enum gce_reduction:
        GCE_REDUCTION_NONE
        GCE_REDUCTION_MEAN
        GCE_REDUCTION_SUM

    ctypedef enum gce_value:
        GCE_VALUE_PRIMITIVE
        GCE_VALUE_SURROGATE

    ctypedef enum gce_shard:
        GCE_SHARD_NONE
        GCE_SHARD_PARTIAL
        GCE_SHARD_MERGED

    ctypedef enum gce_shard_field:
        GCE_SHARD_MAXIMUM
        GCE_SHARD_SHIFT
        GCE_SHARD_REFERENCE
        GCE_SHARD_SUM_HIGH
        GCE_SHARD_SUM_LOW
        GCE_SHARD_TARGET_LOGIT
        GCE_SHARD_ARGMAX
        GCE_SHARD_SPREAD_HIGH
        GCE_SHARD_SPREAD_LOW
        GCE_SHARD_WEIGHT_SUM
        GCE_SHARD_FIRST_CLASS
        GCE_SHARD_CLASSES
        GCE_SHARD_FIELDS

    ctypedef enum gce_pointwise_op:
        GCE_POINTWISE_LOSS
        GCE_POINTWISE_GRAD_WEIGHT
        GCE_POINTWISE_GAMMA_GRAD

    ctypedef struct gce_array "gce_array_beecc149":
        void* data
        const int64_t* shape
        const int64_t* strides
        int32_t ndim
        int32_t dtype
        int32_t readonly

    ctypedef struct gce_problem "gce_problem_beecc149":
        gce_array logits
        gce_array targets
        gce_array gamma
        gce_array threshold
        gce_array weight
        gce_array sample_weight
        gce_array grad_output
        gce_array vector
        double normalizer
        double label_smoothing
        double z_loss
        double softcap
        int64_t ignore_index
        int32_t has_normalizer
        int32_t has_ignore_index
        int32_t axis
        int32_t reduction
        int32_t value
        int32_t gauss_newton
        int32_t shift
        int32_t shard
        int64_t first_class
        int64_t all_classes
        gce_array shard_stats
        gce_array loss
        gce_array grad
        gce_array target_log_prob
        gce_array logsumexp
        gce_array grad_weight
        gce_array argmax
        gce_array gamma_grad

    ctypedef struct gce_binary_problem "gce_binary_problem_beecc149":
        gce_array logits
        gce_array targets
        gce_array gamma
        gce_array threshold
        gce_array weight
        gce_array pos_weight
        gce_array grad_output
        double normalizer
        double label_smoothing
        int32_t has_normalizer
        int32_t reduction
        int32_t value
        gce_array loss
        gce_array grad

    ctypedef struct gce_plan:
        pass

cdef void gce_problem_init(gce_problem* problem) noexcept nogil
cdef void gce_binary_problem_init(gce_binary_problem* problem) noexcept nogil
cdef gce_status gce_plan_create(const gce_problem* problem, int32_t max_workers, gce_plan** plan) noexcept nogil
cdef gce_status gce_binary_plan_create(const gce_binary_problem* problem, int32_t max_workers, gce_plan** plan) noexcept nogil
cdef int32_t gce_plan_workers(const gce_plan* plan) noexcept nogil
cdef void gce_plan_work(gce_plan* plan, int32_t worker) noexcept nogil
cdef void gce_plan_finish(gce_plan* plan) noexcept nogil
cdef gce_status gce_run(const gce_problem* problem) noexcept nogil
cdef gce_status gce_binary_run(const gce_binary_problem* problem) noexcept nogil
cdef gce_status gce_reduction_from_name(const char* name, gce_reduction* reduction) noexcept nogil
cdef gce_status gce_value_from_name(const char* name, gce_value* value) noexcept nogil
cdef const char* gce_last_error() noexcept nogil
cdef gce_status gce_pointwise(int32_t op, int32_t dtype, int64_t n, char* const* args, const int64_t* strides, int64_t* out_of_range) noexcept nogil
cdef gce_status gce_isa_in_use(const char** name) noexcept nogil
cdef const char* gce_isa_name(int32_t i, int32_t* supported) noexcept nogil
cdef gce_status gce_isa_select(const char* name) noexcept nogil

# --- end of what gce.h declares


# An array for a field of gce_problem. It points to shape and strides (of a memoryview, say), which must outlive it.
cdef inline gce_array view(
    const void* data, gce_dtype dtype, int32_t ndim, const Py_ssize_t* shape, const Py_ssize_t* strides
) noexcept nogil:
    cdef gce_array array
    array.data = <void*> data
    array.dtype = dtype
    array.ndim = ndim
    array.shape = <const int64_t*> shape
    array.strides = <const int64_t*> strides
    array.readonly = 0
    return array


# Raises what a status stands for, with the core's message; to be called on the thread that got the status.
cdef inline int check(gce_status status) except -1 nogil:
    if status == GCE_OK:
        return 0
    with gil:
        message = gce_last_error().decode("utf-8", "replace")
        if status == GCE_TYPE_ERROR:
            raise TypeError(message)
        if status == GCE_VALUE_ERROR:
            raise ValueError(message)
        if status == GCE_INDEX_ERROR:
            raise IndexError(message)
        if status == GCE_OUT_OF_MEMORY:
            raise MemoryError(message)
        raise RuntimeError(message)


ctypedef fused gce_real:
    float
    double

ctypedef fused gce_integer:  # all names of two types: Cython compares these, typedefs included
    int
    long
    long long
    signed long long
    Py_ssize_t
    int32_t
    int64_t


# gce.loss(logits, targets, gamma) on the calling thread.
cdef inline gce_status loss(
    const gce_real[:, ::1] logits, const gce_integer[::1] targets, double gamma, gce_real* loss
) noexcept nogil:
    cdef gce_dtype real = GCE_FLOAT32 if sizeof(gce_real) == 4 else GCE_FLOAT64
    cdef gce_dtype integer = GCE_INT32 if sizeof(gce_integer) == 4 else GCE_INT64
    return run_with_defaults(
        view(&logits[0, 0], real, 2, logits.shape, logits.strides),
        view(&targets[0], integer, 1, targets.shape, targets.strides),
        gamma,
        view(loss, real, 0, NULL, NULL),
        view(NULL, real, 0, NULL, NULL),
    )


# gce.loss_and_grad(logits, targets, gamma, out=grad) on the calling thread.
cdef inline gce_status loss_and_grad(
    const gce_real[:, ::1] logits,
    const gce_integer[::1] targets,
    double gamma,
    gce_real* loss,
    gce_real[:, ::1] grad,
) noexcept nogil:
    cdef gce_dtype real = GCE_FLOAT32 if sizeof(gce_real) == 4 else GCE_FLOAT64
    cdef gce_dtype integer = GCE_INT32 if sizeof(gce_integer) == 4 else GCE_INT64
    return run_with_defaults(
        view(&logits[0, 0], real, 2, logits.shape, logits.strides),
        view(&targets[0], integer, 1, targets.shape, targets.strides),
        gamma,
        view(loss, real, 0, NULL, NULL),
        view(&grad[0, 0], real, 2, grad.shape, grad.strides),
    )


cdef inline gce_status run_with_defaults(
    gce_array logits, gce_array targets, double gamma, gce_array loss, gce_array grad
) noexcept nogil:
    cdef gce_problem problem
    gce_problem_init(&problem)
    problem.logits = logits
    problem.targets = targets
    problem.gamma = view(&gamma, GCE_FLOAT64, 0, NULL, NULL)
    problem.loss = loss
    problem.grad = grad
    problem.has_ignore_index = 1
    problem.ignore_index = -100
    return gce_run(&problem)
