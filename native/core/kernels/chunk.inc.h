// Choosing a layout, and working off a chunk of rows tile by tile. Included by ../kernels.inc.h.

namespace gce {
namespace {

constexpr int64_t kFewClasses = 32;          // up to here contiguous rows are worked off by columns
constexpr int64_t kMostStagedClasses = 64;   // at most kProbe: the probe is the maximum
constexpr int64_t kTileBytes = 131072;       // kept exponentials of a tile: they stay in L2
constexpr int64_t kChunkElements = 131072;   // 20 microseconds' work or so
constexpr int64_t kLeastStreamedRow = 2048;  // bytes; shorter ones are no slower through the caches
constexpr int64_t kFewestNeighbours =
    8;  // rows in a contiguous run that are worth lanes of their own
// Kept exponentials of the rows between a row's two passes where gradients do not stay in the caches: more than L2 holds.
// Measured on 512 x 32000, ns for 16 logits: 5.4 with 1 row or 2, 4.9 with 4, 3.9 to 4.2 from 6 (750 KiB) to 16 and more;
// in place 7.1, 5.1, 4.7; on two threads 3.4, 2.9, 2.3. (With some number of rows it is 5.4 again, another one for other
// arrays: both streams are then in one bank of memory.)
constexpr int64_t kRingBytes = 1310720;
constexpr int64_t kMostRingRows = 320;
constexpr int64_t kLargestFloatIndex = 1 << 24;

inline int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class Storage>
Layout choose_layout(const RowProblem& p) {
  const int64_t size = static_cast<int64_t>(sizeof(Storage));
  const bool grad = p.arrays[kGrad].data != nullptr;
  const int64_t neighbours = p.shape[p.ndim - 1];
  const bool rows_contiguous =
      p.logits_class_stride == size && (!grad || p.grad_class_stride == size);
  const bool columns_contiguous = p.arrays[kLogits].strides[p.ndim - 1] == size &&
                                  (!grad || p.arrays[kGrad].strides[p.ndim - 1] == size) &&
                                  neighbours >= kFewestNeighbours;
  if (rows_contiguous && (p.classes > kFewClasses || p.rows == 1)) return kRowsDirect;
  if (p.classes <= kMostStagedClasses) return kColumnsStaged;
  return columns_contiguous && p.classes < kLargestFloatIndex ? kColumnsDirect : kRowsGathered;
}

// Whole tiles, but for those of few rows.
inline int64_t rows_of_chunk(int64_t classes) {
  const int64_t rows = kChunkElements / (classes + kRowElements);
  return rows < 1 ? 1 : rows < kMaxTileRows ? rows : rows / kMaxTileRows * kMaxTileRows;
}

template <class Storage>
void lay_out_as(RowProblem* p, int64_t cache_bytes) {
  using Scalar = typename Tile<Storage>::Scalar;
  const int64_t row_bytes = p->classes * static_cast<int64_t>(sizeof(Storage));
  const bool grad = p->arrays[kGrad].data != nullptr;
  p->layout = choose_layout<Storage>(*p);
  const bool may_stream =
      p->layout == kRowsDirect ? row_bytes >= kLeastStreamedRow : p->layout != kRowsGathered;
  const bool is_large = p->rows * row_bytes > cache_bytes;
  // In place they pay where even half as much does not fit, and not for columns: 512x32000 5.1 ms, now 4.2;
  // 4096x1000 1.2 and 1.4, 8x21x256x256 10 and 13.
  const bool in_place = p->arrays[kGrad].data == p->arrays[kLogits].data;
  const bool pays_in_place = p->layout == kRowsDirect && p->rows * row_bytes > 2 * cache_bytes;
  p->stream_grad = grad && may_stream && is_large && (!in_place || pays_in_place);
  p->kept_stride = round_up(p->classes * static_cast<int64_t>(sizeof(Scalar)));
  p->kept_offset = 0;
  p->tile_rows = kMaxTileRows;
  p->keeps = grad;
  const int64_t lanes = p->layout == kColumnsDirect ? Tile<Storage>::Vector::kLanes : 1;
  const int64_t fitting = kTileBytes / p->kept_stride / lanes * lanes;
  const int64_t bounded = fitting < lanes ? lanes : fitting > kMaxTileRows ? kMaxTileRows : fitting;
  p->ring_rows = 0;
  if (p->layout == kRowsDirect) {
    if (grad) {
      const int64_t wanted = is_large ? kRingBytes / p->kept_stride : 0;
      p->tile_rows = bounded;
      p->ring_rows = wanted < bounded ? bounded : wanted > kMostRingRows ? kMostRingRows : wanted;
    }
  } else if (p->layout == kRowsGathered) {
    p->tile_rows = 1;
    p->kept_offset = round_up(row_bytes);
  } else if (p->layout == kColumnsDirect) {
    p->tile_rows = bounded;
    p->keeps = grad && fitting > 0;
  } else {
    p->keeps = true;  // staged
  }
  const int64_t kept_rows = !p->keeps ? 0 : p->ring_rows > 0 ? p->ring_rows : p->tile_rows;
  p->ring_offset = p->kept_offset + kept_rows * p->kept_stride;
  const bool by_lines = p->stream_grad && p->layout != kRowsDirect && p->keeps &&
                        p->grad_class_stride % kLineBytes != 0;
  p->line_count = by_lines ? p->classes : 0;
  p->lines_offset = round_up(p->ring_offset + p->ring_rows * int64_t{sizeof(RowGrad<Storage>)});
  p->scratch_bytes = static_cast<size_t>(p->lines_offset) +
                     static_cast<size_t>(p->line_count) * sizeof(SharedLine<Storage>);
  p->chunk_rows = rows_of_chunk(p->classes);
  assert(0 < p->tile_rows && p->tile_rows <= kMaxTileRows && 0 < p->chunk_rows);
}

// Adds losses in row order into fixed lanes: a row's is its index within the chunk modulo L, whatever the tiles.
class LossSum {
 public:
  // Of the next n rows.
  void add(const double* losses, int64_t n) {
    int64_t r = 0;
    for (; r < n && next_ != 0; ++r) add_one(losses[r]);
    for (; r + F64::kLanes <= n; r += F64::kLanes) sum_.add(load(losses + r));
    for (; r < n; ++r) add_one(losses[r]);
  }

  PairSum total() const { return sum_of_lanes(sum_); }

 private:
  void add_one(double loss) {
    double high[F64::kLanes];
    double low[F64::kLanes];
    sum_.save(high, low);
    PairSum lane = {high[next_], low[next_]};
    add_exactly(&lane, loss);
    high[next_] = lane.high;
    low[next_] = lane.low;
    sum_.high = load(high);
    sum_.low = load(low);
    next_ = (next_ + 1) % F64::kLanes;
  }

  WideSum<F64> sum_;
  int next_ = 0;
};

inline EpilogueNeeds needs_of(const RowProblem& p) {
  return {p.divisor,
          1.0 / p.divisor,
          p.smooth_weight_sum,
          p.arrays[kLoss].data != nullptr || p.reduction != GCE_REDUCTION_NONE,
          p.arrays[kLogsumexp].data != nullptr || p.arrays[kTargetLogProb].data != nullptr ||
              p.arrays[kGradWeight].data != nullptr,
          p.arrays[kGammaGrad].data != nullptr,
          p.arrays[kGrad].data != nullptr,
          p.value == GCE_VALUE_SURROGATE,
          p.smooth_weights != nullptr,
          p.z_loss != 0.0};
}

// One worker: takes chunks until there are none, with its own scratch and tile. Of contiguous rows, the second pass over
// one runs together with the first pass over another, which takes its place in a ring of kept exponentials.
template <class Storage>
class Worker {
 public:
  Worker(const RowProblem& problem, char* scratch)
      : p_(problem),
        scratch_(scratch),
        needs_(needs_of(p_)),
        ring_(reinterpret_cast<RowGrad<Storage>*>(scratch + p_.ring_offset)),
        lines_(reinterpret_cast<SharedLine<Storage>*>(scratch + p_.lines_offset)) {
    fill_constants(p_, &tile_);
    for (int64_t i = 0; i < p_.ring_rows; ++i) ring_[i].out = nullptr;
    for (int64_t i = 0; i < p_.line_count; ++i) new (lines_ + i) SharedLine<Storage>;
  }

  void run(NextChunk next, void* chunks, PairSum* loss_sums) {
    run_chunks(p_, next, chunks, loss_sums,
               [this](int64_t begin, int64_t end) { return run_rows(begin, end); });
    for (int64_t i = 0; i < p_.ring_rows; ++i) finish_place(place(i));
    line_.flush();
    for (int64_t i = 0; i < p_.line_count; ++i) lines_[i].flush();
    if (p_.stream_grad) stream_fence();
  }

 private:
  using Scalar = typename Tile<Storage>::Scalar;

  PairSum run_rows(int64_t begin, int64_t end) {
    RowCursor cursor(p_, begin);
    LossSum losses;
    for (int64_t left = end - begin; left > 0;) {
      const RowCursor at_start = cursor;
      next_tile(left, &cursor);
      left -= tile_.rows;
      first_pass();
      tile_epilogue(needs_, &tile_);
      if (needs_.loss) losses.add(tile_.loss, tile_.rows);
      store_tile(at_start, tile_);
      if (needs_.grad) second_pass();
    }
    return losses.total();
  }

  void next_tile(int64_t left, RowCursor* cursor) {
    int64_t rows = left < p_.tile_rows ? left : p_.tile_rows;
    if (p_.layout == kColumnsDirect && rows > cursor->run()) rows = cursor->run();
    const int64_t until_aligned = rows_until_aligned(*cursor);
    if (until_aligned > 0 && until_aligned < rows) rows = until_aligned;
    one_run_ = rows <= cursor->run();
    tile_.rows = rows;
    load_tile(p_, cursor, &tile_);
  }

  // How many rows of a tile of columns leave those after it at the beginning of a cache line of the gradient, where
  // that is streamed: only whole lines are.
  int64_t rows_until_aligned(const RowCursor& cursor) const {
    const char* const first = cursor.pointer(kGrad);
    const bool can = p_.stream_grad && p_.layout != kRowsDirect &&
                     cursor.stride(kGrad) == static_cast<int64_t>(sizeof(Storage)) &&
                     p_.grad_class_stride % kLineBytes == 0 && is_aligned<Storage>(first);
    return can ? scalars_to_line<Storage>(first) : 0;
  }

  const Scalar* smooth_weights() const {
    return reinterpret_cast<const Scalar*>(p_.smooth_weights);
  }
  SharedLine<Storage>* line() { return p_.stream_grad ? &line_ : nullptr; }
  bool want_argmax() const { return p_.arrays[kArgmax].data != nullptr; }

  void first_pass() {
    if (p_.layout == kColumnsStaged) {
      dense_ = can_be_dense() && dense_stats(&tile_);
      if (dense_) return;
      staged_first_pass();
    } else if (p_.layout == kColumnsDirect) {
      column_stats(logits_panel(), p_.classes, smooth_weights(), want_argmax(),
                   p_.keeps ? kept() : nullptr, &tile_);
      for (int64_t r = 0; r < tile_.rows; ++r) read_target_logit(p_, r, &tile_);
    } else {
      for (int64_t r = 0; r < tile_.rows; ++r) row_step(r);
    }
  }

  void staged_first_pass() {
    staged_stats(logits_panel(), p_.classes, smooth_weights(), want_argmax(), kept(), &tile_);
  }

  // Contiguous rows are left in the ring.
  void second_pass() {
    if (dense_) {
      if (dense_grad(&tile_)) return;
      staged_first_pass();
      tile_epilogue(needs_, &tile_);
    }
    fill_grad_floors(&tile_);
    const Panel<Storage> out = grad_panel();
    if (p_.layout == kColumnsStaged || (p_.layout == kColumnsDirect && p_.keeps)) {
      kept_grad(out, p_.classes, p_.stream_grad, p_.line_count > 0 ? lines_ : nullptr,
                smooth_weights(), kept(), tile_);
    } else if (p_.layout == kColumnsDirect) {
      column_grad(logits_panel(), out, p_.classes, p_.stream_grad, smooth_weights(), tile_);
    } else if (p_.layout == kRowsDirect) {
      for (int64_t r = 0; r < tile_.rows; ++r) {
        if (!finish_special_row(p_.classes, r, tile_)) {
          ring_[place(r)] = RowGrad<Storage>::of(tile_, r, p_.classes);
        }
      }
      next_place_ = place(tile_.rows);
    } else {  // the gradient replaces the gathered logits, and is brought where it belongs
      char* const row = tile_.grad[0];
      tile_.grad[0] = scratch_;
      if (!finish_special_row(p_.classes, 0, tile_)) {
        finish_at_once(RowGrad<Storage>::of(tile_, 0, p_.classes), smooth_weights(), line(),
                       kept());
      }
      for (int64_t v = 0; v < p_.classes; ++v) {
        write(row + v * p_.grad_class_stride, reinterpret_cast<const Storage*>(scratch_)[v]);
      }
    }
  }

  // --- rows of few classes, one after another: see dense_rows.inc.h. Only float has them ----------------
  bool can_be_dense() {
    return one_run_ && p_.classes <= kMostDenseClasses && smooth_weights() == nullptr &&
           !want_argmax() && logits_panel().rows_are_dense(p_.classes) &&
           (!needs_.grad || grad_panel().rows_are_dense(p_.classes));
  }
  template <class S>
  bool dense_stats(Tile<S>* tile) {
    const S* logits = reinterpret_cast<const S*>(tile->logits[0]);
    return gce::dense_stats(logits, p_.classes, kept(), tile, &may_be_subnormal_);
  }
  bool dense_stats(Tile<double>*) { return false; }
  template <class S>
  bool dense_grad(Tile<S>* tile) {
    return gce::dense_grad(p_.classes, kept(), may_be_subnormal_, tile,
                           reinterpret_cast<S*>(tile->grad[0]));
  }
  bool dense_grad(Tile<double>*) { return false; }

  Panel<Storage> grad_panel() { return {tile_.grad, p_.grad_class_stride, row_stride(kGrad)}; }
  Panel<Storage> logits_panel() {
    return {tile_.logits, p_.logits_class_stride, row_stride(kLogits)};
  }
  int64_t row_stride(RowArrayId id) { return one_run_ ? p_.arrays[id].strides[p_.ndim - 1] : 0; }

  // --- by rows -------------------------------------------------------------------------------------
  // Of row r of the tile, in the ring and in what is kept.
  int64_t place(int64_t r) const {
    const int64_t i = next_place_ + r;
    const int64_t in_ring = i < p_.ring_rows ? i : i - p_.ring_rows;
    assert(0 <= in_ring && in_ring < p_.ring_rows);
    return in_ring;
  }
  Scalar* kept(int64_t place = 0) const {
    return reinterpret_cast<Scalar*>(scratch_ + p_.kept_offset + place * p_.kept_stride);
  }

  // First pass over row r of the tile, second pass over the row that it takes the place of.
  void row_step(int64_t r) {
    const bool wanted = !tile_.ignored(r) || p_.arrays[kLogsumexp].data != nullptr || want_argmax();
    const int64_t at = p_.ring_rows > 0 ? place(r) : 0;
    if (!wanted) return finish_place(at);
    const Storage* z = logits_row(r);
    const NothingToFinish nothing;
    if (!needs_.grad) {
      row_sum<false>(z, p_.classes, r, kept(at), nothing, &tile_);
    } else if (p_.ring_rows == 0 || ring_[at].out == nullptr) {
      row_sum<true>(z, p_.classes, r, kept(at), nothing, &tile_);
    } else {
      with_finish(ring_[at], smooth_weights(), line(), kept(at), [&](const auto& finish) {
        row_sum<true>(z, p_.classes, r, kept(at), finish, &tile_);
      });
      ring_[at].out = nullptr;
    }
    read_target_logit(p_, r, &tile_);
    row_extras(z, p_, r, &tile_);
  }

  // The second pass over the row in that place of the ring, if there is one.
  void finish_place(int64_t at) {
    if (p_.ring_rows == 0 || ring_[at].out == nullptr) return;
    finish_at_once(ring_[at], smooth_weights(), line(), kept(at));
    ring_[at].out = nullptr;
  }

  const Storage* logits_row(int64_t r) {
    if (p_.layout == kRowsDirect) return reinterpret_cast<const Storage*>(tile_.logits[r]);
    Storage* gathered = reinterpret_cast<Storage*>(scratch_);
    for (int64_t v = 0; v < p_.classes; ++v) {
      gathered[v] = read<Storage>(tile_.logits[r] + v * p_.logits_class_stride);
    }
    return gathered;
  }

  const RowProblem& p_;
  char* scratch_;
  const EpilogueNeeds needs_;
  Tile<Storage> tile_;
  bool one_run_ = false;           // the tile's rows lie along the last axis
  bool dense_ = false;             // the tile's first pass was dense_rows.inc.h's
  bool may_be_subnormal_ = false;  // its gradients
  // Of rows that lack their second pass; out is null where there is none.
  RowGrad<Storage>* const ring_;
  int64_t next_place_ = 0;  // in it
  SharedLine<Storage> line_;
  // Of columns whose classes do not all begin at a line: one for each.
  SharedLine<Storage>* const lines_;
};

}  // namespace
}  // namespace gce
