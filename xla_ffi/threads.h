// A plan on XLA's own threads.
#ifndef GCE_XLA_FFI_THREADS_H_
#define GCE_XLA_FFI_THREADS_H_

#include "ffi_abi.h"
#include "gce/gce.h"

namespace gce_xla {

// The threads of XLA's pool; 1 where it has none to lend.
int32_t most_workers(const CallFrame& frame);

// Does all of the plan's work, and returns when it is done.
void work(const CallFrame& frame, gce_plan* plan);

}  // namespace gce_xla

#endif  // GCE_XLA_FFI_THREADS_H_
