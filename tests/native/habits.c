/* A host with habits of its own: it traps floating-point errors, rounds down, flushes subnormal numbers, calls while its
 * threads and the process end, and frees shapes as soon as there is a plan. Prints what is wrong and returns how much is. */
#define _GNU_SOURCE /* feenableexcept */
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "checks.h"
#include "gce/gce.h"

enum { kRows = 4, kClasses = 8 };

/* All that a problem reads, and then all that it writes. */
typedef struct {
  float logits[kRows * kClasses], weight[kClasses], sample_weight[kRows];
  double gamma;
  int64_t targets[kRows];
  float loss, grad[kRows * kClasses];
} Memory;

static int64_t shape[] = {kRows, kClasses}, strides[] = {4 * kClasses, 4};
static int64_t of_floats[] = {4}, of_integers[] = {8}, classes[] = {kClasses};

static void fill(Memory* m) {
  memset(m, 0, sizeof(*m));
  for (int i = 0; i < kRows * kClasses; ++i) m->logits[i] = (float)(i * 37 % 17) / 3;
  for (int i = 0; i < kClasses; ++i) m->weight[i] = (float)(i + 1) / 7;
  for (int i = 0; i < kRows; ++i) m->sample_weight[i] = (float)(i + 1) / 3;
  for (int i = 0; i < kRows; ++i) m->targets[i] = i;
  m->gamma = 0.3;
}

static gce_problem problem_of(Memory* m) {
  gce_problem p;
  gce_problem_init(&p);
  p.logits = array_of(m->logits, 2, GCE_FLOAT32, shape, strides);
  p.targets = array_of(m->targets, 1, GCE_INT64, shape, of_integers);
  p.gamma = array_of(&m->gamma, 0, GCE_FLOAT64, NULL, NULL);
  p.weight = array_of(m->weight, 1, GCE_FLOAT32, classes, of_floats);
  p.sample_weight = array_of(m->sample_weight, 1, GCE_FLOAT32, shape, of_floats);
  p.loss = array_of(&m->loss, 0, GCE_FLOAT32, NULL, NULL);
  p.grad = array_of(m->grad, 2, GCE_FLOAT32, shape, strides);
  return p;
}

/* --- how floats are computed ------------------------------------------------------------------ */

typedef enum { kAsUsual, kTraps, kDown, kUp, kFlush, kHabits } Habit;

static uint64_t control(void) {
#if defined(__x86_64__)
  return _mm_getcsr(); /* with what was raised */
#elif defined(__aarch64__)
  uint64_t word;
  __asm__ volatile("mrs %0, fpcr" : "=r"(word));
  return word;
#else
  return (uint64_t)fegetround();
#endif
}

static void take_up(Habit habit) {
  fesetenv(FE_DFL_ENV);
  if (habit == kTraps) feenableexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW);
  if (habit == kDown) fesetround(FE_DOWNWARD);
  if (habit == kUp) fesetround(FE_UPWARD);
#if defined(__x86_64__)
  if (habit == kFlush) _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
  if (habit == kFlush) __asm__ volatile("msr fpcr, %0" : : "r"(control() | (1u << 24)));
#endif
}

enum { kCases = 14 };

/* What makes a trap, a rounding or a subnormal number of its own; status and outputs. */
static gce_status run_case(int which, Memory* m) {
  gce_problem p = problem_of(m);
  switch (which) {
    case 1:
      m->gamma = NAN;
      break;
    case 2:
      p.normalizer = NAN, p.has_normalizer = 1;
      break;
    case 3:
      p.label_smoothing = NAN;
      break;
    case 4:
      p.z_loss = NAN;
      break;
    case 5:
      p.softcap = NAN;
      break;
    case 6:
      m->logits[0] = -INFINITY, m->gamma = 0;
      break;
    case 7:
      m->weight[0] = INFINITY;
      break;
    case 8:
      m->sample_weight[0] = m->sample_weight[1] = 3e38f, p.reduction = GCE_REDUCTION_SUM;
      break;
    case 9:
      for (int i = 0; i < kClasses; ++i) m->weight[i] = 1e-40f;
      break;
    case 10:
      m->gamma = 1e-310, m->logits[0] = -INFINITY;
      break;
    case 11:
      m->gamma = -1e-310;
      break;
    case 12:
      p.normalizer = 3e38, p.has_normalizer = 1;
      break;
    case 13:
      p.softcap = 1e-310;
      break;
    default:
      break;
  }
  return gce_run(&p);
}

static void floats(void) {
  for (int which = 0; which < kCases; ++which) {
    Memory usual;
    fill(&usual);
    take_up(kAsUsual);
    const gce_status expected = run_case(which, &usual);
    for (int habit = kAsUsual; habit < kHabits; ++habit) {
      Memory m;
      fill(&m);
      take_up((Habit)habit);
      const uint64_t before = control();
      const gce_status found = run_case(which, &m);
      const uint64_t after = control();
      take_up(kAsUsual);
      const int same = found == expected && before == after && memcmp(&m, &usual, sizeof(m)) == 0;
      if (!same)
        printf("case %d, habit %d: status %d, expected %d\n", which, habit, found, expected);
      failures += !same;
    }
  }
}

static void elementwise(void) {
  const double log_p[] = {-INFINITY, NAN, -800, -745, -1e-310, -0.3};
  double usual[3 * 6];
  for (int habit = kAsUsual; habit < kHabits; ++habit) {
    double found[3 * 6];
    for (int i = 0; i < 3 * 6; ++i) {
      double l = log_p[i % 6], gamma = 1e-310, threshold = 0;
      char* args[] = {(char*)&l, (char*)&gamma, (char*)&threshold, (char*)&found[i]};
      int64_t steps[] = {8, 8, 8, 8}, out_of_range = 0;
      if (i / 6 == GCE_POINTWISE_GAMMA_GRAD) args[2] = args[3];
      take_up((Habit)habit);
      const gce_status status = gce_pointwise(i / 6, GCE_FLOAT64, 1, args, steps, &out_of_range);
      take_up(kAsUsual);
      CHECK(status == GCE_OK && out_of_range == 0);
    }
    if (habit == kAsUsual) memcpy(usual, found, sizeof(usual));
    CHECK(memcmp(usual, found, sizeof(usual)) == 0);
  }
}

/* Each element after the one before, whatever the distance between them. */
static void follow_each_other(void) {
  for (int64_t step = -12; step <= 12; ++step) {
    unsigned char at_once[400], one_by_one[400];
    for (int i = 0; i < 50; ++i) {
      const double number = (double)(i * 7 % 50) / 50;
      memcpy(at_once + 8 * i, &number, sizeof(number));
    }
    memcpy(one_by_one, at_once, sizeof(at_once));
    int64_t steps[] = {8, step, 8, step}, out_of_range = 0;
    char* args[] = {(char*)at_once, (char*)at_once + 200, (char*)at_once + 8, (char*)at_once + 200};
    CHECK(gce_pointwise(GCE_POINTWISE_LOSS, GCE_FLOAT64, 12, args, steps, &out_of_range) == GCE_OK);
    for (int i = 0; i < 12; ++i) {
      char* one[4];
      for (int a = 0; a < 4; ++a)
        one[a] = args[a] - (char*)at_once + (char*)one_by_one + i * steps[a];
      CHECK(gce_pointwise(GCE_POINTWISE_LOSS, GCE_FLOAT64, 1, one, steps, &out_of_range) == GCE_OK);
    }
    CHECK(memcmp(at_once, one_by_one, sizeof(at_once)) == 0);
  }
}

/* --- when it calls ---------------------------------------------------------------------------- */

static pthread_key_t key;

/* Plans of all sizes that a block may have, an error, and what the host has beside them. */
static void call_late(void) {
  for (size_t size = 5000; size < 15000; size += 8) {
    unsigned char* own = malloc(size);
    memset(own, 0x5A, size);
    Memory m;
    fill(&m);
    gce_problem p = problem_of(&m);
    gce_plan* plan = NULL;
    CHECK(gce_plan_create(&p, 1, &plan) == GCE_OK);
    gce_plan_work(plan, 0);
    gce_plan_finish(plan);
    size_t i = 0;
    while (i < size && own[i] == 0x5A) ++i;
    CHECK(i == size);
    free(own);
  }
  gce_reduction reduction;
  CHECK_ERROR(gce_reduction_from_name("late", &reduction), GCE_VALUE_ERROR,
              "reduction = \"late\", expected \"mean\", \"sum\" or \"none\"");
  char text[2000];
  memset(text, 'x', sizeof(text) - 1);
  text[sizeof(text) - 1] = 0;
  CHECK(gce_reduction_from_name(text, &reduction) == GCE_VALUE_ERROR);
  CHECK(strncmp(gce_last_error(), "reduction = \"xxx", 16) == 0);
  CHECK(gce_plan_create(NULL, 1, NULL) == GCE_VALUE_ERROR);
}

static void at_end_of_thread(void* plan) {
  gce_plan_work(plan, 0);
  gce_plan_finish(plan);
  call_late();
}

static void call_early(gce_plan** plan, Memory* m) {
  gce_problem p = problem_of(m);
  p.reduction = 77;
  CHECK(gce_run(&p) == GCE_VALUE_ERROR);
  p.reduction = GCE_REDUCTION_MEAN;
  CHECK(gce_run(&p) == GCE_OK);
  CHECK(gce_plan_create(&p, 1, plan) == GCE_OK);
}

static void* thread(void* memory) {
  gce_plan* plan = NULL;
  call_early(&plan, memory);
  gce_plan_finish(plan);
  call_early(&plan, memory);
  pthread_setspecific(key, plan);
  return NULL;
}

static void at_exit(void) {
  call_late();
  if (failures == 0) return;
  fflush(stdout);
  _exit(failures); /* that of main was no news yet */
}

/* --- what it frees ---------------------------------------------------------------------------- */

static int64_t* numbers(const int64_t* from, size_t n) {
  int64_t* copy = malloc(n * sizeof(*copy));
  memcpy(copy, from, n * sizeof(*copy));
  return copy;
}

static void shapes(int32_t shift, int32_t reduction) {
  Memory m;
  fill(&m);
  float losses[kRows];
  gce_problem* p = malloc(sizeof(*p));
  *p = problem_of(&m);
  p->shift = shift;
  p->reduction = reduction;
  if (reduction == GCE_REDUCTION_NONE) {
    p->loss = array_of(losses, 1, GCE_FLOAT32, shape, of_floats);
  }
  gce_array* const arrays[] = {&p->logits,        &p->targets, &p->weight,
                               &p->sample_weight, &p->loss,    &p->grad};
  enum { kArrays = sizeof(arrays) / sizeof(*arrays) };
  int64_t* own[2 * kArrays] = {0};
  for (int a = 0; a < kArrays; ++a) {
    if (arrays[a]->ndim == 0) continue;
    const size_t n = (size_t)arrays[a]->ndim;
    arrays[a]->shape = own[2 * a] = numbers(arrays[a]->shape, n);
    arrays[a]->strides = own[2 * a + 1] = numbers(arrays[a]->strides, n);
  }
  gce_plan* plan = NULL;
  CHECK(gce_plan_create(p, 1, &plan) == GCE_OK);
  for (int i = 0; i < 2 * kArrays; ++i) {
    if (own[i] != NULL) memset(own[i], 0x77, 8);
    free(own[i]);
  }
  free(p);
  gce_plan_work(plan, 0);
  gce_plan_finish(plan);
}

int main(void) {
  floats();
  elementwise();
  follow_each_other();
  for (int32_t reduction = GCE_REDUCTION_NONE; reduction <= GCE_REDUCTION_SUM; ++reduction) {
    shapes(0, reduction);
    shapes(1, reduction);
  }
  Memory m, of_thread;
  fill(&m);
  fill(&of_thread);
  pthread_t id;
  pthread_key_create(&key, at_end_of_thread);
  pthread_create(&id, NULL, thread, &of_thread);
  pthread_join(id, NULL);
  atexit(at_exit);
  gce_plan* plan = NULL;
  call_early(&plan, &m);
  gce_plan_finish(plan);
  return failures;
}
