// What the core hands to the kernels of one ISA, and all that an ISA object exports.
//
// Plain data only: this header is compiled into every ISA object, so it must not bring in anything
// inline from the standard library (an AVX-512 copy of a weak symbol must never be linked into code
// for the baseline).
#ifndef GCE_CORE_KERNEL_TABLE_H_
#define GCE_CORE_KERNEL_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#include "gce/gce.h"
#include "gce/limits.h"
#include "storage.h"

namespace gce {

// Of an elementwise function: l, gamma and, but for the last of them, b.
static inline int inputs_of(int32_t op) { return op == GCE_POINTWISE_GAMMA_GRAD ? 2 : 3; }

// Lets another thread run: the core's, as that of the C++ library is inline.
void yield_thread();

// The arrays that have one entry per row (for logits, grad, vector and targets that are probabilities: V per row).
enum RowArrayId {
  kLogits,
  kTargets,
  kGamma,
  kThreshold,
  kSampleWeight,
  kPosWeight,  // of the binary form alone
  kGradOutput,
  kVector,
  kShardStats,
  kLoss,
  kGrad,
  kTargetLogProb,
  kLogsumexp,
  kGradWeight,
  kArgmax,
  kGammaGrad,
  kRowArrayCount
};

struct RowArray {
  char* data;  // null: absent
  int32_t dtype;
  bool varies;                    // over the rows
  double constant;                // of options that do not: their value
  int64_t strides[GCE_MAX_NDIM];  // bytes, one for each of RowProblem::shape; 0 where broadcast
};

// How the kernels walk the logits. All give the same bits.
enum Layout {
  kRowsDirect,     // a row is contiguous: lanes run along the classes
  kColumnsDirect,  // neighbouring rows are contiguous: lanes run along the rows
  kColumnsStaged,  // few classes, however they lie: rows are brought into scratch, then as above
  kRowsGathered,   // anything else: each row is copied into scratch, then as the first
  kRowsOfShard,    // a slice of the classes, a row at a time
  kRowsWide        // rows are copied into scratch as doubles: what needs_wide_rows
};

// A validated problem: N rows, laid out over the collapsed outer axes `shape`. In the binary form each element is a
// row; it has no classes and what follows from them, and its weight is kSampleWeight.
struct RowProblem {
  int64_t rows;     // N
  int64_t classes;  // V; of a shard, those of its slice:
  int64_t first_class;
  int64_t all_classes;
  int32_t shard;  // a gce_shard
  int64_t shard_field_stride;
  int64_t logits_class_stride;
  int64_t grad_class_stride;
  int32_t ndim;
  int64_t shape[GCE_MAX_NDIM];
  RowArray arrays[kRowArrayCount];

  const char* weight;  // class weights, or null
  int64_t weight_stride;
  int32_t weight_dtype;
  bool weights_need_doubles;  // for label smoothing

  // Label smoothing, or null: class weights (1 where none are given) over smooth_scale, a power of two, as
  // float, for double logits as double; their sum, over it too.
  const char* smooth_weights;
  double smooth_weight_sum;
  double smooth_scale;
  double label_smoothing;  // also of the binary form

  double z_loss;   // lambda
  double softcap;  // kappa; 0: none
  bool targets_are_probabilities;
  bool gauss_newton;  // and not the Hessian
  int64_t targets_class_stride;
  int64_t vector_class_stride;
  // For kRowsWide, class weights as padded doubles, and their sum; or null: all 1.
  const double* wide_weights;
  double wide_weight_sum;

  int32_t value;      // a gce_value
  int32_t reduction;  // a gce_reduction
  bool has_ignore_index;
  int64_t ignore_index;
  double divisor;  // of the mean, else 1; infinite where nothing is counted

  // Set by KernelTable::lay_out:
  Layout layout;
  bool stream_grad;    // non-temporal stores
  int64_t tile_rows;   // R
  int64_t chunk_rows;  // rows of one unit of work: depends on V and dtype alone, never on threads
  // per worker, 64-byte aligned: gathered logits, the exponentials that are kept, what the ring's rows are, lines
  size_t scratch_bytes;
  bool keeps;  // the exponentials; else the second pass computes them anew
  int64_t kept_offset;
  int64_t kept_stride;  // between rows
  int64_t ring_rows;  // of kRowsDirect: how many rows later the second pass is, 0 if there is none
  int64_t ring_offset;
  // Of columns: cache lines of the gradient that are streamed when two tiles have filled them.
  int64_t line_count;
  int64_t lines_offset;
};

// Whether only kRowsWide can do it.
static inline bool needs_wide_rows(const RowProblem& problem) {
  return problem.targets_are_probabilities || problem.softcap != 0.0 ||
         problem.weights_need_doubles || problem.arrays[kVector].data != nullptr;
}

// Whether row r's entry is r strides of the last axis from the first's, whatever the other arrays' axes are.
static inline bool is_one_run(const RowProblem& problem, const RowArray& array) {
  for (int32_t d = 1; d < problem.ndim; ++d) {
    if (array.strides[d - 1] != array.strides[d] * problem.shape[d]) return false;
  }
  return true;
}

// The weight of class v, 0 <= v < all_classes.
static inline double class_weight_of(const RowProblem& problem, int64_t v) {
  if (problem.weight == nullptr) return 1.0;
  return read_real(problem.weight + v * problem.weight_stride, problem.weight_dtype);
}

// How many of the first class weights there are to look at: of a stride of 0 there may be 2^58, all the same.
static inline int64_t weights_to_look_at(const RowProblem& problem) {
  return problem.weight_stride == 0 ? 1 : problem.all_classes;
}

// A sum kept as an unevaluated pair high + low.
struct PairSum {
  double high;
  double low;
};

// Knuth's two-sum: what high + x rounds away goes to low.
static inline void add_exactly(PairSum* sum, double x) {
  const double total = sum->high + x;
  const double back = total - sum->high;
  sum->low += (sum->high - (total - back)) + (x - back);
  sum->high = total;
}

// high + low, where high may be infinite (a loss of +inf) and low then means nothing.
static inline double value_of(const PairSum& sum) {
  return sum.high - sum.high == 0.0 ? sum.high + sum.low : sum.high;
}

struct TargetCheck {
  int64_t first_invalid;  // index of the first target outside [0, V) that is not ignored; n if none
  int64_t counted;        // targets that are not ignored
};

using NextChunk = int64_t (*)(void* chunks);

// As many logits take as long as what is done once for a row.
constexpr int64_t kRowElements = 64;

// A row's classes are summed, and given to several workers, in segments of this many.
constexpr int64_t kSegment = 8192;

static inline int64_t segments_of(int64_t classes) { return (classes + kSegment - 1) / kSegment; }

// What the workers of a few long rows share (kernels/long_rows.inc.h).
struct LongRow {
  int64_t unfinished;                // segments whose sums are not known
  int32_t is_summed;                 // all are, and the epilogue is done
  alignas(16) char second_pass[96];  // what it needs of the row
};
struct LongRows {
  LongRow* rows;
  struct Segment {
    PairSum sum;
    bool exceeds;  // a logit was too large for the row's reference
  }* segments;     // of row 0, of row 1, ...
  int64_t workers;
  // For each round of tasks (long_rows.inc.h), of each worker's own segments: how many.
  int64_t* begun;
};

struct KernelTable {
  const char* name;
  void (*lay_out)(RowProblem* problem, int64_t cache_bytes);
  // One worker's part: for each chunk that next(chunks) gives, until -1, writes gradients and per-row outputs of
  // its rows, [chunk * chunk_rows, + chunk_rows), and loss_sums[chunk].
  void (*work)(const RowProblem& problem, char* scratch, NextChunk next, void* chunks,
               PairSum* loss_sums);
  // One worker's part where kRowsDirect's rows are worked off in segments: the same results, to the bit.
  void (*work_on_segments)(const RowProblem& problem, char* scratch, int64_t worker,
                           const LongRows& rows, PairSum* loss_sums);
  // The same of the binary form, without scratch.
  void (*work_on_elements)(const RowProblem& problem, NextChunk next, void* chunks,
                           PairSum* loss_sums);
  TargetCheck (*check_targets)(const char* targets, int32_t dtype, int64_t stride, int64_t n,
                               int64_t classes, bool has_ignore_index, int64_t ignore_index);
  // The first of n numbers that is negative, infinite or NaN; n if none is.
  int64_t (*check_probabilities)(const char* row, int32_t dtype, int64_t stride, int64_t n);
  // Index of the first of n floats that is not in [0, 1]; n if none.
  int64_t (*first_outside_unit)(const char* p, int32_t dtype, int64_t stride, int64_t n);
  int64_t (*pointwise)(gce_pointwise_op op, gce_dtype dtype, int64_t n, char* const* args,
                       const int64_t* strides);
  // For benchmarks: gce/limits.h.
  float (*limit)(gce_limit_op op, float* to, const float* from, int64_t n, float factor);
};

// One function per ISA object; dispatch.cpp lists those compiled in.
const KernelTable* baseline_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* neon_kernels();

}  // namespace gce

#endif  // GCE_CORE_KERNEL_TABLE_H_
