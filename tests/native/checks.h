/* For hosts in C: arrays, and checks. Each check that does not hold is printed, and counted in `failures`. */
#ifndef GCE_TESTS_CHECKS_H_
#define GCE_TESTS_CHECKS_H_

#include <stdio.h>
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

static inline gce_array array_of(void* data, int32_t ndim, int32_t dtype, const int64_t* lengths,
                                 const int64_t* steps) {
  const gce_array array = {data, lengths, steps, ndim, dtype, 0};
  return array;
}

#endif /* GCE_TESTS_CHECKS_H_ */
