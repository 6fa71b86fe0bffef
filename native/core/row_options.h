// The options that have one value per row, or one for all: what is the same for each of them.
#ifndef GCE_CORE_ROW_OPTIONS_H_
#define GCE_CORE_ROW_OPTIONS_H_

#include "gce/gce.h"
#include "kernel_table.h"

namespace gce {

struct RowOption {
  RowArrayId id;
  const char* name;
  gce_array gce_problem::* array;
  bool scalar_allowed;
};

inline constexpr RowOption kRowOptions[] = {
    {kGamma, "gamma", &gce_problem::gamma, true},
    {kThreshold, "threshold", &gce_problem::threshold, true},
    {kSampleWeight, "sample_weight", &gce_problem::sample_weight, false},
    {kGradOutput, "grad_output", &gce_problem::grad_output, true},
};

}  // namespace gce

#endif  // GCE_CORE_ROW_OPTIONS_H_
