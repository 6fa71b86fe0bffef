/* A host in C: every function of the C ABI, from results and errors to threads. Prints what is wrong
 * and returns how much is. Knows gce.h alone. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gce/gce.h"

static int failures = 0;

static void check(int holds, const char* what, int line) {
  if (holds) return;
  printf("line %d: %s\n", line, what);
  ++failures;
}
#define CHECK(condition) check((condition), #condition, __LINE__)

static void check_error(gce_status found, gce_status expected, const char* message, int line) {
  if (found == expected && strcmp(gce_last_error(), message) == 0) return;
  printf("line %d: status %d, \"%s\"; expected %d, \"%s\"\n", line, (int)found, gce_last_error(),
         (int)expected, message);
  ++failures;
}
#define CHECK_ERROR(status, expected, message) \
  check_error((status), (expected), (message), __LINE__)

/* A batch of rows, contiguous, with memory for its results. */
typedef struct {
  int64_t shape[2];
  int64_t strides[2];
  int64_t row_stride;
  float* logits;
  float* grad;
  int64_t* targets;
  double gamma;
  float loss;
} Batch;

static Batch new_batch(int64_t rows, int64_t classes) {
  Batch b;
  unsigned state = 1;
  const size_t size = (size_t)(rows * classes);
  b.shape[0] = rows;
  b.shape[1] = classes;
  b.strides[0] = classes * (int64_t)sizeof(float);
  b.strides[1] = sizeof(float);
  b.row_stride = sizeof(int64_t);
  b.logits = malloc(size * sizeof(float));
  b.grad = malloc(size * sizeof(float));
  b.targets = malloc((size_t)rows * sizeof(int64_t));
  b.gamma = 0.3;
  b.loss = -77.0f;
  if (b.logits == NULL || b.grad == NULL || b.targets == NULL) abort();
  for (size_t i = 0; i < size; ++i) {
    state = state * 1664525u + 1013904223u;
    b.logits[i] = (float)(state >> 8) * 0x1p-21f - 4.0f; /* from -4 to 4 */
    b.grad[i] = -77.0f;
  }
  for (int64_t r = 0; r < rows; ++r) b.targets[r] = (r * 7) % classes;
  return b;
}

static void free_batch(Batch* b) {
  free(b->logits);
  free(b->grad);
  free(b->targets);
}

static gce_array array_of(void* data, int32_t dtype, int32_t ndim, const int64_t* shape,
                          const int64_t* strides) {
  gce_array a = {data, shape, strides, ndim, dtype, 0};
  return a;
}

static gce_problem problem_of(Batch* b) {
  gce_problem p;
  gce_problem_init(&p);
  p.logits = array_of(b->logits, GCE_FLOAT32, 2, b->shape, b->strides);
  p.targets = array_of(b->targets, GCE_INT64, 1, b->shape, &b->row_stride);
  p.gamma = array_of(&b->gamma, GCE_FLOAT64, 0, NULL, NULL);
  p.loss = array_of(&b->loss, GCE_FLOAT32, 0, NULL, NULL);
  p.grad = array_of(b->grad, GCE_FLOAT32, 2, b->shape, b->strides);
  return p;
}

static int is_untouched(const Batch* b) {
  for (int64_t i = 0; i < b->shape[0] * b->shape[1]; ++i) {
    if (b->grad[i] != -77.0f) return 0;
  }
  return b->loss == -77.0f;
}

/* Loss of row r by the formula, in double; its softmax into q. */
static double row_loss(const Batch* b, int64_t r, double* q) {
  const float* z = b->logits + r * b->shape[1];
  double sum = 0.0;
  for (int64_t v = 0; v < b->shape[1]; ++v) sum += exp((double)z[v]);
  for (int64_t v = 0; v < b->shape[1]; ++v) q[v] = exp((double)z[v]) / sum;
  return -log(b->gamma + (1.0 - b->gamma) * q[b->targets[r]]) / (1.0 - b->gamma);
}

/* The specification's limits: loss to a relative 1e-6, gradient to 5e-7 of the weight. */
static void check_results(const Batch* b, int line) {
  double* q = malloc((size_t)b->shape[1] * sizeof(double));
  double sum = 0.0;
  double worst = 0.0;
  if (q == NULL) abort();
  for (int64_t r = 0; r < b->shape[0]; ++r) {
    sum += row_loss(b, r, q);
    const double p = q[b->targets[r]];
    const double weight = p / (b->gamma + (1.0 - b->gamma) * p);
    for (int64_t v = 0; v < b->shape[1]; ++v) {
      const double slope = q[v] - (v == b->targets[r] ? 1.0 : 0.0);
      const double grad = (double)b->grad[r * b->shape[1] + v] * (double)b->shape[0];
      worst = fmax(worst, fabs(grad - weight * slope) / weight);
    }
  }
  const double mean = sum / (double)b->shape[0];
  check(fabs((double)b->loss - mean) <= 1e-6 * mean, "loss is right", line);
  check(worst <= 5e-7, "gradient is right", line);
  free(q);
}

static void defaults(void) {
  gce_problem p;
  memset(&p, 0xA5, sizeof(p));
  gce_problem_init(&p);
  CHECK(p.axis == -1);
  CHECK(p.reduction == GCE_REDUCTION_MEAN);
  CHECK(p.value == GCE_VALUE_PRIMITIVE);
  CHECK(p.has_ignore_index == 0);
  CHECK(p.has_normalizer == 0);
  CHECK(p.logits.data == NULL && p.gamma.data == NULL && p.loss.data == NULL &&
        p.grad.data == NULL);
}

static void names(void) {
  gce_reduction reduction = GCE_REDUCTION_NONE;
  gce_value value = GCE_VALUE_PRIMITIVE;
  CHECK(gce_reduction_from_name("sum", &reduction) == GCE_OK && reduction == GCE_REDUCTION_SUM);
  CHECK(gce_reduction_from_name("mean", &reduction) == GCE_OK && reduction == GCE_REDUCTION_MEAN);
  CHECK(gce_reduction_from_name("none", &reduction) == GCE_OK && reduction == GCE_REDUCTION_NONE);
  CHECK(gce_value_from_name("surrogate", &value) == GCE_OK && value == GCE_VALUE_SURROGATE);
  CHECK(gce_value_from_name("primitive", &value) == GCE_OK && value == GCE_VALUE_PRIMITIVE);
  CHECK_ERROR(gce_reduction_from_name("max", &reduction), GCE_VALUE_ERROR,
              "reduction = \"max\", expected \"mean\", \"sum\" or \"none\"");
  CHECK_ERROR(gce_value_from_name("", &value), GCE_VALUE_ERROR,
              "value = \"\", expected \"primitive\" or \"surrogate\"");
}

static void results(void) {
  Batch b = new_batch(37, 101);
  gce_problem p = problem_of(&b);
  CHECK(gce_run(&p) == GCE_OK);
  check_results(&b, __LINE__);
  free_batch(&b);
}

static void statistics(void) {
  Batch b = new_batch(5, 101);
  gce_problem p = problem_of(&b);
  double q[101];
  float log_p[5];
  float logsumexp[5];
  int64_t argmax[5];
  const int64_t float_stride = sizeof(float);
  b.gamma = 0.0; /* the loss is -log p */
  p.loss.data = p.grad.data = p.gamma.data = NULL;
  p.target_log_prob = array_of(log_p, GCE_FLOAT32, 1, b.shape, &float_stride);
  p.logsumexp = array_of(logsumexp, GCE_FLOAT32, 1, b.shape, &float_stride);
  p.argmax = array_of(argmax, GCE_INT64, 1, b.shape, &b.row_stride);
  CHECK(gce_run(&p) == GCE_OK);
  for (int64_t r = 0; r < 5; ++r) {
    const float* z = b.logits + r * 101;
    const double minus_log_p = row_loss(&b, r, q);
    int64_t best = 0;
    for (int64_t v = 1; v < 101; ++v) best = z[v] > z[best] ? v : best;
    CHECK(fabs((double)log_p[r] + minus_log_p) <= 1e-6 * minus_log_p);
    CHECK(fabs((double)logsumexp[r] - ((double)z[b.targets[r]] + minus_log_p)) <= 1e-6 * 8.0);
    CHECK(argmax[r] == best);
  }
  free_batch(&b);
}

/* Each error has its code and message, leaves the outputs alone, and makes no plan. */
static void expect_error(Batch* b, const gce_problem* p, gce_status status, const char* message,
                         int line) {
  gce_plan* plan = (gce_plan*)b; /* anything but NULL */
  check_error(gce_run(p), status, message, line);
  check_error(gce_plan_create(p, 2, &plan), status, message, line);
  check(plan == NULL, "no plan after an error", line);
  check(is_untouched(b), "nothing is written on an error", line);
}
#define EXPECT_ERROR(status, message) expect_error(&b, &p, (status), (message), __LINE__)

static void errors(void) {
  Batch b = new_batch(8, 10);
  gce_problem p = problem_of(&b);
  b.targets[7] = 12;
  EXPECT_ERROR(GCE_INDEX_ERROR, "targets[7] = 12, expected 0 <= target < 10");
  p.has_ignore_index = 1;
  p.ignore_index = 12;
  b.gamma = 1.5;
  EXPECT_ERROR(GCE_VALUE_ERROR, "gamma = 1.5, expected 0 <= gamma <= 1");
  b.gamma = 0.3;
  p.axis = 2;
  EXPECT_ERROR(GCE_VALUE_ERROR, "axis = 2, expected -2 <= axis < 2 for logits of shape (8, 10)");
  p.axis = -1;
  p.grad.readonly = 1;
  CHECK(gce_run(&p) == GCE_VALUE_ERROR && is_untouched(&b));
  p.grad.readonly = 0;
  p.logits.dtype = GCE_INT32;
  EXPECT_ERROR(GCE_TYPE_ERROR,
               "logits has dtype int32, expected float16, bfloat16, float32 or float64");
  p.logits.dtype = GCE_FLOAT32;
  CHECK(gce_run(&p) == GCE_OK);
  CHECK(!is_untouched(&b));
  free_batch(&b);
}

static void pointwise(void) {
  float log_p[3] = {-0.5f, -2.0f, -2.0f};
  double gamma[3] = {0.25, 0.25, -1.0};
  double threshold[3] = {0.0, 0.9, 0.0};
  float out[3] = {0.0f, 0.0f, 0.0f};
  char* args[4] = {(char*)log_p, (char*)gamma, (char*)threshold, (char*)out};
  char* two_args[3] = {(char*)log_p, (char*)gamma, (char*)out};
  const int64_t strides[4] = {sizeof(float), sizeof(double), sizeof(double), sizeof(float)};
  const int64_t two_strides[3] = {sizeof(float), sizeof(double), sizeof(float)};
  int64_t out_of_range = -1;
  const double p = exp(-0.5);
  const double s = 0.25 + 0.75 * p;
  CHECK(gce_pointwise(GCE_POINTWISE_GRAD_WEIGHT, GCE_FLOAT32, 3, args, strides, &out_of_range) ==
        GCE_OK);
  CHECK(out_of_range == 1);
  CHECK(fabs((double)out[0] - p / s) <= 1e-7);
  CHECK(out[1] == 0.9f);
  CHECK(isnan(out[2]));
  CHECK(gce_pointwise(GCE_POINTWISE_LOSS, GCE_FLOAT32, 1, args, strides, &out_of_range) == GCE_OK);
  CHECK(out_of_range == 0);
  CHECK(fabs((double)out[0] + log(s) / 0.75) <= 1e-7);
  CHECK(gce_pointwise(GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT32, 1, two_args, two_strides,
                      &out_of_range) == GCE_OK);
  CHECK(fabs((double)out[0] + (1.0 - p) / (s * 0.75) + log(s) / (0.75 * 0.75)) <= 1e-7);
}

typedef struct {
  gce_plan* plan;
  int32_t worker;
} Work;

static void* work(void* argument) {
  const Work* w = argument;
  gce_plan_work(w->plan, w->worker);
  return NULL;
}

/* The plan's results with this many threads have the bits of gce_run's. */
static void run_threads(Batch* b, int32_t threads, float loss, const float* grad) {
  enum { kMost = 16 };
  pthread_t thread[kMost];
  Work works[kMost];
  gce_plan* plan = NULL;
  gce_problem p = problem_of(b);
  const size_t bytes = (size_t)(b->shape[0] * b->shape[1]) * sizeof(float);
  memset(b->grad, 0xA5, bytes);
  b->loss = -77.0f;
  CHECK(gce_plan_create(&p, threads, &plan) == GCE_OK && plan != NULL);
  memset(&p, 0xA5, sizeof(p)); /* the struct need not outlive the call */
  const int32_t workers = gce_plan_workers(plan);
  CHECK(workers >= 1 && workers <= threads);
  CHECK(threads == 1 || workers > 1); /* or this test tests nothing */
  for (int32_t i = 0; i < workers; ++i) {
    works[i].plan = plan;
    works[i].worker = i;
    if (pthread_create(&thread[i], NULL, work, &works[i]) != 0) abort();
  }
  for (int32_t i = 0; i < workers; ++i) pthread_join(thread[i], NULL);
  gce_plan_finish(plan);
  CHECK(memcmp(&b->loss, &loss, sizeof(loss)) == 0);
  CHECK(memcmp(b->grad, grad, bytes) == 0);
}

static void threads(void) {
  Batch b = new_batch(2000, 257); /* half a million logits: several chunks */
  gce_problem p = problem_of(&b);
  const size_t bytes = (size_t)(b.shape[0] * b.shape[1]) * sizeof(float);
  CHECK(gce_run(&p) == GCE_OK);
  const float loss = b.loss;
  float* grad = malloc(bytes);
  if (grad == NULL) abort();
  memcpy(grad, b.grad, bytes);
  for (int32_t n = 1; n <= 8; ++n) run_threads(&b, n, loss, grad);

  /* One thread as all workers, the last one first. */
  gce_plan* plan = NULL;
  memset(b.grad, 0xA5, bytes);
  CHECK(gce_plan_create(&p, 3, &plan) == GCE_OK);
  for (int32_t i = gce_plan_workers(plan) - 1; i >= 0; --i) gce_plan_work(plan, i);
  gce_plan_finish(plan);
  CHECK(memcmp(&b.loss, &loss, sizeof(loss)) == 0);
  CHECK(memcmp(b.grad, grad, bytes) == 0);
  gce_plan_finish(NULL);
  free(grad);
  free_batch(&b);
}

static void* fail_elsewhere(void* argument) {
  gce_value value = GCE_VALUE_PRIMITIVE;
  (void)argument;
  (void)gce_value_from_name("elsewhere", &value);
  return NULL;
}

static void errors_of_threads(void) {
  pthread_t other;
  gce_value value = GCE_VALUE_PRIMITIVE;
  CHECK(gce_value_from_name("here", &value) == GCE_VALUE_ERROR);
  if (pthread_create(&other, NULL, fail_elsewhere, NULL) != 0) abort();
  pthread_join(other, NULL);
  CHECK(strstr(gce_last_error(), "\"here\"") != NULL);
}

static void isas(void) {
  int32_t supported = 0;
  const char* name = NULL;
  const char* in_use = NULL;
  int32_t i = 0;
  for (; (name = gce_isa_name(i, &supported)) != NULL; ++i) {
    if (!supported) {
      CHECK(gce_isa_select(name) == GCE_RUNTIME_ERROR);
      continue;
    }
    CHECK(gce_isa_select(name) == GCE_OK);
    CHECK(gce_isa_in_use(&in_use) == GCE_OK && strcmp(in_use, name) == 0);
    printf("on %s\n", name);
    results();
    statistics();
    errors();
    pointwise();
    threads();
  }
  CHECK(i >= 1);
  CHECK(gce_isa_name(-1, &supported) == NULL);
  CHECK(gce_isa_select("sse9") == GCE_RUNTIME_ERROR);
  CHECK(strncmp(gce_last_error(), "isa = sse9, expected one of ", 28) == 0);
  CHECK(gce_isa_select(NULL) == GCE_OK);
}

int main(void) {
  defaults();
  names();
  errors_of_threads();
  isas();
  return failures > 100 ? 100 : failures;
}
