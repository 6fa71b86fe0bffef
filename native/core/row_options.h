// The options that have one value per row, or one for all, and the outputs that have one per row: what is the same for
// each of them.
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

// Beside the loss.
struct RowOutput {
  RowArrayId id;
  const char* name;
  gce_array gce_problem::* array;
  int32_t dtype;  // kLossDtype: that of the loss
};

constexpr int32_t kLossDtype = -1;

inline constexpr RowOutput kRowOutputs[] = {
    {kTargetLogProb, "target_log_prob", &gce_problem::target_log_prob, kLossDtype},
    {kLogsumexp, "logsumexp", &gce_problem::logsumexp, kLossDtype},
    {kGradWeight, "grad_weight", &gce_problem::grad_weight, kLossDtype},
    {kArgmax, "argmax", &gce_problem::argmax, GCE_INT64},
};

// The options of the binary form that have one value per element, each of which is a row, or one for all.
struct ElementOption {
  RowArrayId id;
  const char* name;
  gce_array gce_binary_problem::* array;
  bool broadcasts;  // else a scalar, or the logits' shape
};

inline constexpr ElementOption kElementOptions[] = {
    {kGamma, "gamma", &gce_binary_problem::gamma, false},
    {kThreshold, "threshold", &gce_binary_problem::threshold, false},
    {kSampleWeight, "weight", &gce_binary_problem::weight, true},
    {kPosWeight, "pos_weight", &gce_binary_problem::pos_weight, true},
    {kGradOutput, "grad_output", &gce_binary_problem::grad_output, false},
};

}  // namespace gce

#endif  // GCE_CORE_ROW_OPTIONS_H_
