// Which ISA's kernels run: the best that this CPU has, or the one that GCE_FORCE_ISA names.
#ifndef GCE_CORE_DISPATCH_H_
#define GCE_CORE_DISPATCH_H_

#include <cstdint>

#include "kernel_table.h"

namespace gce {

// The kernels in use; chosen at the first call. Throws Error if GCE_FORCE_ISA asks for what is not there.
const KernelTable& kernels();

// nullptr: back to the default choice.
void select_isa(const char* name);

// The i-th ISA compiled in, best first; nullptr past the last.
const char* isa_name(int32_t i, bool* supported);

}  // namespace gce

#endif  // GCE_CORE_DISPATCH_H_
