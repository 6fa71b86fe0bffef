/* What this machine can stream, for benchmarks to compare with. Not part of the ABI of gce.h: it may
 * change at any time, and what it does not check is the caller's to see to. */
#ifndef GCE_LIMITS_H_
#define GCE_LIMITS_H_

#include "gce/gce.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum gce_limit_op {
  GCE_LIMIT_READ,        /* *value = the largest of from; -infinity of none */
  GCE_LIMIT_READ_CACHED, /* the same, without prefetching */
  GCE_LIMIT_COPY, /* to = from, which do not overlap; non-temporal stores, if the ISA has them */
  GCE_LIMIT_COPY_CACHED, /* the same with ordinary stores, without prefetching */
  GCE_LIMIT_SCALE        /* to = *value * to */
} gce_limit_op;

/* One pass over n floats on the calling thread; from and to are aligned to a float. */
GCE_API gce_status gce_limit(gce_limit_op op, float* to, const float* from, int64_t n,
                             float* value);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* GCE_LIMITS_H_ */
