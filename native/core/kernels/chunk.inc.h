// Choosing a layout, and working off a chunk of rows tile by tile. Included by ../kernels.inc.h.

namespace gce {
namespace {

constexpr int64_t kFewClasses = 32;         // up to here contiguous rows are worked off by columns
constexpr int64_t kMostStagedClasses = 64;  // at most kProbe: the probe is the maximum
constexpr int64_t kTileBytes = 131072;      // kept exponentials of a tile: they stay in L2
constexpr int64_t kChunkElements = 49152;   // 10 microseconds' work or so
constexpr int64_t kRowElements = 64;        // that take as long as what is done once for a row
constexpr int64_t kLeastStreamedRow =
    2048;  // bytes; shorter ones are as fast through the caches, or faster
constexpr int64_t kFewestNeighbours =
    8;  // rows in a contiguous run that are worth lanes of their own
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

template <class Storage>
void lay_out_as(RowProblem* p, int64_t cache_bytes) {
  using Scalar = typename Tile<Storage>::Scalar;
  const int64_t row_bytes = p->classes * static_cast<int64_t>(sizeof(Storage));
  const bool grad = p->arrays[kGrad].data != nullptr;
  p->layout = choose_layout<Storage>(*p);
  const bool may_stream =
      p->layout == kRowsDirect ? row_bytes >= kLeastStreamedRow : p->layout != kRowsGathered;
  p->stream_grad = grad && may_stream && p->arrays[kGrad].data != p->arrays[kLogits].data &&
                   p->rows * row_bytes > cache_bytes;
  p->kept_stride = round_up(p->classes * static_cast<int64_t>(sizeof(Scalar)));
  p->kept_offset = 0;
  p->tile_rows = kMaxTileRows;
  p->keeps = grad;
  const int64_t lanes = p->layout == kColumnsDirect ? Tile<Storage>::Vector::kLanes : 1;
  const int64_t fitting = kTileBytes / p->kept_stride / lanes * lanes;
  const int64_t bounded = fitting < lanes ? lanes : fitting > kMaxTileRows ? kMaxTileRows : fitting;
  if (p->layout == kRowsDirect) {
    if (grad) p->tile_rows = bounded;
  } else if (p->layout == kRowsGathered) {
    p->tile_rows = 1;
    p->kept_offset = round_up(row_bytes);
  } else if (p->layout == kColumnsDirect) {
    p->tile_rows = bounded;
    p->keeps = grad && fitting > 0;
  } else {
    p->keeps = true;  // staged
  }
  p->scratch_bytes =
      static_cast<size_t>(p->kept_offset + (p->keeps ? p->tile_rows * p->kept_stride : 0));
  const int64_t rows = kChunkElements / (p->classes + kRowElements);
  const int64_t tile = p->layout == kRowsDirect ? bounded : kMaxTileRows;
  // Whole tiles, so that each has a row for each of the one before.
  p->chunk_rows = rows < 1 ? 1 : rows < tile ? rows : rows / tile * tile;
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
          p.arrays[kLogsumexp].data != nullptr || p.arrays[kTargetLogProb].data != nullptr,
          p.arrays[kGrad].data != nullptr,
          p.value == GCE_VALUE_SURROGATE,
          p.smooth_weights != nullptr};
}

// One worker: takes chunks until there are none, with its own scratch and tiles. The second pass over a tile of
// contiguous rows runs together with the first pass over the next.
template <class Storage>
class Worker {
 public:
  Worker(const RowProblem& problem, char* scratch)
      : p_(problem), scratch_(scratch), needs_(needs_of(p_)) {
    fill_constants(p_, &tiles_[0]);
    if (needs_.grad && p_.layout == kRowsDirect) fill_constants(p_, &tiles_[1]);
  }

  void run(NextChunk next, void* chunks, PairSum* loss_sums) {
    for (int64_t chunk = next(chunks); chunk >= 0; chunk = next(chunks)) {
      loss_sums[chunk] = run_chunk(chunk);
    }
    if (pending_) finish_rows(0, previous());
    line_.flush();
    if (p_.stream_grad) stream_fence();
  }

 private:
  using Scalar = typename Tile<Storage>::Scalar;

  PairSum run_chunk(int64_t chunk) {
    const int64_t begin = chunk * p_.chunk_rows;
    const int64_t end = p_.rows - begin < p_.chunk_rows ? p_.rows : begin + p_.chunk_rows;
    RowCursor cursor(p_, begin);
    LossSum losses;
    for (int64_t left = end - begin; left > 0;) {
      const RowCursor at_start = cursor;
      next_tile(left, &cursor);
      left -= tile().rows;
      first_pass();
      tile_epilogue(needs_, &tile());
      if (needs_.loss) losses.add(tile().loss, tile().rows);
      store_tile(at_start, tile());
      if (!needs_.grad) continue;
      if (p_.layout == kRowsDirect) {
        pending_ = true;
        now_ = 1 - now_;
      } else {
        second_pass();
      }
    }
    return losses.total();
  }

  Tile<Storage>& tile() { return tiles_[now_]; }
  Tile<Storage>& previous() { return tiles_[1 - now_]; }

  void next_tile(int64_t left, RowCursor* cursor) {
    Tile<Storage>& t = tile();
    t.rows = left < p_.tile_rows ? left : p_.tile_rows;
    if (p_.layout == kColumnsDirect && t.rows > cursor->run()) t.rows = cursor->run();
    const int64_t until_aligned = rows_until_aligned(*cursor);
    if (until_aligned > 0 && until_aligned < t.rows) t.rows = until_aligned;
    one_run_ = t.rows <= cursor->run();
    load_tile(p_, cursor, &t);
  }

  // How many rows of a tile of columns leave those after it at the beginning of a cache line of the gradient, where
  // that is streamed: only whole lines are.
  int64_t rows_until_aligned(const RowCursor& cursor) const {
    constexpr int64_t kLine = 64;
    constexpr int64_t kSize = static_cast<int64_t>(sizeof(Storage));
    const int64_t past =
        static_cast<int64_t>(reinterpret_cast<uintptr_t>(cursor.pointer(kGrad)) % kLine);
    const bool can = p_.stream_grad && p_.layout != kRowsDirect && cursor.stride(kGrad) == kSize &&
                     p_.grad_class_stride % kLine == 0 && past % kSize == 0;
    return can && past > 0 ? (kLine - past) / kSize : 0;
  }

  const Scalar* smooth_weights() const {
    return reinterpret_cast<const Scalar*>(p_.smooth_weights);
  }
  SharedLine<Storage>* line() { return p_.stream_grad ? &line_ : nullptr; }
  bool want_argmax() const { return p_.arrays[kArgmax].data != nullptr; }

  void first_pass() {
    if (p_.layout == kColumnsStaged) {
      staged_stats(logits_panel(), p_.classes, smooth_weights(), want_argmax(), kept(), &tile());
    } else if (p_.layout == kColumnsDirect) {
      column_stats(logits_panel(), p_.classes, smooth_weights(), want_argmax(),
                   p_.keeps ? kept() : nullptr, &tile());
      for (int64_t r = 0; r < tile().rows; ++r) read_target_logit(p_, r, &tile());
    } else {
      for (int64_t r = 0; r < tile().rows; ++r) row_step(r);
      if (pending_) finish_rows(tile().rows, previous());
      pending_ = false;
    }
  }

  // Where it has not been left for the next tile's first pass.
  void second_pass() {
    const Panel<Storage> out = {tile().grad, p_.grad_class_stride, row_stride(kGrad)};
    if (p_.layout == kColumnsStaged) {
      staged_grad(out, p_.classes, p_.stream_grad, smooth_weights(), kept(), tile());
    } else if (p_.layout == kColumnsDirect) {
      column_grad(logits_panel(), out, p_.classes, p_.stream_grad, smooth_weights(),
                  p_.keeps ? kept() : nullptr, tile());
    } else {  // the gradient replaces the gathered logits, and is brought where it belongs
      char* const row = tile().grad[0];
      tile().grad[0] = scratch_;
      finish_rows(0, tile());
      for (int64_t v = 0; v < p_.classes; ++v) {
        write(row + v * p_.grad_class_stride, reinterpret_cast<const Storage*>(scratch_)[v]);
      }
    }
  }

  Panel<Storage> logits_panel() {
    return {tile().logits, p_.logits_class_stride, row_stride(kLogits)};
  }
  int64_t row_stride(RowArrayId id) { return one_run_ ? p_.arrays[id].strides[p_.ndim - 1] : 0; }

  // --- by rows -------------------------------------------------------------------------------------
  // The exponentials of row r of a tile; those of the row before it in this place until its second pass.
  Scalar* kept(int64_t r = 0) const {
    return reinterpret_cast<Scalar*>(scratch_ + p_.kept_offset + r * p_.kept_stride);
  }

  // First pass over row r of the tile, second pass over row r of the pending one.
  void row_step(int64_t r) {
    Tile<Storage>& t = tile();
    const bool pending =
        pending_ && r < previous().rows && !finish_special_row(p_.classes, r, previous());
    const bool wanted = !t.ignored(r) || p_.arrays[kLogsumexp].data != nullptr || want_argmax();
    if (!wanted) {
      if (pending) finish_row(r, previous());
      return;
    }
    const Storage* z = logits_row(r);
    const NothingToFinish nothing;
    if (!needs_.grad) {
      row_sum<false>(z, p_.classes, r, kept(r), nothing, &t);
    } else if (!pending) {
      row_sum<true>(z, p_.classes, r, kept(r), nothing, &t);
    } else {
      with_finish_of(r, previous(), [&](const auto& finish) {
        row_sum<true>(z, p_.classes, r, kept(r), finish, &t);
      });
    }
    read_target_logit(p_, r, &t);
    row_extras(z, p_, r, &t);
  }

  template <class Action>
  void with_finish_of(int64_t r, const Tile<Storage>& t, Action action) {
    with_finish(RowGrad<Storage>::of(t, r, p_.classes), smooth_weights(), line(), kept(r), action);
  }
  void finish_row(int64_t r, const Tile<Storage>& t) {
    finish_at_once(RowGrad<Storage>::of(t, r, p_.classes), smooth_weights(), line(), kept(r));
  }
  void finish_rows(int64_t from, const Tile<Storage>& t) {
    for (int64_t r = from; r < t.rows; ++r) {
      if (!finish_special_row(p_.classes, r, t)) finish_row(r, t);
    }
  }
  const Storage* logits_row(int64_t r) {
    if (p_.layout == kRowsDirect) return reinterpret_cast<const Storage*>(tile().logits[r]);
    Storage* gathered = reinterpret_cast<Storage*>(scratch_);
    for (int64_t v = 0; v < p_.classes; ++v) {
      gathered[v] = read<Storage>(tile().logits[r] + v * p_.logits_class_stride);
    }
    return gathered;
  }

  const RowProblem& p_;
  char* scratch_;
  const EpilogueNeeds needs_;
  Tile<Storage> tiles_[2];
  SharedLine<Storage> line_;
  int now_ = 0;
  bool one_run_ = false;  // the tile's rows lie along the last axis
  bool pending_ = false;  // the previous tile lacks its second pass
};

}  // namespace
}  // namespace gce
