/* A host in C: every function of the C ABI, from results and errors to threads. Prints what is wrong
 * and returns how much is. Knows gce.h alone. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checks.h"
#include "gce/gce.h"

/* A batch of rows, contiguous, with memory for its results. */
typedef struct {
  int64_t shape[2];
  int64_t strides[2];
  int64_t row_stride;
  float* logits;
  float* grad;
  int64_t* targets;
  double gamma;
  double epsilon;
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
  b.epsilon = 0.0;
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

static gce_problem problem_of(Batch* b) {
  gce_problem p;
  gce_problem_init(&p);
  p.logits = array_of(b->logits, 2, GCE_FLOAT32, b->shape, b->strides);
  p.targets = array_of(b->targets, 1, GCE_INT64, b->shape, &b->row_stride);
  p.gamma = array_of(&b->gamma, 0, GCE_FLOAT64, NULL, NULL);
  p.label_smoothing = b->epsilon;
  p.loss = array_of(&b->loss, 0, GCE_FLOAT32, NULL, NULL);
  p.grad = array_of(b->grad, 2, GCE_FLOAT32, b->shape, b->strides);
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
  double smooth = 0.0;
  for (int64_t v = 0; v < b->shape[1]; ++v) sum += exp((double)z[v]);
  for (int64_t v = 0; v < b->shape[1]; ++v) {
    q[v] = exp((double)z[v]) / sum;
    smooth -= log(q[v]) / (double)b->shape[1];
  }
  const double own = -log(b->gamma + (1.0 - b->gamma) * q[b->targets[r]]) / (1.0 - b->gamma);
  return (1.0 - b->epsilon) * own + b->epsilon * smooth;
}

/* The specification's limits: loss to a relative 1e-6, gradient to 5e-7 of the weight, which with label
 * smoothing is (1 - epsilon) weight + epsilon. */
static void check_results(const Batch* b, int line) {
  double* q = malloc((size_t)b->shape[1] * sizeof(double));
  double sum = 0.0;
  double worst = 0.0;
  if (q == NULL) abort();
  for (int64_t r = 0; r < b->shape[0]; ++r) {
    sum += row_loss(b, r, q);
    const double p = q[b->targets[r]];
    const double weight = (1.0 - b->epsilon) * p / (b->gamma + (1.0 - b->gamma) * p);
    for (int64_t v = 0; v < b->shape[1]; ++v) {
      const double slope = weight * (q[v] - (v == b->targets[r] ? 1.0 : 0.0)) +
                           b->epsilon * (q[v] - 1.0 / (double)b->shape[1]);
      const double grad = (double)b->grad[r * b->shape[1] + v] * (double)b->shape[0];
      worst = fmax(worst, fabs(grad - slope) / (weight + b->epsilon));
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
  CHECK(p.label_smoothing == 0.0);
  CHECK(p.z_loss == 0.0 && p.softcap == 0.0);
  CHECK(p.shift == 0 && p.gauss_newton == 0 && p.shard == GCE_SHARD_NONE);
  CHECK(p.vector.data == NULL && p.shard_stats.data == NULL);
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
  const double epsilons[] = {0.0, 0.1, 1.0};
  Batch b = new_batch(37, 101);
  for (int i = 0; i < 3; ++i) {
    b.epsilon = epsilons[i];
    gce_problem p = problem_of(&b);
    CHECK(gce_run(&p) == GCE_OK);
    check_results(&b, __LINE__);
  }
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
  p.target_log_prob = array_of(log_p, 1, GCE_FLOAT32, b.shape, &float_stride);
  p.logsumexp = array_of(logsumexp, 1, GCE_FLOAT32, b.shape, &float_stride);
  p.argmax = array_of(argmax, 1, GCE_INT64, b.shape, &b.row_stride);
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
  p.label_smoothing = 1.5;
  EXPECT_ERROR(GCE_VALUE_ERROR, "label_smoothing = 1.5, expected 0 <= label_smoothing <= 1");
  p.label_smoothing = NAN;
  EXPECT_ERROR(GCE_VALUE_ERROR, "label_smoothing = nan, expected 0 <= label_smoothing <= 1");
  p.label_smoothing = 0.0;
  p.z_loss = -1.0;
  EXPECT_ERROR(GCE_VALUE_ERROR, "z_loss = -1, expected a finite number >= 0");
  p.z_loss = 0.0;
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

/* What Python cannot ask for. */
static void errors_of_products_and_shards(void) {
  Batch b = new_batch(8, 10);
  gce_problem p = problem_of(&b);
  const int64_t shape[2] = {8, GCE_SHARD_FIELDS};
  const int64_t strides[2] = {GCE_SHARD_FIELDS * sizeof(double), sizeof(double)};
  double stats[8 * GCE_SHARD_FIELDS];
  for (int i = 0; i < 8 * GCE_SHARD_FIELDS; ++i) stats[i] = -77.0;
  p.gauss_newton = 1;
  EXPECT_ERROR(GCE_VALUE_ERROR, "gauss_newton = 1, expected 0 where vector is missing");
  p.gauss_newton = 0;
  p.shard = 3;
  EXPECT_ERROR(GCE_VALUE_ERROR, "shard = 3, expected a gce_shard");
  p.shard = GCE_SHARD_MERGED;
  p.all_classes = INT64_MIN;
  EXPECT_ERROR(
      GCE_VALUE_ERROR,
      "first_class = 0 and num_classes = -9223372036854775808, expected 0 <= first_class <= "
      "num_classes - 10 for a slice of 10 classes");
  p.all_classes = 20;
  EXPECT_ERROR(GCE_VALUE_ERROR, "stats has shape (), expected that of targets, (8,), and 12 more");
  p.shard_stats = array_of(stats, 2, GCE_FLOAT64, shape, strides);
  p.vector = p.logits;
  EXPECT_ERROR(GCE_VALUE_ERROR, "vector is given, expected none for a slice of the classes");
  p.vector.data = NULL;
  p.softcap = 3.0;
  EXPECT_ERROR(GCE_VALUE_ERROR,
               "softcap = 3, expected none for a slice of the classes: cap its logits first");
  p.softcap = 0.0;
  p.shard = GCE_SHARD_PARTIAL;
  EXPECT_ERROR(GCE_VALUE_ERROR,
               "another output than shard_stats is given, expected none before slices are merged");
  p.loss.data = p.grad.data = NULL;
  p.shard_stats.readonly = 1;
  EXPECT_ERROR(GCE_VALUE_ERROR, "stats is read-only, expected a writeable array");
  p.shard_stats.readonly = 0;
  b.targets[3] = 20;
  EXPECT_ERROR(GCE_INDEX_ERROR, "targets[3] = 20, expected 0 <= target < 20");
  CHECK(stats[0] == -77.0);
  b.targets[3] = 19; /* in another slice */
  CHECK(gce_run(&p) == GCE_OK);
  CHECK(isinf(stats[3 * GCE_SHARD_FIELDS + GCE_SHARD_TARGET_LOGIT]));
  CHECK(stats[GCE_SHARD_TARGET_LOGIT] == (double)b.logits[b.targets[0]]);
  free_batch(&b);
}

/* Elements of the sigmoid form, contiguous, of two axes, with memory for their results. */
enum { kLabels = 7, kElements = 9000 * kLabels };
typedef struct {
  int64_t shape[2];
  int64_t strides[2];
  float* logits;
  float* targets;
  float* grad;
  float pos_weight[kLabels];
  double gamma;
  float loss;
} Labels;

static Labels new_labels(void) {
  Labels l = {{kElements / kLabels, kLabels},
              {kLabels * sizeof(float), sizeof(float)},
              malloc(kElements * sizeof(float)),
              malloc(kElements * sizeof(float)),
              malloc(kElements * sizeof(float)),
              {0.0f},
              0.3,
              -77.0f};
  if (l.logits == NULL || l.targets == NULL || l.grad == NULL) abort();
  for (int i = 0; i < kElements; ++i) {
    l.logits[i] = (float)((i * 37) % 401 - 200) * 0.02f;
    l.targets[i] = (float)(i % 5) * 0.25f;
    l.grad[i] = -77.0f;
  }
  for (int v = 0; v < kLabels; ++v) l.pos_weight[v] = 0.5f + (float)v;
  return l;
}

static void free_labels(Labels* l) {
  free(l->logits);
  free(l->targets);
  free(l->grad);
}

static gce_binary_problem problem_of_labels(Labels* l) {
  gce_binary_problem p;
  memset(&p, 0xA5, sizeof(p));
  gce_binary_problem_init(&p);
  p.logits = array_of(l->logits, 2, GCE_FLOAT32, l->shape, l->strides);
  p.targets = array_of(l->targets, 2, GCE_FLOAT32, l->shape, l->strides);
  p.pos_weight = array_of(l->pos_weight, 1, GCE_FLOAT32, &l->shape[1], &l->strides[1]);
  p.gamma = array_of(&l->gamma, 0, GCE_FLOAT64, NULL, NULL);
  p.loss = array_of(&l->loss, 0, GCE_FLOAT32, NULL, NULL);
  p.grad = array_of(l->grad, 2, GCE_FLOAT32, l->shape, l->strides);
  return p;
}

static void binary_results(const Labels* l) {
  const double delta = 1.0 - l->gamma;
  double sum = 0.0;
  double worst = 0.0;
  for (int i = 0; i < kElements; ++i) {
    const double p1 = 1.0 / (1.0 + exp(-(double)l->logits[i]));
    const double p0 = 1.0 - p1;
    const double positive = (double)(l->pos_weight[i % kLabels] * l->targets[i]);
    const double negative = 1.0 - (double)l->targets[i];
    const double s1 = l->gamma + delta * p1;
    const double s0 = l->gamma + delta * p0;
    const double slope = negative * (p0 / s0) * p1 - positive * (p1 / s1) * p0;
    sum -= (positive * log(s1) + negative * log(s0)) / delta;
    worst = fmax(worst, fabs((double)l->grad[i] * kElements - slope) / (positive + negative));
  }
  CHECK(fabs((double)l->loss - sum / kElements) <= 1e-6 * sum / kElements);
  CHECK(worst <= 5e-7);
}

static void binary(void) {
  Labels l = new_labels();
  gce_binary_problem p = problem_of_labels(&l);
  gce_plan* plan = (gce_plan*)&l; /* anything but NULL */
  l.targets[kElements - 1] = 1.5f;
  const char* message = "targets[8999, 6] = 1.5, expected 0 <= target <= 1";
  CHECK_ERROR(gce_binary_run(&p), GCE_VALUE_ERROR, message);
  CHECK_ERROR(gce_binary_plan_create(&p, 2, &plan), GCE_VALUE_ERROR, message);
  CHECK(plan == NULL && l.loss == -77.0f && l.grad[0] == -77.0f);
  l.targets[kElements - 1] = 1.0f;
  p.gamma.data = NULL;
  CHECK_ERROR(gce_binary_run(&p), GCE_VALUE_ERROR,
              "gamma is missing, expected a number from 0 to 1, or one per element");
  p = problem_of_labels(&l);
  CHECK(gce_binary_run(&p) == GCE_OK);
  binary_results(&l);
  /* In place, one thread as all workers, the last one first: the same bits. */
  const float loss = l.loss;
  float* grad = malloc(kElements * sizeof(float));
  if (grad == NULL) abort();
  memcpy(grad, l.grad, kElements * sizeof(float));
  p.grad = p.logits;
  CHECK(gce_binary_plan_create(&p, 5, &plan) == GCE_OK);
  CHECK(gce_plan_workers(plan) == 5);
  for (int32_t i = 4; i >= 0; --i) gce_plan_work(plan, i);
  gce_plan_finish(plan);
  CHECK(memcmp(&l.loss, &loss, sizeof(loss)) == 0);
  CHECK(memcmp(l.logits, grad, kElements * sizeof(float)) == 0);
  free(grad);
  free_labels(&l);
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

/* The 16-bit float with these bits, without sign. Infinity counts as the number that would be next. */
static double number_of_bits(int32_t dtype, int32_t bits) {
  const int32_t digits = dtype == GCE_FLOAT16 ? 10 : 7;
  const int32_t least = (dtype == GCE_FLOAT16 ? -14 : -126) - digits;
  const int32_t exponent = bits >> digits;
  const int32_t fraction = bits - (exponent << digits);
  if (exponent == 0) return ldexp(fraction, least);
  return ldexp(fraction + (1 << digits), least + exponent - 1);
}

/* A row whose loss is half its sample weight, whatever that is: two equal logits at gamma = 1. */
static gce_problem halves_of(const double* sample_weight, const int64_t* rows, int32_t dtype) {
  static uint16_t logit = 0;
  static int64_t target = 0;
  static double one = 1.0;
  static int64_t shape[2] = {0, 2};
  static const int64_t same[2] = {0, 0};
  static const int64_t stride = sizeof(double);
  gce_problem p;
  gce_problem_init(&p);
  shape[0] = *rows;
  p.logits = array_of(&logit, 2, dtype, shape, same);
  p.targets = array_of(&target, 1, GCE_INT64, shape, same);
  p.gamma = array_of(&one, 0, GCE_FLOAT64, NULL, NULL);
  p.sample_weight = array_of((void*)sample_weight, 1, GCE_FLOAT64, shape, &stride);
  return p;
}

/* The loss as a 16-bit float: of each row, and as the mean of that row alone. */
static void check_narrow(double loss, int32_t dtype, uint16_t found, uint16_t expected) {
  const int64_t one = 1;
  const double sample_weight = 2.0 * loss;
  uint16_t mean = 0;
  gce_problem p = halves_of(&sample_weight, &one, dtype);
  if (found != expected) {
    printf("%a as dtype %d: 0x%04x, expected 0x%04x\n", loss, (int)dtype, found, expected);
    ++failures;
  }
  p.has_normalizer = 1;
  p.normalizer = 1.0;
  p.loss = array_of(&mean, 0, dtype, NULL, NULL);
  CHECK(gce_run(&p) == GCE_OK && mean == found);
}

enum { kPerNumber = 4 };

/* A number of 16 bits, the tie between it and the next, and the floats on either side of the tie. */
static void losses_near(int32_t dtype, int32_t bits, double* losses, uint16_t* expected) {
  const double tie = (number_of_bits(dtype, bits) + number_of_bits(dtype, bits + 1)) / 2.0;
  const int32_t rounded[kPerNumber] = {bits, bits, bits + (bits & 1), bits + 1}; /* ties to even */
  const int negative = bits / 2 % 2;
  losses[0] = number_of_bits(dtype, bits);
  losses[1] = nextafterf((float)tie, 0.0f);
  losses[2] = tie;
  losses[3] = nextafterf((float)tie, INFINITY);
  for (int i = 0; i < kPerNumber; ++i) {
    if (negative) losses[i] = -losses[i];
    expected[i] = (uint16_t)(rounded[i] | (negative ? 0x8000 : 0));
  }
}

/* Losses of 16 bits are the float32 ones rounded to nearest even: for every number there is. */
static void narrow_losses(int32_t dtype) {
  const int32_t infinity = dtype == GCE_FLOAT16 ? 0x7c00 : 0x7f80;
  const int64_t rows = (int64_t)kPerNumber * infinity;
  const int64_t strides[2] = {sizeof(uint16_t), sizeof(float)};
  double* losses = malloc((size_t)rows * sizeof(double));
  double* weights = malloc((size_t)rows * sizeof(double));
  uint16_t* expected = malloc((size_t)rows * sizeof(uint16_t));
  uint16_t* found = malloc((size_t)rows * sizeof(uint16_t));
  float* wide = malloc((size_t)rows * sizeof(float));
  if (!losses || !weights || !expected || !found || !wide) abort();
  for (int32_t bits = 0; bits < infinity; ++bits) {
    losses_near(dtype, bits, losses + kPerNumber * bits, expected + kPerNumber * bits);
  }
  for (int64_t r = 0; r < rows; ++r) weights[r] = 2.0 * losses[r];
  gce_problem p = halves_of(weights, &rows, dtype);
  p.reduction = GCE_REDUCTION_NONE;
  p.loss = array_of(found, 1, dtype, &rows, &strides[0]);
  CHECK(gce_run(&p) == GCE_OK);
  p.loss = array_of(wide, 1, GCE_FLOAT32, &rows, &strides[1]);
  CHECK(gce_run(&p) == GCE_OK);
  for (int64_t r = 0; r < rows; ++r) {
    CHECK((double)wide[r] == losses[r]); /* so that what is rounded is a float */
    if (found[r] != expected[r] || r % 97 == 0) {
      check_narrow(losses[r], dtype, found[r], expected[r]);
    }
  }
  free(losses);
  free(weights);
  free(expected);
  free(found);
  free(wide);
}

/* Infinities, NaN, and what is rounded twice: to float, where it becomes a tie, and to even. */
static void unusual_narrow_losses(int32_t dtype) {
  const int32_t digits = dtype == GCE_FLOAT16 ? 10 : 7;
  const uint16_t infinity = dtype == GCE_FLOAT16 ? 0x7c00 : 0x7f80;
  const uint16_t one = dtype == GCE_FLOAT16 ? 0x3c00 : 0x3f80;
  const int64_t rows = 6;
  const int64_t stride = sizeof(uint16_t);
  const double tie = 1.0 + ldexp(1.0, -digits - 1);
  double weights[6] = {INFINITY, -INFINITY, 2e39, NAN, 2.0 * tie + 0x1p-40, -0x1p-200};
  uint16_t found[6];
  gce_problem p = halves_of(weights, &rows, dtype);
  p.reduction = GCE_REDUCTION_NONE;
  p.loss = array_of(found, 1, dtype, &rows, &stride);
  CHECK(gce_run(&p) == GCE_OK);
  CHECK(found[0] == infinity);
  CHECK(found[1] == (infinity | 0x8000));
  CHECK(found[2] == infinity);
  CHECK((found[3] & 0x7fff) > infinity);
  CHECK(found[4] == one);
  CHECK(found[5] == 0x8000);
}

/* No dtype of the loss but the logits' own and the one that results are computed in. */
static void wrong_loss_dtypes(void) {
  const int64_t one = 1;
  const double weight = 1.0;
  double loss = -77.0;
  gce_problem p = halves_of(&weight, &one, GCE_FLOAT16);
  p.loss = array_of(&loss, 0, GCE_FLOAT64, NULL, NULL);
  CHECK_ERROR(gce_run(&p), GCE_TYPE_ERROR,
              "loss has dtype float64, expected float32, or the dtype of logits");
  p.loss.dtype = GCE_BFLOAT16;
  CHECK_ERROR(gce_run(&p), GCE_TYPE_ERROR,
              "loss has dtype bfloat16, expected float32, or the dtype of logits");
  p.loss = array_of(&loss, 1, GCE_FLOAT16, &one, &one);
  p.reduction = GCE_REDUCTION_NONE;
  p.logits.dtype = GCE_BFLOAT16;
  CHECK_ERROR(gce_run(&p), GCE_TYPE_ERROR,
              "loss has dtype float16, expected float32, or the dtype of logits");
  p.loss.data = NULL;
  p.logsumexp = array_of(&loss, 1, GCE_BFLOAT16, &one, &one); /* statistics have no such choice */
  CHECK_ERROR(gce_run(&p), GCE_TYPE_ERROR, "logsumexp has dtype bfloat16, expected float32");
  CHECK(loss == -77.0);
}

static void losses_of_16_bits(void) {
  narrow_losses(GCE_FLOAT16);
  narrow_losses(GCE_BFLOAT16);
  unusual_narrow_losses(GCE_FLOAT16);
  unusual_narrow_losses(GCE_BFLOAT16);
  wrong_loss_dtypes();
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

static void threads_share(int64_t rows, int64_t classes) {
  Batch b = new_batch(rows, classes);
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

static void threads(void) {
  threads_share(8000, 257);  /* several chunks */
  threads_share(1, 2000003); /* one row, several segments */
  threads_share(3, 700001);
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
    errors_of_products_and_shards();
    losses_of_16_bits();
    pointwise();
    binary();
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
