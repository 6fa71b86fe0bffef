#include "plan.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <new>
#include <thread>

#include "dispatch.h"
#include "row_options.h"
#include "storage.h"
#include "validate.h"

namespace gce {
namespace {

// From here on non-temporal stores pay: the logits and their gradient would not stay in the last cache, of 32 MiB
// (V = 1000: 8 MB of gradient are 1.2 times as fast without them, 12 MB 1.3 times as fast with). What the system says of
// that cache was ten times its size on a virtual machine, so it is not asked.
constexpr int64_t kCacheBytes = 10 << 20;
constexpr size_t kAlignment = 64;
// A thread with less work than this costs more to wake (25 microseconds, measured on two cores of a virtual machine)
// than it saves; in logits, a row being kRowElements more.
constexpr int64_t kFewestLogits = 131072;
// The same where rows are split into segments. A row's gradient then takes kCostOfSplitting times as long, in all: its
// exponentials are computed twice, and lie in another core's cache (1 x 4,000,000 on two threads: 1.3 times as fast as on
// one; 3 x 500,000: as fast as on one, and unsplit 1.4 times as fast).
constexpr int64_t kFewestSplitLogits = 524288;
constexpr double kCostOfSplitting = 1.9;

// The same of the binary form, in elements, and how many are a chunk: one takes from 3 ns (AVX-512, floats) to 90.
constexpr int64_t kFewestElements = 8192;
constexpr int64_t kChunkElements = 4096;

// More classes than any machine has memory for.
constexpr int64_t kMostClasses = int64_t{1} << 48;

// Scratch that a worker has on its stack: to allocate it takes a tenth of the time of 32 x 10.
constexpr size_t kScratchOnStack = 16384;

std::unique_ptr<char, FreeDeleter> allocate_aligned(size_t bytes) {
  const size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
#ifdef _WIN32
  void* memory = _aligned_malloc(whole, kAlignment);
#else
  void* memory = std::aligned_alloc(kAlignment, whole);
#endif
  if (memory == nullptr) throw std::bad_alloc();
  return std::unique_ptr<char, FreeDeleter>(static_cast<char*>(memory));
}

// Along an axis; 0 of an absent array. Where nothing follows, that of neighbours: any number may stand there.
int64_t stride_of(const gce_array& array, int32_t axis) {
  if (array.data == nullptr) return 0;
  return array.shape[axis] > 1 ? array.strides[axis] : size_of(array.dtype);
}

// Copies the strides of `array`, which has one element or one vector per row, over the outer axes that
// are longer than 1. A scalar gets strides of 0. `skip` is the class axis, or -1.
void set_row_array(const gce_array& array, const gce_array& logits, int32_t class_axis,
                   int32_t skip, RowArray* out) {
  out->data = static_cast<char*>(array.data);
  out->dtype = array.dtype;
  int32_t kept = 0;
  int32_t own = 0;
  for (int32_t d = 0; d < logits.ndim; ++d) {
    if (d == skip) ++own;
    if (d == class_axis) continue;
    if (logits.shape[d] != 1) out->strides[kept++] = array.ndim == 0 ? 0 : array.strides[own];
    ++own;
  }
  if (kept == 0) out->strides[0] = 0;
}

// The same where an array's shape broadcasts to that of the logits, each element of which is a row.
void set_element_array(const gce_array& array, const gce_array& logits, RowArray* out) {
  out->data = static_cast<char*>(array.data);
  out->dtype = array.dtype;
  out->strides[0] = 0;
  int32_t kept = 0;
  for (int32_t d = 0; d < logits.ndim; ++d) {
    if (logits.shape[d] == 1) continue;
    const int32_t own = d - (logits.ndim - array.ndim);
    out->strides[kept++] = own < 0 || array.shape[own] == 1 ? 0 : array.strides[own];
  }
}

// An option's value where it is the same for all rows, and whether it is not.
void set_constant(const RowProblem& rows, double absent, RowArray* array) {
  array->constant = absent;
  array->varies = false;
  if (array->data == nullptr || rows.rows == 0) return;
  array->varies =
      std::any_of(array->strides, array->strides + rows.ndim, [](int64_t s) { return s != 0; });
  if (!array->varies) array->constant = read_real(array->data, array->dtype);
}

void set_constants(RowProblem* rows) {
  set_constant(*rows, 0.0, &rows->arrays[kGamma]);
  set_constant(*rows, 0.0, &rows->arrays[kThreshold]);
  set_constant(*rows, 1.0, &rows->arrays[kSampleWeight]);
  set_constant(*rows, 1.0, &rows->arrays[kPosWeight]);
  set_constant(*rows, 1.0, &rows->arrays[kGradOutput]);
}

// Two neighbouring axes become one where every array runs on from the inner into the outer.
bool can_merge(const RowProblem& rows, int32_t outer, int32_t inner) {
  return std::all_of(rows.arrays, rows.arrays + kRowArrayCount, [&](const RowArray& a) {
    return a.data == nullptr || a.strides[outer] == a.strides[inner] * rows.shape[inner];
  });
}

void merge_axes(RowProblem* rows) {
  int32_t kept = 0;
  for (int32_t d = 1; d < rows->ndim; ++d) {
    const bool merge = can_merge(*rows, kept, d);
    if (!merge) ++kept;
    rows->shape[kept] = merge ? rows->shape[kept] * rows->shape[d] : rows->shape[d];
    for (RowArray& a : rows->arrays) {
      if (a.data != nullptr) a.strides[kept] = a.strides[d];
    }
  }
  rows->ndim = kept + 1;
}

// Sizes of class weights: the largest, and the least that is not 0.
struct WeightSizes {
  double largest = 0.0;
  double least = std::numeric_limits<double>::infinity();
};

WeightSizes sizes_of_weights(const RowProblem& rows) {
  WeightSizes sizes;
  for (int64_t v = 0; v < weights_to_look_at(rows); ++v) {
    const double size = std::abs(class_weight_of(rows, v));
    sizes.largest = std::max(sizes.largest, size);
    if (size > 0.0) sizes.least = std::min(sizes.least, size);
  }
  return sizes;
}

// For floats of which the largest is about 1.
bool too_far_apart(const WeightSizes& sizes) {
  return std::isfinite(sizes.largest) && sizes.least < sizes.largest * 0x1p-100;
}

int32_t workers_for(int64_t work, int64_t least, int32_t max_workers) {
  return static_cast<int32_t>(std::max<int64_t>(1, std::min<int64_t>(max_workers, work / least)));
}

}  // namespace

void yield_thread() { std::this_thread::yield(); }

Plan::Plan(const gce_problem& whole, int32_t max_workers) : kernels_(&kernels()) {
  validate_arguments(whole);
  if (whole.shift > 0) shifted_ = std::make_unique<ShiftedProblem>(whole);
  const gce_problem& problem = shifted_ ? shifted_->problem() : whole;
  lay_out_axes(problem);
  set_divisor(problem, validate_elements(problem, rows_, *kernels_));
  chunks_ = 0;
  workers_ = 1;
  if (rows_.rows == 0) return;
  // Before a size in bytes overflows: broadcast logits need no memory, but a row's scratch does.
  if (rows_.classes > kMostClasses) throw std::bad_alloc();
  const bool smoothed = rows_.label_smoothing != 0.0;
  const WeightSizes weights = smoothed ? sizes_of_weights(rows_) : WeightSizes();
  rows_.weights_need_doubles = problem.logits.dtype != GCE_FLOAT64 &&
                               rows_.shard == GCE_SHARD_NONE && too_far_apart(weights);
  if (needs_wide_rows(rows_)) {
    set_wide_weights();
  } else if (smoothed) {
    set_label_smoothing(problem, weights.largest);
  }
  kernels_->lay_out(&rows_, kCacheBytes);
  chunks_ = (rows_.rows + rows_.chunk_rows - 1) / rows_.chunk_rows;
  set_workers(max_workers);
  allocate();
}

Plan::Plan(const gce_binary_problem& problem, int32_t max_workers)
    : kernels_(&kernels()), is_binary_(true) {
  validate_arguments(problem);
  lay_out_elements(problem);
  validate_elements(problem, rows_, *kernels_);
  const auto elements = static_cast<double>(rows_.rows);
  set_divisor(problem, {elements, rows_.rows > 0});
  rows_.chunk_rows = kChunkElements;
  rows_.scratch_bytes = 0;
  chunks_ = (rows_.rows + kChunkElements - 1) / kChunkElements;
  workers_ = workers_for(rows_.rows, kFewestElements, max_workers);
  allocate();
}

void Plan::set_workers(int32_t max_workers) {
  const int64_t work = rows_.rows * (rows_.classes + kRowElements);
  const int64_t by_rows = std::min<int64_t>(workers_for(work, kFewestLogits, max_workers),
                                            std::max<int64_t>(1, chunks_));
  const int64_t by_segments =
      workers_for(rows_.rows * rows_.classes, kFewestSplitLogits, max_workers);
  const bool can_split = rows_.layout == kRowsDirect && segments_of(rows_.classes) > 1;
  const int64_t turns = (chunks_ + by_rows - 1) / by_rows;  // of the busiest worker, unsplit
  splits_rows_ =
      can_split && rows_.chunk_rows == 1 &&
      static_cast<double>(turns * by_segments) > kCostOfSplitting * static_cast<double>(chunks_);
  workers_ = static_cast<int32_t>(splits_rows_ ? by_segments : by_rows);
}

void Plan::lay_out_axes(const gce_problem& problem) {
  const gce_array& logits = problem.logits;
  const int32_t axis = class_axis(problem);
  rows_.classes = logits.shape[axis];
  rows_.shard = problem.shard;
  rows_.first_class = problem.shard == GCE_SHARD_NONE ? 0 : problem.first_class;
  rows_.all_classes = problem.shard == GCE_SHARD_NONE ? rows_.classes : problem.all_classes;
  rows_.logits_class_stride = stride_of(logits, axis);
  rows_.grad_class_stride = stride_of(problem.grad, axis);

  rows_.rows = 1;
  rows_.ndim = 0;
  for (int32_t d = 0; d < logits.ndim; ++d) {
    if (d == axis) continue;
    rows_.rows *= logits.shape[d];
    if (logits.shape[d] != 1) rows_.shape[rows_.ndim++] = logits.shape[d];
  }
  if (rows_.ndim == 0) rows_.shape[rows_.ndim++] = 1;

  const gce_array none = {};
  const bool loss_per_row = problem.reduction == GCE_REDUCTION_NONE;
  const auto place = [&](RowArrayId id, const gce_array& array, int32_t skip) {
    rows_.arrays[id].data = nullptr;
    if (array.data != nullptr) set_row_array(array, logits, axis, skip, &rows_.arrays[id]);
  };
  place(kLogits, logits, axis);
  place(kGrad, problem.grad, axis);
  rows_.targets_are_probabilities = are_probabilities(problem);
  place(kTargets, problem.targets, rows_.targets_are_probabilities ? axis : -1);
  rows_.targets_class_stride =
      rows_.targets_are_probabilities ? stride_of(problem.targets, axis) : 0;
  place(kShardStats, problem.shard_stats, -1);
  rows_.shard_field_stride = stride_of(problem.shard_stats, problem.shard_stats.ndim - 1);
  place(kVector, problem.vector, axis);
  rows_.vector_class_stride = stride_of(problem.vector, axis);
  for (const RowOption& option : kRowOptions) place(option.id, problem.*option.array, -1);
  place(kLoss, loss_per_row ? problem.loss : none, -1);
  for (const RowOutput& output : kRowOutputs) place(output.id, problem.*output.array, -1);
  place(kGammaGrad, gamma_grad_of_rows(problem), -1);
  place(kPosWeight, none, -1);
  merge_axes(&rows_);
  set_constants(&rows_);

  rows_.weight = static_cast<const char*>(problem.weight.data);
  rows_.weight_dtype = problem.weight.dtype;
  rows_.weight_stride = stride_of(problem.weight, 0);
  rows_.z_loss = problem.z_loss;
  rows_.label_smoothing = problem.label_smoothing;
  rows_.softcap = problem.softcap;
  rows_.gauss_newton = problem.gauss_newton != 0;
  rows_.smooth_weights = nullptr;
  rows_.smooth_weight_sum = 0.0;
  rows_.wide_weights = nullptr;
  rows_.wide_weight_sum = static_cast<double>(rows_.classes);
  rows_.value = problem.value;
  rows_.reduction = problem.reduction;
  rows_.has_ignore_index = problem.has_ignore_index != 0;
  rows_.ignore_index = problem.ignore_index;
  loss_ = loss_per_row ? none : problem.loss;
}

// Where one number is wanted, those of the rows go to memory of the plan's own until finish().
gce_array Plan::gamma_grad_of_rows(const gce_problem& problem) {
  if (problem.gamma_grad.data == nullptr || problem.gamma_grad.ndim > 0) return problem.gamma_grad;
  gamma_grad_ = problem.gamma_grad;
  of_rows_.resize(static_cast<size_t>(rows_.rows + 1));  // never null
  const RowShape rows(problem);
  const gce_array& like = rows.array();
  own_shape_.assign(like.shape, like.shape + like.ndim);
  own_strides_.resize(static_cast<size_t>(like.ndim));
  int64_t stride = sizeof(double);
  for (int32_t d = like.ndim - 1; d >= 0; --d) {
    own_strides_[static_cast<size_t>(d)] = stride;
    stride *= like.shape[d];
  }
  return {of_rows_.data(), own_shape_.data(), own_strides_.data(), like.ndim, GCE_FLOAT64, 0};
}

void Plan::lay_out_elements(const gce_binary_problem& problem) {
  const gce_array& logits = problem.logits;
  rows_.rows = 1;
  rows_.ndim = 0;
  for (int32_t d = 0; d < logits.ndim; ++d) {
    rows_.rows *= logits.shape[d];
    if (logits.shape[d] != 1) rows_.shape[rows_.ndim++] = logits.shape[d];
  }
  if (rows_.ndim == 0) rows_.shape[rows_.ndim++] = 1;

  for (RowArray& array : rows_.arrays) array.data = nullptr;
  const auto place = [&](RowArrayId id, const gce_array& array) {
    if (array.data != nullptr) set_element_array(array, logits, &rows_.arrays[id]);
  };
  const bool loss_per_element = problem.reduction == GCE_REDUCTION_NONE;
  place(kLogits, logits);
  place(kTargets, problem.targets);
  for (const ElementOption& option : kElementOptions) place(option.id, problem.*option.array);
  if (loss_per_element) place(kLoss, problem.loss);
  place(kGrad, problem.grad);
  merge_axes(&rows_);
  set_constants(&rows_);

  rows_.label_smoothing = problem.label_smoothing;
  rows_.value = problem.value;
  rows_.reduction = problem.reduction;
  loss_ = loss_per_element ? gce_array() : problem.loss;
}

template <class Problem>
void Plan::set_divisor(const Problem& problem, const RowWeights& weights) {
  rows_.divisor = 1.0;
  if (problem.reduction != GCE_REDUCTION_MEAN) return;
  // Nothing counted: the mean and its gradient are 0, not 0/0.
  rows_.divisor = weights.any ? weights.sum : HUGE_VAL;
  if (problem.has_normalizer) rows_.divisor = problem.normalizer;
}

void Plan::set_label_smoothing(const gce_problem& problem, double largest_weight) {
  const int32_t dtype = problem.logits.dtype == GCE_FLOAT64 ? GCE_FLOAT64 : GCE_FLOAT32;
  const int64_t size = size_of(dtype);
  class_weights_ = allocate_aligned(static_cast<size_t>(rows_.all_classes * size));
  // So that weights which no float can hold count as they do without smoothing.
  rows_.smooth_scale = largest_weight > 0.0 && std::isfinite(largest_weight)
                           ? std::ldexp(1.0, std::ilogb(largest_weight))
                           : 1.0;
  PairSum sum = {0.0, 0.0};
  for (int64_t v = 0; v < rows_.all_classes; ++v) {
    const double weight = class_weight_of(rows_, v) / rows_.smooth_scale;
    write_real(class_weights_.get() + v * size, dtype, weight);
    add_exactly(&sum, weight);
  }
  rows_.smooth_weights = class_weights_.get();
  rows_.smooth_weight_sum = value_of(sum);
}

void Plan::set_wide_weights() {
  if (rows_.weight == nullptr && rows_.label_smoothing == 0.0) return;
  constexpr int64_t kPadding = kAlignment / sizeof(double);  // whole vectors, whatever the ISA
  class_weights_ = allocate_aligned(static_cast<size_t>(rows_.classes + kPadding) * sizeof(double));
  double* weights = reinterpret_cast<double*>(class_weights_.get());
  PairSum sum = {0.0, 0.0};
  for (int64_t v = 0; v < rows_.classes; ++v) {
    weights[v] = class_weight_of(rows_, v);
    add_exactly(&sum, weights[v]);
  }
  std::fill_n(weights + rows_.classes, kPadding, 0.0);
  rows_.wide_weights = weights;
  rows_.wide_weight_sum = value_of(sum);
}

void Plan::allocate() {
  if (rows_.scratch_bytes > kScratchOnStack) {
    size_t bytes = 0;
    if (__builtin_mul_overflow(rows_.scratch_bytes, static_cast<size_t>(workers_), &bytes)) {
      throw std::bad_alloc();
    }
    scratch_ = allocate_aligned(bytes);
  }
  chunk_sums_.resize(static_cast<size_t>(chunks_));
  if (!splits_rows_) return;
  const int64_t segments = segments_of(rows_.classes);
  LongRow unfinished = {};
  unfinished.unfinished = segments;
  of_long_rows_.assign(static_cast<size_t>(rows_.rows), unfinished);
  of_segments_.resize(static_cast<size_t>(rows_.rows * segments));
  long_rows_.rows = of_long_rows_.data();
  long_rows_.segments = of_segments_.data();
  long_rows_.workers = workers_;
  begun_.assign(static_cast<size_t>(2 * rows_.rows * workers_), 0);
  long_rows_.begun = begun_.data();
}

void Plan::work(int32_t worker) {
  assert(0 <= worker && worker < workers_);
  if (chunks_ == 0) return;
  alignas(kAlignment) char on_stack[kScratchOnStack];
  char* scratch =
      scratch_ ? scratch_.get() + rows_.scratch_bytes * static_cast<size_t>(worker) : on_stack;
  assert(reinterpret_cast<uintptr_t>(scratch) % kAlignment == 0);
  if (splits_rows_) {
    return kernels_->work_on_segments(rows_, scratch, worker, long_rows_, chunk_sums_.data());
  }
  const NextChunk next = [](void* plan) { return static_cast<Plan*>(plan)->next_chunk(); };
  if (is_binary_) return kernels_->work_on_elements(rows_, next, this, chunk_sums_.data());
  kernels_->work(rows_, scratch, next, this, chunk_sums_.data());
}

int64_t Plan::next_chunk() {
  const int64_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
  return chunk < chunks_ ? chunk : -1;
}

void Plan::finish() {
  if (shifted_) shifted_->fill_rest();
  if (gamma_grad_.data != nullptr) {
    PairSum total = {0.0, 0.0};
    for (int64_t r = 0; r < rows_.rows; ++r) add_exactly(&total, of_rows_[static_cast<size_t>(r)]);
    write_real(static_cast<char*>(gamma_grad_.data), GCE_FLOAT64, value_of(total));
  }
  if (loss_.data == nullptr) return;
  PairSum total = {0.0, 0.0};
  for (const PairSum& sum : chunk_sums_) {
    add_exactly(&total, sum.high);
    total.low += sum.low;
  }
  const double loss = value_of(total) / rows_.divisor;
  write_real(static_cast<char*>(loss_.data), loss_.dtype, loss);
}

}  // namespace gce
