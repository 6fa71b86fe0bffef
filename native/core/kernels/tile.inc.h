// A tile: R rows, each quantity of a row in an array of its own. Included by ../kernels.inc.h.

namespace gce {
namespace {

// A multiple of what the epilogue takes at once, which is so many vectors: it has no tail.
constexpr int64_t kMaxTileRows = 64;
constexpr int kEpilogueVectors = 2;

template <class Storage>
struct Tile {
  using Vector = typename ComputeOf<Storage>::Vector;
  using Scalar = typename Vector::Scalar;
  static constexpr int64_t kSize = kMaxTileRows;

  // Each array is a whole number of cache lines, so that no vector straddles two.
  alignas(64) int64_t rows;
  bool options_are_common;  // no row has a threshold, or a gamma that is tiny or 0

  // from load_run
  alignas(64) char* logits[kSize];
  char* grad[kSize];
  int64_t target[kSize];  // -1: ignored
  double gamma[kSize];
  double inverse_delta[kSize];  // 1/(1 - gamma)
  double threshold[kSize];
  double row_weight[kSize];  // sample weight times class weight, of the target's own loss
  // for label smoothing: sample weight eps smooth_scale / V; class weight of the target / smooth_scale
  double smooth_weight[kSize];
  double class_weight[kSize];
  double z_weight[kSize];  // sample weight times lambda of the z-loss
  double upstream[kSize];  // grad_output

  // from the first pass: sum_v e_v = sum_high + sum_low, e_v = 2^((z_v - shift) log2(e) - reference)
  Scalar maximum[kSize];  // for label smoothing and argmax
  Scalar shift[kSize];
  Scalar reference[kSize];
  double sum_high[kSize];
  double sum_low[kSize];
  Scalar target_logit[kSize];
  double spread_high[kSize];  // for label smoothing, sum_v c_v (maximum - z_v)
  double spread_low[kSize];
  int64_t argmax[kSize];

  // from the epilogue: with e'_v = grad_scale e_v, grad_v = grad_factor e'_v where e_v >= grad_floor, else 0; plus
  // grad_offset c_v with label smoothing; but target_grad at the target
  double loss[kSize];
  double target_log_prob[kSize];
  double logsumexp[kSize];
  double grad_weight[kSize];
  double gamma_grad[kSize];
  Scalar grad_factor[kSize];
  Scalar grad_scale[kSize];
  Scalar grad_floor[kSize];
  Scalar grad_offset[kSize];
  Scalar target_class[kSize];  // the target, for a lane of column_grad to compare
  Scalar target_grad_wide[kSize];
  Storage target_grad[kSize];

  bool ignored(int64_t r) const { return target[r] < 0; }
  // Such rows' gradients are target_grad throughout.
  bool is_nan(int64_t r) const { return grad_factor[r] != grad_factor[r]; }
};

// One worker's chunks of rows, until there are none: the sum of their losses is what of_rows(begin, end) returns.
template <class OfRows>
[[gnu::always_inline]] inline void run_chunks(const RowProblem& problem, NextChunk next,
                                              void* chunks, PairSum* loss_sums, OfRows of_rows) {
  for (int64_t chunk = next(chunks); chunk >= 0; chunk = next(chunks)) {
    const int64_t begin = chunk * problem.chunk_rows;
    const int64_t left = problem.rows - begin;
    assert(0 < left);
    loss_sums[chunk] =
        of_rows(begin, left < problem.chunk_rows ? problem.rows : begin + problem.chunk_rows);
  }
}

// Walks the collapsed outer axes in row order, in runs along the last axis.
class RowCursor {
 public:
  RowCursor(const RowProblem& problem, int64_t row) : problem_(problem) {
    for (int64_t& offset : offset_) offset = 0;
    for (int d = problem.ndim - 1; d >= 0; --d) {
      index_[d] = row % problem.shape[d];
      row /= problem.shape[d];
      for (int a = 0; a < kRowArrayCount; ++a) {
        if (problem.arrays[a].data != nullptr) {
          offset_[a] += index_[d] * problem.arrays[a].strides[d];
        }
      }
    }
  }

  int64_t run() const { return problem_.shape[problem_.ndim - 1] - index_[problem_.ndim - 1]; }
  bool has(RowArrayId a) const { return problem_.arrays[a].data != nullptr; }
  char* pointer(RowArrayId a) const { return problem_.arrays[a].data + offset_[a]; }
  int64_t stride(RowArrayId a) const { return problem_.arrays[a].strides[problem_.ndim - 1]; }
  int32_t dtype(RowArrayId a) const { return problem_.arrays[a].dtype; }

  void advance(int64_t n) {
    assert(0 < n && n <= run());
    int d = problem_.ndim - 1;
    move(d, n);
    while (d > 0 && index_[d] == problem_.shape[d]) {
      move(d, -problem_.shape[d]);
      move(--d, 1);
    }
  }

 private:
  void move(int d, int64_t n) {
    index_[d] += n;
    for (int a = 0; a < kRowArrayCount; ++a) {
      if (problem_.arrays[a].data != nullptr) {
        offset_[a] += n * problem_.arrays[a].strides[d];
      }
    }
  }

  const RowProblem& problem_;
  int64_t index_[GCE_MAX_NDIM];
  int64_t offset_[kRowArrayCount];
};

// n elements of an array that varies over rows.
inline void read_varying(const RowCursor& cursor, RowArrayId id, int64_t n, double* out) {
  const char* p = cursor.pointer(id);
  const int64_t stride = cursor.stride(id);
  const int32_t dtype = cursor.dtype(id);
  if (dtype == GCE_FLOAT64) {
    for (int64_t r = 0; r < n; ++r) out[r] = read<double>(p + r * stride);
  } else {
    for (int64_t r = 0; r < n; ++r) out[r] = read_real(p + r * stride, dtype);
  }
}

inline void read_option(const RowProblem& problem, const RowCursor& cursor, RowArrayId id,
                        int64_t n, double* out) {
  if (problem.arrays[id].varies) return read_varying(cursor, id, n, out);
  const double value = problem.arrays[id].constant;
  for (int64_t r = 0; r < n; ++r) out[r] = value;
}

inline float to_scalar(Float16 x) { return to_float(x); }
inline float to_scalar(BFloat16 x) { return to_float(x); }
inline float to_scalar(float x) { return x; }
inline double to_scalar(double x) { return x; }

template <class Integer>
inline void read_targets(const char* p, int64_t stride, int64_t n, int64_t* out) {
  constexpr int64_t kSize = static_cast<int64_t>(sizeof(Integer));
  if (stride == kSize) {  // whole vectors
    for (int64_t r = 0; r < n; ++r) out[r] = static_cast<int64_t>(read<Integer>(p + r * kSize));
    return;
  }
  for (int64_t r = 0; r < n; ++r) out[r] = static_cast<int64_t>(read<Integer>(p + r * stride));
}

inline void read_targets_of(const RowProblem& problem, const RowCursor& cursor, int64_t n,
                            int64_t* out) {
  if (problem.targets_are_probabilities) {  // kRowsWide reads them; no row is ignored
    for (int64_t r = 0; r < n; ++r) out[r] = 0;
    return;
  }
  const char* p = cursor.pointer(kTargets);
  const int64_t stride = cursor.stride(kTargets);
  const int32_t dtype = cursor.dtype(kTargets);
  if (dtype == GCE_INT64) return read_targets<int64_t>(p, stride, n, out);
  if (dtype == GCE_INT32) return read_targets<int32_t>(p, stride, n, out);
  for (int64_t r = 0; r < n; ++r) out[r] = read_target(p + r * stride, dtype);
}

// What label smoothing needs of rows [at, at + n), whose row_weight is that of the loss without it.
template <class Storage>
void load_smoothing(const RowProblem& problem, const RowCursor& cursor, int64_t at, int64_t n,
                    Tile<Storage>* tile) {
  const double spread =
      problem.label_smoothing / static_cast<double>(problem.all_classes) * problem.smooth_scale;
  read_option(problem, cursor, kSampleWeight, n, tile->smooth_weight + at);
  for (int64_t r = at; r < at + n; ++r) {
    tile->smooth_weight[r] *= spread;
    tile->row_weight[r] *= 1.0 - problem.label_smoothing;
    if (tile->ignored(r)) continue;
    tile->class_weight[r] = class_weight_of(problem, tile->target[r]) / problem.smooth_scale;
  }
}

template <class Storage>
void fill_inverse_delta(int64_t begin, int64_t end, Tile<Storage>* tile) {
  for (int64_t r = begin; r < end; ++r) tile->inverse_delta[r] = 1.0 / (1.0 - tile->gamma[r]);
}

inline bool weights_vary(const RowProblem& problem) {
  return problem.arrays[kSampleWeight].varies || problem.weight != nullptr ||
         problem.smooth_weights != nullptr;
}

constexpr double kLeastCommonGamma = 0x1p-100;

// Fills options_are_common from the first `rows` rows.
template <class Storage>
void look_at_options(int64_t rows, Tile<Storage>* tile) {
  bool common = true;
  for (int64_t r = 0; r < rows; ++r) {
    const double gamma = tile->gamma[r];
    common &= gamma >= kLeastCommonGamma;
    common &= tile->threshold[r] == 0.0;
  }
  tile->options_are_common = common;
}

// What is the same for all rows, once for all tiles; and numbers for the lanes past a tile's last row.
template <class Storage>
void fill_constants(const RowProblem& problem, Tile<Storage>* tile) {
  const double gamma = problem.arrays[kGamma].constant;
  const double inverse_delta = 1.0 / (1.0 - gamma);
  for (int64_t r = 0; r < kMaxTileRows; ++r) {
    tile->gamma[r] = gamma;
    tile->inverse_delta[r] = inverse_delta;
    tile->threshold[r] = problem.arrays[kThreshold].constant;
    tile->row_weight[r] = problem.arrays[kSampleWeight].constant;
    tile->z_weight[r] = problem.arrays[kSampleWeight].constant * problem.z_loss;
    tile->upstream[r] = problem.arrays[kGradOutput].constant;
    tile->smooth_weight[r] = tile->class_weight[r] = 0;
    tile->maximum[r] = tile->shift[r] = tile->reference[r] = tile->target_logit[r] = 0;
    tile->sum_high[r] = tile->sum_low[r] = tile->spread_high[r] = tile->spread_low[r] = 0;
    tile->grad_offset[r] = tile->target_class[r] = 0;
  }
  look_at_options(1, tile);
}

// Fills rows [at, at + n) of the tile from one run of the cursor.
template <class Storage>
void load_run(const RowProblem& problem, const RowCursor& cursor, int64_t at, int64_t n,
              Tile<Storage>* tile) {
  read_targets_of(problem, cursor, n, tile->target + at);
  if (problem.has_ignore_index) {
    for (int64_t r = at; r < at + n; ++r) {
      if (tile->target[r] == problem.ignore_index) tile->target[r] = -1;
    }
  }
  if (problem.arrays[kGamma].varies) {
    read_varying(cursor, kGamma, n, tile->gamma + at);
    fill_inverse_delta(at, at + n, tile);
  }
  if (problem.arrays[kThreshold].varies) {
    read_varying(cursor, kThreshold, n, tile->threshold + at);
  }
  if (problem.arrays[kGradOutput].varies) {
    read_varying(cursor, kGradOutput, n, tile->upstream + at);
  }
  if (weights_vary(problem)) {
    read_option(problem, cursor, kSampleWeight, n, tile->row_weight + at);
  }
  if (problem.z_loss != 0.0 && problem.arrays[kSampleWeight].varies) {
    for (int64_t r = at; r < at + n; ++r) tile->z_weight[r] = tile->row_weight[r] * problem.z_loss;
  }

  char* const logits = cursor.pointer(kLogits);
  const int64_t stride = cursor.stride(kLogits);
  for (int64_t r = 0; r < n; ++r) {
    int64_t& target = tile->target[at + r];
    // They were checked, but are the caller's to change, by another thread even now: never out of bounds.
    if (static_cast<uint64_t>(target) >= static_cast<uint64_t>(problem.all_classes)) target = -1;
    tile->logits[at + r] = logits + r * stride;
  }
  for (int64_t r = 0; r < n; ++r) {
    tile->target_class[at + r] = static_cast<typename Tile<Storage>::Scalar>(tile->target[at + r]);
    const int64_t target = tile->ignored(at + r) ? 0 : tile->target[at + r];
    if (problem.weight != nullptr) tile->row_weight[at + r] *= class_weight_of(problem, target);
  }
  if (problem.smooth_weights != nullptr) load_smoothing(problem, cursor, at, n, tile);
  if (cursor.has(kGrad)) {
    for (int64_t r = 0; r < n; ++r) {
      tile->grad[at + r] = cursor.pointer(kGrad) + r * cursor.stride(kGrad);
    }
  }
}

inline void write_run(const RowCursor& cursor, RowArrayId id, int64_t n, const double* values) {
  if (!cursor.has(id)) return;
  for (int64_t r = 0; r < n; ++r) {
    write_real(cursor.pointer(id) + r * cursor.stride(id), cursor.dtype(id), values[r]);
  }
}

// Writes the per-row outputs of rows [at, at + n), for the same run of the cursor.
template <class Storage>
void store_run(const RowCursor& cursor, int64_t at, int64_t n, const Tile<Storage>& tile) {
  write_run(cursor, kLoss, n, tile.loss + at);
  write_run(cursor, kTargetLogProb, n, tile.target_log_prob + at);
  write_run(cursor, kLogsumexp, n, tile.logsumexp + at);
  write_run(cursor, kGradWeight, n, tile.grad_weight + at);
  write_run(cursor, kGammaGrad, n, tile.gamma_grad + at);
  if (cursor.has(kArgmax)) {
    for (int64_t r = 0; r < n; ++r) {
      write(cursor.pointer(kArgmax) + r * cursor.stride(kArgmax), tile.argmax[at + r]);
    }
  }
}

// The target's logit of row r. After a pass over the row, or it would be waited for.
template <class Storage>
inline void read_target_logit(const RowProblem& problem, int64_t r, Tile<Storage>* tile) {
  const int64_t target = tile->ignored(r) ? 0 : tile->target[r];
  assert(target < problem.classes);
  const char* logit = tile->logits[r] + target * problem.logits_class_stride;
  tile->target_logit[r] = to_scalar(read<Storage>(logit));
}

// The tile's next rows, tile->rows of them, from the cursor's on.
template <class Storage>
void load_tile(const RowProblem& problem, RowCursor* cursor, Tile<Storage>* tile) {
  assert(0 < tile->rows && tile->rows <= kMaxTileRows);
  for (int64_t at = 0; at < tile->rows;) {
    const int64_t n = tile->rows - at < cursor->run() ? tile->rows - at : cursor->run();
    load_run(problem, *cursor, at, n, tile);
    cursor->advance(n);
    at += n;
  }
  for (int64_t r = tile->rows; r % (kEpilogueVectors * Tile<Storage>::Vector::kLanes) != 0; ++r) {
    tile->target[r] = -1;
  }
  if (problem.arrays[kGamma].varies || problem.arrays[kThreshold].varies) {
    look_at_options(tile->rows, tile);
  }
}

// Writes the tile's per-row outputs; the cursor is at its first row.
template <class Storage>
void store_tile(RowCursor cursor, const Tile<Storage>& tile) {
  for (int64_t at = 0; at < tile.rows;) {
    const int64_t n = tile.rows - at < cursor.run() ? tile.rows - at : cursor.run();
    store_run(cursor, at, n, tile);
    cursor.advance(n);
    at += n;
  }
}

}  // namespace
}  // namespace gce
