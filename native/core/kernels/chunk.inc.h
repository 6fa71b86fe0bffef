// Choosing a layout, working off a chunk of rows tile by tile, and the table of this ISA.
// Included last by ../kernels.inc.h.

namespace gce {
namespace {

constexpr int64_t kFewClasses = 32;        // up to here a tile of rows is transposed into scratch
constexpr int64_t kMostPanelClasses = 64;  // the same where a row is not contiguous anyway
constexpr int64_t kTileBytes = 131072;     // logits of a tile: they stay in L2 between the passes
constexpr int64_t kChunkElements = 65536;
constexpr int64_t kFewestNeighbours =
    8;  // rows in a contiguous run that are worth lanes of their own
constexpr int64_t kLargestFloatIndex = 1 << 24;

inline size_t round_up(int64_t bytes) { return static_cast<size_t>((bytes + 63) / 64 * 64); }

template <class Storage>
Layout choose_layout(const RowProblem& p) {
  const int64_t size = static_cast<int64_t>(sizeof(Storage));
  const bool grad = p.arrays[kGrad].data != nullptr;
  const int64_t neighbours = p.shape[p.ndim - 1];
  const bool rows_contiguous =
      p.logits_class_stride == size && (!grad || p.grad_class_stride == size);
  const bool columns_contiguous = p.arrays[kLogits].strides[p.ndim - 1] == size &&
                                  (!grad || p.arrays[kGrad].strides[p.ndim - 1] == size);
  if (rows_contiguous && (p.classes > kFewClasses || p.rows == 1)) return kRowsDirect;
  if (columns_contiguous && neighbours >= kFewestNeighbours && p.classes < kLargestFloatIndex) {
    return kColumnsDirect;
  }
  return p.classes <= kMostPanelClasses ? kColumnsGathered : kRowsGathered;
}

template <class Storage>
void lay_out_as(RowProblem* p, int64_t cache_bytes) {
  const int64_t size = static_cast<int64_t>(sizeof(Storage));
  const int64_t row_bytes = p->classes * size;
  p->layout = choose_layout<Storage>(*p);
  p->stream_grad = p->arrays[kGrad].data != nullptr &&
                   p->arrays[kGrad].data != p->arrays[kLogits].data &&
                   p->rows * row_bytes > cache_bytes;
  p->tile_rows = kMaxTileRows;
  p->scratch_bytes = 0;
  if (p->layout == kRowsDirect) {
    const int64_t fitting = kTileBytes / row_bytes;
    p->tile_rows = fitting < 1 ? 1 : fitting > kMaxTileRows ? kMaxTileRows : fitting;
  } else if (p->layout == kRowsGathered) {
    p->tile_rows = 1;
    p->scratch_bytes = 2 * round_up(row_bytes);
  } else if (p->layout == kColumnsGathered) {
    p->scratch_bytes = 2 * round_up(row_bytes * kMaxTileRows);
  }
  const int64_t rows = kChunkElements / p->classes;
  p->chunk_rows = rows < 1 ? 1 : rows < kMaxTileRows ? rows : rows / kMaxTileRows * kMaxTileRows;
}

void lay_out(RowProblem* p, int64_t cache_bytes) {
  switch (p->arrays[kLogits].dtype) {
    case GCE_FLOAT16:
      return lay_out_as<Float16>(p, cache_bytes);
    case GCE_BFLOAT16:
      return lay_out_as<BFloat16>(p, cache_bytes);
    case GCE_FLOAT32:
      return lay_out_as<float>(p, cache_bytes);
    default:
      return lay_out_as<double>(p, cache_bytes);
  }
}

// One chunk: the problem, where its rows lie, and this worker's scratch.
template <class Storage>
class Chunk {
 public:
  Chunk(const RowProblem& problem, int64_t begin, int64_t end, char* scratch)
      : p_(problem), cursor_(problem, begin), left_(end - begin), scratch_(scratch) {}

  PairSum run() {
    const EpilogueNeeds needs = {
        p_.divisor,
        p_.smooth_weight_sum,
        p_.arrays[kLoss].data != nullptr || p_.reduction != GCE_REDUCTION_NONE,
        p_.arrays[kLogsumexp].data != nullptr || p_.arrays[kTargetLogProb].data != nullptr,
        p_.arrays[kGrad].data != nullptr,
        p_.value == GCE_VALUE_SURROGATE,
        p_.smooth_weights != nullptr};
    WideSum<F64> loss_sum;
    for (; left_ > 0; left_ -= tile_.rows) {
      const RowCursor at_start = cursor_;
      load();
      first_pass();
      TileEpilogue<Storage>(needs, &tile_).run(&loss_sum);
      if (needs.grad) second_pass();
      save(at_start);
    }
    if (p_.stream_grad) stream_fence();
    return sum_of_lanes(loss_sum);
  }

 private:
  void load() {
    tile_.rows = left_ < p_.tile_rows ? left_ : p_.tile_rows;
    if (p_.layout == kColumnsDirect && tile_.rows > cursor_.run()) tile_.rows = cursor_.run();
    for (int64_t at = 0; at < tile_.rows;) {
      const int64_t n = tile_.rows - at < cursor_.run() ? tile_.rows - at : cursor_.run();
      load_run(p_, cursor_, at, n, &tile_);
      cursor_.advance(n);
      at += n;
    }
  }

  void save(RowCursor cursor) {
    for (int64_t at = 0; at < tile_.rows;) {
      const int64_t n = tile_.rows - at < cursor.run() ? tile_.rows - at : cursor.run();
      store_run(cursor, at, n, tile_);
      cursor.advance(n);
      at += n;
    }
  }

  const typename Tile<Storage>::Scalar* smooth_weights() const {
    return reinterpret_cast<const typename Tile<Storage>::Scalar*>(p_.smooth_weights);
  }

  bool by_columns() const { return p_.layout == kColumnsDirect || p_.layout == kColumnsGathered; }

  void first_pass() {
    const bool want_argmax = p_.arrays[kArgmax].data != nullptr;
    if (by_columns()) {
      if (p_.layout == kColumnsGathered) gather_panel();
      column_stats(logits_panel(), p_.classes, smooth_weights(), want_argmax, &tile_);
      return;
    }
    for (int64_t r = 0; r < tile_.rows; ++r) {
      if (tile_.ignored(r) && p_.arrays[kLogsumexp].data == nullptr && !want_argmax) continue;
      const Storage* z = logits_row(r);
      row_stats(z, p_.classes, want_argmax, r, &tile_);
      if (smooth_weights() == nullptr) continue;
      const PairSum spread =
          row_spread(z, p_.classes, smooth_weights(), broadcast(tile_.maximum[r]));
      tile_.spread_high[r] = spread.high;
      tile_.spread_low[r] = spread.low;
    }
  }

  void second_pass() {
    if (by_columns()) {
      column_grad(logits_panel(), p_.classes, smooth_weights(), tile_, grad_panel());
      if (p_.layout == kColumnsGathered) scatter_panel();
      return;
    }
    for (int64_t r = 0; r < tile_.rows; ++r) {
      if (p_.layout == kRowsDirect) {
        row_grad_of_tile(reinterpret_cast<const Storage*>(tile_.logits[r]), p_.classes,
                         smooth_weights(), p_.stream_grad, r, tile_,
                         reinterpret_cast<Storage*>(tile_.grad[r]));
        continue;
      }
      row_grad_of_tile(gathered_logits(), p_.classes, smooth_weights(), false, r, tile_,
                       gathered_grad());
      for (int64_t v = 0; v < p_.classes; ++v) {
        write(tile_.grad[r] + v * p_.grad_class_stride, gathered_grad()[v]);
      }
    }
  }

  const Storage* logits_row(int64_t r) {
    if (p_.layout == kRowsDirect) return reinterpret_cast<const Storage*>(tile_.logits[r]);
    for (int64_t v = 0; v < p_.classes; ++v) {
      gathered_logits()[v] = read<Storage>(tile_.logits[r] + v * p_.logits_class_stride);
    }
    return gathered_logits();
  }

  Storage* gathered_logits() const { return reinterpret_cast<Storage*>(scratch_); }
  Storage* gathered_grad() const {
    return reinterpret_cast<Storage*>(scratch_ + p_.scratch_bytes / 2);
  }

  Panel<Storage> scratch_panel(char* base) const {
    return {base, kMaxTileRows * static_cast<int64_t>(sizeof(Storage))};
  }
  Panel<Storage> logits_panel() const {
    return p_.layout == kColumnsGathered
               ? scratch_panel(scratch_)
               : Panel<Storage>{const_cast<char*>(tile_.logits[0]), p_.logits_class_stride};
  }
  Panel<Storage> grad_panel() const {
    return p_.layout == kColumnsGathered ? scratch_panel(scratch_ + p_.scratch_bytes / 2)
                                         : Panel<Storage>{tile_.grad[0], p_.grad_class_stride};
  }

  void gather_panel() {
    const Panel<Storage> panel = scratch_panel(scratch_);
    for (int64_t r = 0; r < tile_.rows; ++r) {
      const char* row = tile_.logits[r];
      for (int64_t v = 0; v < p_.classes; ++v) {
        *panel.at(v, r) = read<Storage>(row + v * p_.logits_class_stride);
      }
    }
  }

  void scatter_panel() {
    const Panel<Storage> panel = grad_panel();
    for (int64_t r = 0; r < tile_.rows; ++r) {
      char* row = tile_.grad[r];
      for (int64_t v = 0; v < p_.classes; ++v) {
        write(row + v * p_.grad_class_stride, *panel.at(v, r));
      }
    }
  }

  const RowProblem& p_;
  RowCursor cursor_;
  int64_t left_;
  char* scratch_;
  Tile<Storage> tile_;
};

void run_chunk(const RowProblem& p, int64_t begin, int64_t end, char* scratch, PairSum* loss_sum) {
  switch (p.arrays[kLogits].dtype) {
    case GCE_FLOAT16:
      *loss_sum = Chunk<Float16>(p, begin, end, scratch).run();
      return;
    case GCE_BFLOAT16:
      *loss_sum = Chunk<BFloat16>(p, begin, end, scratch).run();
      return;
    case GCE_FLOAT32:
      *loss_sum = Chunk<float>(p, begin, end, scratch).run();
      return;
    default:
      *loss_sum = Chunk<double>(p, begin, end, scratch).run();
  }
}

}  // namespace

#define GCE_JOIN_(a, b) a##b
#define GCE_JOIN(a, b) GCE_JOIN_(a, b)
#define GCE_TEXT_(a) #a
#define GCE_TEXT(a) GCE_TEXT_(a)

const KernelTable* GCE_JOIN(GCE_ISA, _kernels)() {
  static const KernelTable table = {GCE_TEXT(GCE_ISA), lay_out, run_chunk, check_targets,
                                    pointwise};
  return &table;
}

}  // namespace gce
