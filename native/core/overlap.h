// Whether two strided arrays share memory, decided exactly for all layouts that occur in practice.
#ifndef GCE_CORE_OVERLAP_H_
#define GCE_CORE_OVERLAP_H_

#include "gce/gce.h"

namespace gce {

bool is_empty(const gce_array& a);

// True if some element of a shares a byte with some element of b. If finding out takes too long
// (contrived strides), true.
bool arrays_overlap(const gce_array& a, const gce_array& b);

// True if two different elements of a share a byte, or might.
bool overlaps_itself(const gce_array& a);

// The same elements in the same places.
bool same_view(const gce_array& a, const gce_array& b);

}  // namespace gce

#endif  // GCE_CORE_OVERLAP_H_
