/* gce.h: the C ABI of the gamma-cross-entropy core.
 *
 * For one row with logits z, target y, q = softmax(z) and p = q[y], gamma in [0, 1], d = 1 - gamma:
 *
 *   loss      L = -log(gamma + d p) / d             (gamma = 0: -log p;  gamma = 1: 1 - p)
 *   gradient  dL/dz = w (q - e_y),  w = p / (gamma + d p)
 *
 * with a threshold b on w, class and sample weights, ignored targets and a reduction over rows
 * (gce_problem below). Source: arXiv 2302.13344.
 *
 * Dimension letters used throughout the core:
 *   V  number of classes: the length of the class axis of the logits
 *   N  number of rows: the product of all other axes of the logits, the size of the targets
 *   R  rows of one tile, the unit the kernels work on
 *   L  lanes of one SIMD vector
 *
 * The core has no threads of its own. A host makes a plan, calls gce_plan_work from as many of its
 * threads as it likes, and finishes the plan; or it calls gce_run for all of this on one thread.
 * No result depends on how many threads worked or on which of them did what, nor on what a thread
 * was told of rounding, subnormal numbers and traps. A call needs 128 KiB of stack.
 *
 * The header is C11 and C++17. It needs no other library.
 */
#ifndef GCE_GCE_H_
#define GCE_GCE_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define GCE_API __attribute__((visibility("default")))
#else
#define GCE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum gce_status {
  GCE_OK = 0,
  GCE_TYPE_ERROR = 1,  /* a dtype that the argument does not take */
  GCE_VALUE_ERROR = 2, /* a shape, option or range; overlapping or read-only output */
  GCE_INDEX_ERROR = 3, /* a target outside [0, V) that is not ignore_index */
  GCE_OUT_OF_MEMORY = 4,
  GCE_RUNTIME_ERROR = 5 /* an ISA that this CPU or build lacks; an internal failure */
} gce_status;

typedef enum gce_dtype {
  GCE_FLOAT16,
  GCE_BFLOAT16,
  GCE_FLOAT32,
  GCE_FLOAT64,
  GCE_INT8,
  GCE_INT16,
  GCE_INT32,
  GCE_INT64,
  GCE_UINT8,
  GCE_UINT16,
  GCE_UINT32,
  GCE_UINT64
} gce_dtype;

typedef enum gce_reduction {
  GCE_REDUCTION_NONE,
  GCE_REDUCTION_MEAN,
  GCE_REDUCTION_SUM
} gce_reduction;

typedef enum gce_value {
  GCE_VALUE_PRIMITIVE, /* the antiderivative: finite differences give the gradient */
  GCE_VALUE_SURROGATE  /* w_b * (-log p) with w_b held constant */
} gce_value;

/* Vocabulary shards: several processes have a slice of the classes each. Each finds GCE_SHARD_PARTIAL statistics of its
 * slice; they are merged (gce/shards.py says how), and with them each computes loss and its slice of the gradient. */
typedef enum gce_shard { GCE_SHARD_NONE, GCE_SHARD_PARTIAL, GCE_SHARD_MERGED } gce_shard;

/* What there is of a row: sum_v 2^((z_v - shift) log2(e) - reference) = sum_high + sum_low over the slice, log2(e) as the
 * kernels have it; argmax among all classes; for label smoothing sum_v c_v (maximum - z_v) and sum_v c_v. */
typedef enum gce_shard_field {
  GCE_SHARD_MAXIMUM, /* NaN if a logit is */
  GCE_SHARD_SHIFT,
  GCE_SHARD_REFERENCE,
  GCE_SHARD_SUM_HIGH,
  GCE_SHARD_SUM_LOW,
  GCE_SHARD_TARGET_LOGIT, /* -infinity where another slice has the target */
  GCE_SHARD_ARGMAX,
  GCE_SHARD_SPREAD_HIGH,
  GCE_SHARD_SPREAD_LOW,
  GCE_SHARD_WEIGHT_SUM,
  GCE_SHARD_FIRST_CLASS, /* of the slice, */
  GCE_SHARD_CLASSES,     /* and how many it has */
  GCE_SHARD_FIELDS
} gce_shard_field;

/* A strided view of somebody else's memory. data == NULL means "absent"; an argument that is required may be so where it
 * has no elements. Strides count bytes, may be negative or zero, and need no alignment. The core writes only to loss, grad
 * and the statistics.
 *
 * What the core has to trust: shape and strides have ndim numbers if 0 <= ndim <= GCE_MAX_NDIM (more are not read), and
 * each element that they reach from data is memory of the caller's, which nobody else writes during the call. All else is
 * checked: every number in a problem may be anything. An array that spans more than 2^61 bytes is refused. */
typedef struct gce_array {
  void* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t ndim;
  int32_t dtype;    /* a gce_dtype */
  int32_t readonly; /* outputs only: nonzero is refused */
} gce_array;

#define GCE_MAX_NDIM 64

/* One call: inputs, options and outputs. gce_problem_init sets every default. Everything is checked
 * before a byte of any output is written.
 *
 *   logits         float16, bfloat16, float32 or float64; any rank >= 1, any strides
 *   targets        any integer dtype, the logits' shape without the class axis; or probabilities t >= 0: float dtype, the
 *                  logits' shape. Then a row's loss is sum_k c[k] t[k] L(q[k]), the mean divides by the number of rows,
 *                  and where it says "the targets' shape" here, it is that without the class axis
 *   gamma          float dtype; 0-d, or the targets' shape; in [0, 1]
 *   threshold      b: like gamma; absent = 0
 *   weight         c: float dtype, shape (V,); multiplies loss and gradient of a row by c[y]
 *   sample_weight  float dtype, the targets' shape; multiplies loss and gradient
 *   grad_output    upstream gradient: 0-d, or the targets' shape with reduction none; absent = 1
 *   label_smoothing  eps in [0, 1]: a row's loss is (1 - eps) c[y] L + (eps / V) sum_v c[v] (-log q[v]), times
 *                  its sample weight; the sum leaves out classes with c[v] = 0
 *   z_loss         lambda >= 0, finite: adds lambda logsumexp(z)^2 to a row's loss, times its sample weight
 *   softcap        kappa > 0, finite: logits become kappa tanh(z / kappa) first; 0: none
 *   shift          s >= 0: row t of the last axis without classes predicts target t + s. What has one number per row
 *                  stands where the target is; of the first s, which no row predicts, results are 0 (argmax -1), and so
 *                  are the gradients of the last s rows
 *   vector         u: float dtype, the logits' shape. With it grad is the product of the Hessian of the reduced loss with u,
 *                  or with gauss_newton of its positive part, in which the gradient weight is a constant
 *   shard          a gce_shard. If not none, logits are those of classes first_class to first_class + V - 1 of all_classes;
 *                  targets and weight are those of all. shard_stats is float64, the targets' shape and GCE_SHARD_FIELDS
 *                  more: for GCE_SHARD_PARTIAL an output, the only one; for GCE_SHARD_MERGED an input, of all classes
 *   normalizer     the divisor of the mean, if has_normalizer; finite and > 0
 *   ignore_index   rows with this target have loss 0 and gradient 0, if has_ignore_index
 *   axis           class axis, -ndim <= axis < ndim
 *
 * Outputs; all but those wanted are absent. None shares memory with another or with an input, but for grad in place:
 *   loss             the logits' dtype, or float32 for 16-bit logits (rounded once more if it is
 *                    16-bit too); 0-d, or the targets' shape with reduction none
 *   grad             the logits' dtype and shape; may be exactly the logits' memory (in place). With a vector, the product
 *   target_log_prob, logsumexp, grad_weight   the loss' dtype, the targets' shape; grad_weight is w_b, before
 *                    class and sample weights
 *   argmax           int64, the targets' shape: the first largest logit, or the first NaN
 *   gamma_grad       float64, 0-d or the targets' shape, as gamma is: the reduced loss' derivative in gamma (with
 *                    reduction none, of the rows' sum), times grad_output
 */
typedef struct gce_problem {
  gce_array logits;
  gce_array targets;
  gce_array gamma;
  gce_array threshold;
  gce_array weight;
  gce_array sample_weight;
  gce_array grad_output;
  gce_array vector;
  double normalizer;
  double label_smoothing; /* 0: none */
  double z_loss;          /* 0: none */
  double softcap;         /* 0: none */
  int64_t ignore_index;
  int32_t has_normalizer;
  int32_t has_ignore_index;
  int32_t axis;
  int32_t reduction; /* a gce_reduction */
  int32_t value;     /* a gce_value */
  int32_t gauss_newton;
  int32_t shift; /* 0: none */
  int32_t shard; /* a gce_shard */
  int64_t first_class;
  int64_t all_classes;
  gce_array shard_stats;
  gce_array loss;
  gce_array grad;
  gce_array target_log_prob;
  gce_array logsumexp;
  gce_array grad_weight;
  gce_array argmax;
  gce_array gamma_grad;
} gce_problem;

/* The sigmoid form, for targets that do not exclude each other: each element of the logits is a row of its own, with
 * p1 = sigmoid(z), p0 = 1 - p1 and target t in [0, 1],
 *
 *   loss      c t L(p1) + (1 - t) L(p0)                        L as above, with threshold and value
 *   gradient  c t w(p1) (p1 - 1) + (1 - t) w(p0) p1
 *
 * times its weight. At gamma = 0 it is binary cross-entropy.
 *
 *   logits         float16, bfloat16, float32 or float64; any rank, any strides
 *   targets        float dtype, the logits' shape
 *   gamma          float dtype; 0-d, or the logits' shape; in [0, 1]
 *   threshold      b: like gamma; absent = 0
 *   weight         float dtype, of a shape that broadcasts to the logits': multiplies loss and gradient. An element of
 *                  weight 0 has loss 0 even where it would be infinite; NaN stays NaN
 *   pos_weight     c: like weight
 *   grad_output    upstream gradient: 0-d, or the logits' shape with reduction none; absent = 1
 *   label_smoothing  eps in [0, 1]: t becomes (1 - eps) t + eps / 2
 *   normalizer     the divisor of the mean in place of the number of elements, if has_normalizer; finite and > 0
 *
 * Outputs; absent unless wanted; without shared memory, as above:
 *   loss           as in gce_problem; 0-d, or the logits' shape with reduction none
 *   grad           the logits' dtype and shape; may be exactly the logits' memory (in place)
 */
typedef struct gce_binary_problem {
  gce_array logits;
  gce_array targets;
  gce_array gamma;
  gce_array threshold;
  gce_array weight;
  gce_array pos_weight;
  gce_array grad_output;
  double normalizer;
  double label_smoothing; /* 0: none */
  int32_t has_normalizer;
  int32_t reduction; /* a gce_reduction */
  int32_t value;     /* a gce_value */
  gce_array loss;
  gce_array grad;
} gce_binary_problem;

typedef struct gce_plan gce_plan;

/* Defaults: everything absent, axis -1, reduction mean, value primitive, nothing ignored. */
GCE_API void gce_problem_init(gce_problem* problem);
GCE_API void gce_binary_problem_init(gce_binary_problem* problem);

/* Check the problem and lay out the work for up to max_workers threads. On an error nothing is
 * written and *plan is NULL. The arrays' elements must outlive the plan; the struct, shapes and strides need not. */
GCE_API gce_status gce_plan_create(const gce_problem* problem, int32_t max_workers,
                                   gce_plan** plan);
GCE_API gce_status gce_binary_plan_create(const gce_binary_problem* problem, int32_t max_workers,
                                          gce_plan** plan);
/* How many workers have something to do: between 1 and max_workers. Of NULL none. */
GCE_API int32_t gce_plan_workers(const gce_plan* plan);
/* Take chunks of rows until none is left. Call it once for each worker in [0, gce_plan_workers),
 * concurrently or one after the other; another worker, and one of NULL, has nothing to do. */
GCE_API void gce_plan_work(gce_plan* plan, int32_t worker);
/* After every gce_plan_work has returned: write the reduced loss and free the plan. NULL is fine. */
GCE_API void gce_plan_finish(gce_plan* plan);
/* Create, work and finish on the calling thread. */
GCE_API gce_status gce_run(const gce_problem* problem);
GCE_API gce_status gce_binary_run(const gce_binary_problem* problem);

/* "none", "mean", "sum"; "primitive", "surrogate": what the options are called in every face. */
GCE_API gce_status gce_reduction_from_name(const char* name, gce_reduction* reduction);
GCE_API gce_status gce_value_from_name(const char* name, gce_value* value);

/* The message of the last error on this thread: names the argument, what was found, what was
 * expected. Valid until the thread's next call that fails. */
GCE_API const char* gce_last_error(void);

/* Elementwise functions of the target's log-probability l, with p = exp(l):
 *   LOSS         (l, gamma, b) -> the primitive loss
 *   GRAD_WEIGHT  (l, gamma, b) -> max(b, p / (gamma + (1 - gamma) p))
 *   GAMMA_GRAD   (l, gamma)    -> dL/dgamma at b = 0
 * gamma or b outside [0, 1] gives NaN, NaN gives NaN. */
typedef enum gce_pointwise_op {
  GCE_POINTWISE_LOSS,
  GCE_POINTWISE_GRAD_WEIGHT,
  GCE_POINTWISE_GAMMA_GRAD
} gce_pointwise_op;

/* op is a gce_pointwise_op. args: the inputs and then the output, n elements each, strides in bytes. dtype, GCE_FLOAT32 or
 * GCE_FLOAT64, is that of l and of the output; gamma and b are float64 always, so that 1 - gamma stays exact. The output may
 * be an input, or overlap inputs: then the elements follow each other. *out_of_range is set to the number of elements with
 * gamma or b out of range. */
GCE_API gce_status gce_pointwise(int32_t op, int32_t dtype, int64_t n, char* const* args,
                                 const int64_t* strides, int64_t* out_of_range);

/* Instruction sets. The best one that this CPU has is chosen at the first use; the environment
 * variable GCE_FORCE_ISA overrides the choice, and is an error if the CPU or the build lacks it. */
GCE_API gce_status gce_isa_in_use(const char** name);
/* The i-th ISA compiled in, best first, and, unless supported is NULL, whether this CPU has it; NULL past the last. */
GCE_API const char* gce_isa_name(int32_t i, int32_t* supported);
/* Switch at run time (for tests and benchmarks); NULL returns to the default choice. Not to be called
 * while plans are at work. */
GCE_API gce_status gce_isa_select(const char* name);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* GCE_GCE_H_ */
