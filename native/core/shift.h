// The option shift: row t of the last axis without classes predicts target t + shift, as a causal language model does.
#ifndef GCE_CORE_SHIFT_H_
#define GCE_CORE_SHIFT_H_

#include <array>
#include <cstdint>
#include <list>

#include "gce/gce.h"

namespace gce {

// A validated problem's views of the rows that have a target and of the targets that have a row: of T positions along that
// axis, logits, gradient and vector lack the last `shift`, and what has one number per row, which stands where its target
// is, the first. All shapes and strides are copies, which live as long as this.
class ShiftedProblem {
 public:
  explicit ShiftedProblem(const gce_problem& whole);
  ShiftedProblem(const ShiftedProblem&) = delete;
  ShiftedProblem& operator=(const ShiftedProblem&) = delete;

  const gce_problem& problem() const { return views_; }
  // Writes what belongs to no row: 0, and -1 for argmax.
  void fill_rest() const;

 private:
  int64_t* keep(const int64_t* numbers, int32_t n);
  gce_array copy(const gce_array& array);
  gce_array view(const gce_array& array, int32_t axis, bool leaves_out_first);

  gce_problem whole_;
  gce_problem views_;
  std::list<std::array<int64_t, GCE_MAX_NDIM>> numbers_;  // of shapes and strides
};

}  // namespace gce

#endif  // GCE_CORE_SHIFT_H_
