// Walking the rows of a RowProblem outside the kernels, in runs along its last axis.
#ifndef GCE_CORE_ROW_RUNS_H_
#define GCE_CORE_ROW_RUNS_H_

#include <cstdint>

#include "kernel_table.h"

namespace gce {

// Calls visit(first row, number of rows, byte offsets of the first row's element in each array).
template <class Visit>
void for_each_run(const RowProblem& rows, Visit visit) {
  const int last = rows.ndim - 1;
  const int64_t run = rows.shape[last];
  int64_t index[GCE_MAX_NDIM] = {};
  int64_t offsets[kRowArrayCount] = {};
  for (int64_t row = 0; row < rows.rows; row += run) {
    visit(row, run, static_cast<const int64_t*>(offsets));
    for (int d = last - 1; d >= 0; --d) {
      const bool wraps = ++index[d] == rows.shape[d];
      const int64_t steps = wraps ? 1 - rows.shape[d] : 1;
      for (int a = 0; a < kRowArrayCount; ++a) {
        if (rows.arrays[a].data != nullptr) offsets[a] += steps * rows.arrays[a].strides[d];
      }
      if (!wraps) break;
      index[d] = 0;
    }
  }
}

}  // namespace gce

#endif  // GCE_CORE_ROW_RUNS_H_
