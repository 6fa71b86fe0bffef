/* Each allocation that the core makes fails once, alone and with those behind it: every call must end as
 * GCE_OUT_OF_MEMORY or do its work, leave the outputs alone until then, and keep no memory. */
#include "faults.c"

#include <stdio.h>

#include "gce/gce.h"

enum { kRows = 300, kClasses = 41, kLong = 600000, kBytes = kRows * kClasses * 8 };

static int failures = 0;

static void check(int holds, const char* kind, const char* what, long n) {
  if (holds) return;
  printf("%s, allocation %ld: %s (%s)\n", kind, n, what, gce_last_error());
  ++failures;
}

static int64_t shape[2], strides[2], row_strides[1], class_shape[1];
static double logits[kLong], targets_of_classes[kBytes / 8], weight[kClasses];
static int64_t targets[kRows];
static char grad[kBytes > kLong * 8 ? kBytes : kLong * 8];
static double loss[kRows], gamma_grad, gamma_value = 0.5;

static gce_array array(void* data, int32_t dtype, int32_t ndim, const int64_t* lengths,
                       const int64_t* steps) {
  const gce_array view = {data, lengths, steps, ndim, dtype, 0};
  return view;
}

static gce_problem problem_of(int64_t rows, int64_t classes) {
  gce_problem p;
  gce_problem_init(&p);
  shape[0] = rows;
  shape[1] = classes;
  strides[0] = classes * 8;
  strides[1] = row_strides[0] = 8;
  class_shape[0] = classes;
  p.logits = array(logits, GCE_FLOAT64, 2, shape, strides);
  p.targets = array(targets, GCE_INT64, 1, shape, row_strides);
  p.gamma = array(&gamma_value, GCE_FLOAT64, 0, NULL, NULL);
  p.loss = array(loss, GCE_FLOAT64, 0, NULL, NULL);
  p.grad = array(grad, GCE_FLOAT64, 2, shape, strides);
  return p;
}

static gce_status plan(const gce_problem* p, const gce_binary_problem* binary) {
  gce_plan* made = NULL;
  const gce_status status =
      p != NULL ? gce_plan_create(p, 2, &made) : gce_binary_plan_create(binary, 2, &made);
  if (status != GCE_OK) return made == NULL ? status : GCE_RUNTIME_ERROR;
  for (int32_t worker = gce_plan_workers(made); worker-- > 0;) gce_plan_work(made, worker);
  gce_plan_finish(made);
  return status;
}

static gce_status run_once(const gce_problem* p, const gce_binary_problem* binary, int is_planned) {
  if (is_planned) return plan(p, binary);
  return p != NULL ? gce_run(p) : gce_binary_run(binary);
}

static void sweep(const char* kind, const gce_problem* p, const gce_binary_problem* binary,
                  gce_status expected) {
  for (int way = 0; way < 4; ++way) {
    const long many = way % 2 == 0 ? 1 : 1000;
    const int is_planned = way / 2;
    check(run_once(p, binary, is_planned) == expected, kind, "another status", -1);
    const long live = fault_live();
    for (long n = 0;; ++n) {
      memset(grad, 77, sizeof grad);
      loss[0] = 77;
      fault_arm(n, many);
      const gce_status status = run_once(p, binary, is_planned);
      fault_disarm();
      check(n < 1000, kind, "no end", n);
      check(fault_live() == live, kind, "memory is kept", n);
      if (fault_count() == 0 || n == 1000) {
        check(status == expected, kind, "another status in the end", n);
        break;
      }
      if (status == expected) continue;
      check(status == GCE_OUT_OF_MEMORY, kind, "another status", n);
      check(strcmp(gce_last_error(), "out of memory") == 0, kind, "another message", n);
      check(loss[0] == 77 && grad[0] == 77, kind, "an output was written", n);
    }
  }
}

int main(void) {
  for (int i = 0; i < kLong; ++i) logits[i] = (double)(i % 7) / 7;
  for (size_t i = 0; i < kBytes / 8; ++i) targets_of_classes[i] = 0.25;
  for (int i = 0; i < kClasses; ++i) weight[i] = 1;
  for (int i = 0; i < kRows; ++i) targets[i] = i % kClasses;

  gce_problem p = problem_of(kRows, kClasses);
  sweep("plain", &p, NULL, GCE_OK);
  p.weight = array(weight, GCE_FLOAT64, 1, class_shape, row_strides);
  p.label_smoothing = 0.1;
  sweep("weights", &p, NULL, GCE_OK);
  p.shift = 1;
  sweep("shift", &p, NULL, GCE_OK);
  p.gamma_grad = array(&gamma_grad, GCE_FLOAT64, 0, NULL, NULL);
  sweep("derivative in gamma", &p, NULL, GCE_OK);
  p.softcap = 10;
  sweep("softcap", &p, NULL, GCE_OK);

  p = problem_of(kRows, kClasses);
  p.targets = array(targets_of_classes, GCE_FLOAT64, 2, shape, strides);
  p.weight = array(weight, GCE_FLOAT64, 1, class_shape, row_strides);
  sweep("probabilities", &p, NULL, GCE_OK);

  p = problem_of(kRows, kClasses);
  targets[kRows - 1] = 1000000;
  sweep("a wrong target", &p, NULL, GCE_INDEX_ERROR);
  targets[kRows - 1] = 0;
  p.label_smoothing = 1.0 / 3 + 1;
  sweep("a wrong number", &p, NULL, GCE_VALUE_ERROR);

  p = problem_of(1, kLong);
  sweep("a long row", &p, NULL, GCE_OK);

  p = problem_of(kRows, kClasses);
  gce_binary_problem binary;
  gce_binary_problem_init(&binary);
  binary.logits = p.logits;
  binary.targets = array(targets_of_classes, GCE_FLOAT64, 2, shape, strides);
  binary.gamma = p.gamma;
  binary.loss = p.loss;
  binary.grad = p.grad;
  sweep("binary", NULL, &binary, GCE_OK);

  gce_reduction reduction;
  for (long n = 0; n < 20; ++n) {
    fault_arm(n, 1000);
    const gce_status status = gce_reduction_from_name("a name that is long enough", &reduction);
    fault_disarm();
    check(status == (fault_count() > 0 ? GCE_OUT_OF_MEMORY : GCE_VALUE_ERROR), "names", "status",
          n);
  }
  return failures != 0;
}
