// Every semantic check of a problem and its message, in one place: those of a gce_problem in validate.cpp, of a
// gce_binary_problem in validate_binary.cpp, what they share in checks.cpp. Nothing here writes to an output.
#ifndef GCE_CORE_VALIDATE_H_
#define GCE_CORE_VALIDATE_H_

#include "gce/gce.h"
#include "kernel_table.h"

namespace gce {

bool are_probabilities(const gce_problem& problem);

// The rows of a problem as an array without data: the targets, or where those are probabilities, their shape without the
// class axis.
class RowShape {
 public:
  explicit RowShape(const gce_problem& problem);
  RowShape(const RowShape&) = delete;
  RowShape& operator=(const RowShape&) = delete;

  const gce_array& array() const { return array_; }

 private:
  gce_array array_;
  int64_t shape_[GCE_MAX_NDIM];  // of the latter
};

// Checks dtypes, shapes, options and overlaps; throws Error.
void validate_arguments(const gce_problem& problem);
void validate_arguments(const gce_binary_problem& problem);

void validate_pointwise(int32_t op, int32_t dtype, int64_t n, char* const* args);

// The weights of the counted rows: their sum, and whether there is one that is not 0.
struct RowWeights {
  double sum;
  bool any;
};

// Checks what needs every element: targets, gamma, threshold. `rows` is the laid-out problem. Returns the
// weights for the mean.
RowWeights validate_elements(const gce_problem& problem, const RowProblem& rows,
                             const KernelTable& kernels);
void validate_elements(const gce_binary_problem& problem, const RowProblem& rows,
                       const KernelTable& kernels);

gce_reduction reduction_from_name(const char* name);
gce_value value_from_name(const char* name);

// The class axis as an index >= 0, for a validated problem.
int32_t class_axis(const gce_problem& problem);

}  // namespace gce

#endif  // GCE_CORE_VALIDATE_H_
