// A plan: a validated problem laid out over rows, cut into chunks that any thread may take.
#ifndef GCE_CORE_PLAN_H_
#define GCE_CORE_PLAN_H_

#include <atomic>
#include <cstdint>
#include <cstdlib>  // on Windows, too, those of malloc.h
#include <memory>
#include <vector>

#include "gce/gce.h"
#include "kernel_table.h"
#include "shift.h"
#include "validate.h"

namespace gce {

// Of memory that is aligned, which Windows has apart.
struct FreeDeleter {
  void operator()(void* p) const {
#ifdef _WIN32
    _aligned_free(p);
#else
    std::free(p);
#endif
  }
};

class Plan {
 public:
  // Throws Error on bad input, std::bad_alloc when out of memory; writes to no output.
  Plan(const gce_problem& problem, int32_t max_workers);
  Plan(const gce_binary_problem& problem, int32_t max_workers);
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  int32_t workers() const { return workers_; }
  void work(int32_t worker);
  void finish();

 private:
  void lay_out_axes(const gce_problem& problem);
  gce_array gamma_grad_of_rows(const gce_problem& problem);
  void lay_out_elements(const gce_binary_problem& problem);
  template <class Problem>
  void set_divisor(const Problem& problem, const RowWeights& weights);
  void set_label_smoothing(const gce_problem& problem, double largest_weight);
  void set_wide_weights();
  void set_workers(int32_t max_workers);
  void allocate();
  int64_t next_chunk();

  std::unique_ptr<ShiftedProblem> shifted_;  // null: no shift
  RowProblem rows_;
  const KernelTable* kernels_;
  gce_array loss_;          // the reduced loss, if wanted
  gce_array gamma_grad_{};  // the sum of the rows', if that is wanted
  std::vector<double> of_rows_;
  std::vector<int64_t> own_shape_, own_strides_;
  int64_t chunks_;
  int32_t workers_;
  bool is_binary_ = false;
  std::atomic<int64_t> next_chunk_{0};
  bool splits_rows_ = false;  // into segments, which several workers take
  LongRows long_rows_{};
  std::vector<LongRow> of_long_rows_;
  std::vector<LongRows::Segment> of_segments_;
  std::vector<int64_t> begun_;
  std::unique_ptr<char, FreeDeleter> scratch_;
  std::unique_ptr<char, FreeDeleter> class_weights_;  // as the kernels take them
  std::vector<PairSum> chunk_sums_;                   // of the losses
};

}  // namespace gce

#endif  // GCE_CORE_PLAN_H_
