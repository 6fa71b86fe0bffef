/* A host that gets everything wrong: what the core may not trust, a fault at a time. Each must be an error with a message,
 * and nothing may be written. Prints what is wrong and returns how much is. Knows gce.h alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checks.h"
#include "gce/gce.h"

/* Rows of 3 x 4, all outputs wanted. */
typedef struct {
  float logits[12], grad[12], loss, log_prob[3], logsumexp[3], weight[3];
  int64_t targets[3], argmax[3];
  double gamma, gamma_grad, stats[3 * GCE_SHARD_FIELDS];
} Memory;

static Memory memory;
static int64_t shape[2], strides[2], rows[1], float_steps[1], long_steps[1];

static gce_problem good(void) {
  gce_problem p;
  memset(&memory, 0, sizeof(memory));
  memory.gamma = 0.5;
  memory.loss = -77.0f;
  shape[0] = rows[0] = 3;
  shape[1] = 4;
  strides[0] = 16;
  strides[1] = float_steps[0] = 4;
  long_steps[0] = 8;
  gce_problem_init(&p);
  p.logits = array_of(memory.logits, 2, GCE_FLOAT32, shape, strides);
  p.targets = array_of(memory.targets, 1, GCE_INT64, rows, long_steps);
  p.gamma = array_of(&memory.gamma, 0, GCE_FLOAT64, NULL, NULL);
  p.loss = array_of(&memory.loss, 0, GCE_FLOAT32, NULL, NULL);
  p.grad = array_of(memory.grad, 2, GCE_FLOAT32, shape, strides);
  p.target_log_prob = array_of(memory.log_prob, 1, GCE_FLOAT32, rows, float_steps);
  p.logsumexp = array_of(memory.logsumexp, 1, GCE_FLOAT32, rows, float_steps);
  p.grad_weight = array_of(memory.weight, 1, GCE_FLOAT32, rows, float_steps);
  p.argmax = array_of(memory.argmax, 1, GCE_INT64, rows, long_steps);
  p.gamma_grad = array_of(&memory.gamma_grad, 0, GCE_FLOAT64, NULL, NULL);
  return p;
}

static void check_refused(const gce_problem* p, gce_status status, const char* message, int line) {
  static Memory before;
  gce_plan* plan = (gce_plan*)&before;
  memcpy(&before, &memory, sizeof(memory));
  check_error(gce_run(p), status, message, line);
  check_error(gce_plan_create(p, 2, &plan), status, message, line);
  check(plan == NULL, "no plan", line);
  check(memcmp(&before, &memory, sizeof(memory)) == 0, "nothing is written", line);
}
#define REFUSED(p, message) check_refused((p), GCE_VALUE_ERROR, (message), __LINE__)

static void dimensions(void) {
  gce_problem p = good();
  p.logits.ndim = 65;
  REFUSED(&p, "logits has 65 dimensions, expected 1 to 64");
  p.logits.ndim = -1;
  REFUSED(&p, "logits has -1 dimensions, expected 1 to 64");
  p = good();
  p.targets.ndim = 2000000000;
  REFUSED(&p, "targets has 2000000000 dimensions, expected 0 to 64");
  p = good();
  p.gamma.ndim = -2147483647 - 1;
  REFUSED(&p, "gamma has -2147483648 dimensions, expected 0 to 64");
  p = good();
  p.grad.ndim = 100;
  REFUSED(&p, "out has 100 dimensions, expected 0 to 64");
  p = good();
  p.logits.shape = NULL;
  REFUSED(&p, "logits has 2 dimensions and no shape, expected one number for each");
  p = good();
  p.argmax.strides = NULL;
  REFUSED(&p, "argmax has 1 dimensions and no strides, expected one number for each");
}

static void lengths(void) {
  static int64_t wrong[2];
  static int64_t steps[2];
  gce_problem p = good();
  p.logits.shape = p.grad.shape = wrong;
  p.logits.strides = p.grad.strides = steps;
  p.targets.shape = wrong;
  wrong[0] = -3;
  wrong[1] = 4;
  steps[0] = steps[1] = 0;
  REFUSED(&p, "logits has shape (-3, 4), expected no negative length");
  wrong[0] = (int64_t)1 << 40;
  wrong[1] = (int64_t)1 << 40;
  REFUSED(&p, "logits has shape (1099511627776, 1099511627776), expected at most 2^58 elements");
  wrong[0] = 3;
  wrong[1] = 4;
  steps[0] = INT64_MAX;
  REFUSED(&p,
          "logits has shape (3, 4) and strides that span more than 2^61 bytes, expected elements "
          "that memory can "
          "hold");
  steps[0] = INT64_MIN;
  REFUSED(&p,
          "logits has shape (3, 4) and strides that span more than 2^61 bytes, expected elements "
          "that memory can "
          "hold");
}

static void missing(void) {
  gce_problem p = good();
  gce_plan* plan = NULL;
  p.shard_stats.data = memory.stats;
  p.shard_stats.ndim = 77;
  REFUSED(&p, "stats is given, expected none where shard is none");
  p = good();
  p.logits.data = NULL;
  REFUSED(&p, "logits is missing, expected an array of shape (3, 4)");
  p = good();
  p.targets.data = NULL;
  REFUSED(&p, "targets is missing, expected an array of shape (3,)");
  p = good();
  check_error(gce_run(NULL), GCE_VALUE_ERROR, "problem is NULL, expected its address", __LINE__);
  check_error(gce_binary_run(NULL), GCE_VALUE_ERROR, "problem is NULL, expected its address",
              __LINE__);
  check_error(gce_plan_create(NULL, 1, &plan), GCE_VALUE_ERROR,
              "problem is NULL, expected its address", __LINE__);
  check_error(gce_plan_create(&p, 1, NULL), GCE_VALUE_ERROR, "plan is NULL, expected its address",
              __LINE__);
  gce_reduction reduction = GCE_REDUCTION_NONE;
  gce_value value = GCE_VALUE_PRIMITIVE;
  check_error(gce_reduction_from_name(NULL, &reduction), GCE_VALUE_ERROR,
              "reduction is NULL, expected a name", __LINE__);
  check_error(gce_value_from_name(NULL, &value), GCE_VALUE_ERROR, "value is NULL, expected a name",
              __LINE__);
  check_error(gce_reduction_from_name("mean", NULL), GCE_VALUE_ERROR,
              "reduction is NULL, expected its address", __LINE__);
  check_error(gce_value_from_name("surrogate", NULL), GCE_VALUE_ERROR,
              "value is NULL, expected its address", __LINE__);
  check_error(gce_isa_in_use(NULL), GCE_VALUE_ERROR, "name is NULL, expected its address",
              __LINE__);
  CHECK(gce_isa_name(0, NULL) != NULL && gce_isa_name(-1, NULL) == NULL);
  gce_problem_init(NULL);
  gce_binary_problem_init(NULL);
}

/* Workers that a plan does not have do nothing, before the others and after them. */
static void workers(void) {
  gce_problem p = good();
  gce_plan* plan = NULL;
  CHECK(gce_run(&p) == GCE_OK);
  const float loss = memory.loss;
  CHECK(gce_plan_create(&p, 2, &plan) == GCE_OK);
  const int32_t count = gce_plan_workers(plan);
  static const int32_t others[] = {-1, INT32_MIN, 2, 1000, INT32_MAX};
  for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); ++i) gce_plan_work(plan, others[i]);
  for (int32_t worker = 0; worker < count; ++worker) gce_plan_work(plan, worker);
  gce_plan_work(plan, count);
  memory.loss = 0.0f;
  gce_plan_finish(plan);
  CHECK(memory.loss == loss);
  CHECK(gce_plan_workers(NULL) == 0);
  gce_plan_work(NULL, 0);
  gce_plan_finish(NULL);
}

static void pointwise(void) {
  double l = -1.0, gamma = 0.5, out = 7.0;
  char* args[3] = {(char*)&l, (char*)&gamma, (char*)&out};
  const int64_t strides[3] = {0, 0, 0};
  int64_t outside = 3;
  for (int i = 0; i < 3; ++i) {
    static const char* const messages[] = {"args[0] is NULL, expected its address",
                                           "args[1] is NULL, expected its address",
                                           "args[2] is NULL, expected its address"};
    char* given[3] = {args[0], args[1], args[2]};
    given[i] = NULL;
    check_error(gce_pointwise(GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT64, 1, given, strides, &outside),
                GCE_VALUE_ERROR, messages[i], __LINE__);
    CHECK(gce_pointwise(GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT64, 0, given, strides, &outside) ==
          GCE_OK);
  }
  check_error(gce_pointwise(GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT64, 1, NULL, strides, &outside),
              GCE_VALUE_ERROR, "args is NULL, expected its address", __LINE__);
  check_error(gce_pointwise(GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT64, 1, args, NULL, &outside),
              GCE_VALUE_ERROR, "strides is NULL, expected its address", __LINE__);
  check_error(gce_pointwise(GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT64, 1, args, strides, NULL),
              GCE_VALUE_ERROR, "out_of_range is NULL, expected its address", __LINE__);
  CHECK(out == 7.0);
  CHECK(gce_pointwise(GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT64, 1, args, strides, &outside) ==
            GCE_OK &&
        outside == 0 && out != 7.0);
}

/* Absent arrays may have anything beside their NULL; and lengths of 1 and no elements at all any stride. */
static void ignored(void) {
  static int64_t one_class[2] = {3, 1}, far[2] = {4, INT64_MAX}, no_rows[2] = {0, 4}, none[1] = {0};
  gce_problem p = good();
  p.weight.ndim = 1000;
  p.vector.ndim = -1;
  p.shard_stats.ndim = 77;
  CHECK(gce_run(&p) == GCE_OK && memory.loss > 0.0f);
  p = good();
  p.logits.shape = p.grad.shape = one_class;
  p.logits.strides = p.grad.strides = far;
  CHECK(gce_run(&p) == GCE_OK && memory.loss == 0.0f);
  p = good();
  p.logits.shape = p.grad.shape = no_rows;
  p.targets.shape = p.target_log_prob.shape = p.logsumexp.shape = p.grad_weight.shape =
      p.argmax.shape = none;
  p.logits.data = p.targets.data = NULL;
  CHECK(gce_run(&p) == GCE_OK && memory.loss == 0.0f);
}

static void enumerations(void) {
  static char* no_args[4];
  static int64_t no_strides[4];
  int64_t out_of_range = 0;
  gce_problem p = good();
  p.reduction = 7;
  REFUSED(&p, "reduction = 7, expected a gce_reduction");
  p = good();
  p.value = -1;
  REFUSED(&p, "value = -1, expected a gce_value");
  p = good();
  p.logits.dtype = 99;
  check_refused(&p, GCE_TYPE_ERROR,
                "logits has dtype an unknown dtype, expected float16, bfloat16, float32 or float64",
                __LINE__);
  check_error(gce_pointwise(3, GCE_FLOAT32, 1, no_args, no_strides, &out_of_range), GCE_VALUE_ERROR,
              "op = 3, expected a gce_pointwise_op", __LINE__);
  check_error(gce_pointwise(0, GCE_FLOAT16, 1, no_args, no_strides, &out_of_range), GCE_TYPE_ERROR,
              "dtype = 0 (float16), expected float32 or float64", __LINE__);
  check_error(gce_pointwise(0, GCE_FLOAT32, -1, no_args, no_strides, &out_of_range),
              GCE_VALUE_ERROR, "n = -1, expected >= 0", __LINE__);
}

/* Outputs in each other's memory, or in an input's. */
static void overlaps(void) {
  gce_problem p = good();
  p.logsumexp.data = memory.log_prob;
  REFUSED(&p, "logsumexp overlaps target_log_prob, expected memory of its own");
  p = good();
  p.argmax.data = memory.targets;
  REFUSED(&p, "argmax overlaps targets, expected memory of its own");
  p = good();
  p.grad_weight.data = memory.logits + 9;
  REFUSED(&p, "grad_weight overlaps logits, expected memory of its own");
  p = good();
  p.target_log_prob.data = memory.grad;
  REFUSED(&p, "target_log_prob overlaps out, expected memory of its own");
  p = good();
  p.gamma_grad.data = &memory.gamma;
  REFUSED(&p, "gamma_grad overlaps gamma, expected memory of its own");
}

/* Numbers that would take for ever, or more memory than there is. */
static void too_much(void) {
  static int64_t stats_shape[2] = {3, GCE_SHARD_FIELDS},
                 stats_strides[2] = {8 * GCE_SHARD_FIELDS, 8};
  static int64_t no_rows[2] = {0, 0}, none[1] = {0}, many[3] = {(int64_t)1 << 50, 0, 1},
                 zeros[3] = {0, 0, 0};
  gce_problem p = good();
  gce_array loss = p.loss;
  gce_problem_init(&p);
  p.logits = good().logits;
  p.targets = good().targets;
  p.shard = GCE_SHARD_PARTIAL;
  p.shard_stats = array_of(memory.stats, 2, GCE_FLOAT64, stats_shape, stats_strides);
  p.label_smoothing = 0.1;
  p.all_classes = (int64_t)1 << 58;
  check_refused(&p, GCE_OUT_OF_MEMORY, "out of memory", __LINE__);

  /* The same once they are merged, all classes having one weight, of 0. */
  static float zero = 0;
  static int64_t of_weights[1] = {(int64_t)1 << 58};
  p.shard = GCE_SHARD_MERGED;
  p.gamma = good().gamma;
  for (int row = 0; row < 3; ++row) {
    memory.stats[row * GCE_SHARD_FIELDS + GCE_SHARD_CLASSES] = (double)p.all_classes;
  }
  p.loss = loss;
  p.weight = array_of(&zero, 1, GCE_FLOAT32, of_weights, zeros);
  check_refused(&p, GCE_OUT_OF_MEMORY, "out of memory", __LINE__);

  p = good();
  loss = p.loss;
  no_rows[1] = (int64_t)1 << 58;
  gce_array gamma = p.gamma;
  gce_problem_init(&p);
  p.logits = array_of(memory.logits, 2, GCE_FLOAT64, no_rows, zeros);
  p.targets = array_of(memory.targets, 1, GCE_INT64, none, zeros);
  p.gamma = gamma;
  p.loss = loss;
  p.loss.dtype = GCE_FLOAT64;
  p.loss.data = &memory.gamma_grad;
  p.grad = array_of(memory.grad, 2, GCE_FLOAT64, no_rows, zeros);
  CHECK(gce_run(&p) == GCE_OK);

  /* No rows, along 2^50 others: the option shift must not count them. */
  p.logits = array_of(memory.logits, 3, GCE_FLOAT64, many, zeros);
  p.targets = array_of(memory.targets, 2, GCE_INT64, many, zeros);
  p.grad = array_of(memory.grad, 3, GCE_FLOAT64, many, zeros);
  p.shift = 1;
  CHECK(gce_run(&p) == GCE_OK);

  /* One row of 2^57 classes, which are the same number. */
  no_rows[0] = 1;
  no_rows[1] = (int64_t)1 << 57;
  p = good();
  p.logits.shape = no_rows;
  p.logits.strides = zeros;
  p.grad.data = NULL;
  none[0] = 1;
  p.targets.shape = p.target_log_prob.shape = p.logsumexp.shape = p.grad_weight.shape =
      p.argmax.shape = none;
  check_refused(&p, GCE_OUT_OF_MEMORY, "out of memory", __LINE__);
}

int main(void) {
  dimensions();
  lengths();
  missing();
  workers();
  pointwise();
  ignored();
  enumerations();
  overlaps();
  too_much();
  return failures;
}
