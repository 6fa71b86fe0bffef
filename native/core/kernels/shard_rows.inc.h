// Rows of which this process has a slice of the classes. Included by ../kernels.inc.h.
//
//   GCE_SHARD_PARTIAL  what the first pass finds of the slice, to be merged with that of the others (gce/shards.py)
//   GCE_SHARD_MERGED   the epilogue from what was merged, and the slice's gradient
//
// The passes are those of rows.inc.h and row_finish.inc.h, a row at a time, with the reference of the whole row in the
// second: another reference changes no digit. So where the slices begin with segments, and sums of segments are merged in
// their order, results have the bits of the whole.

namespace gce {
namespace {

template <class Storage>
class ShardWorker {
 public:
  ShardWorker(const RowProblem& problem, char* scratch)
      : p_(problem),
        needs_(needs_of(problem)),
        gathered_(reinterpret_cast<Storage*>(scratch)),
        kept_(reinterpret_cast<Scalar*>(scratch + p_.kept_offset)),
        weight_sum_(sum_of_weights()) {
    fill_constants(p_, &tile_);
    tile_.rows = 1;
  }

  void run(NextChunk next, void* chunks, PairSum* loss_sums) {
    run_chunks(p_, next, chunks, loss_sums,
               [this](int64_t begin, int64_t end) { return run_rows(begin, end); });
  }

 private:
  using Scalar = typename Tile<Storage>::Scalar;
  using Vector = typename Tile<Storage>::Vector;

  PairSum run_rows(int64_t begin, int64_t end) {
    RowCursor cursor(p_, begin);
    LossSum losses;
    for (int64_t r = begin; r < end; ++r) {
      const RowCursor at = cursor;
      load_tile(p_, &cursor, &tile_);
      if (p_.shard == GCE_SHARD_PARTIAL) {
        write_partial(at);
        continue;
      }
      read_merged(at);
      tile_epilogue(needs_, &tile_);
      store_tile(at, tile_);
      if (needs_.loss) losses.add(tile_.loss, 1);
      if (needs_.grad) write_grad();
    }
    return losses.total();
  }

  bool is_direct() const { return p_.logits_class_stride == int64_t{sizeof(Storage)}; }

  const Storage* logits_row() {
    if (is_direct()) return reinterpret_cast<const Storage*>(tile_.logits[0]);
    for (int64_t v = 0; v < p_.classes; ++v) {
      gathered_[v] = read<Storage>(tile_.logits[0] + v * p_.logits_class_stride);
    }
    return gathered_;
  }

  // From where it lies, aligned or not.
  double logit_of(int64_t v) const {
    const char* element = tile_.logits[0] + v * p_.logits_class_stride;
    return static_cast<double>(to_scalar(read<Storage>(element)));
  }

  char* field(const RowCursor& at, int i) const {
    return at.pointer(kShardStats) + i * p_.shard_field_stride;
  }
  void put(const RowCursor& at, int i, double x) const { write(field(at, i), x); }
  double get(const RowCursor& at, int i) const { return read<double>(field(at, i)); }

  const Scalar* smooth_weights() const {
    return p_.smooth_weights == nullptr
               ? nullptr
               : reinterpret_cast<const Scalar*>(p_.smooth_weights) + p_.first_class;
  }

  void write_partial(const RowCursor& at) {
    const Storage* z = logits_row();
    row_sum<false>(z, p_.classes, 0, kept_, NothingToFinish(), &tile_);
    row_extremes(z, p_.classes, 0, &tile_);
    const bool has_nan = first_nan(z, p_.classes) >= 0;
    PairSum spread = {0.0, 0.0};
    if (smooth_weights() != nullptr) {
      // Of classes that are all masked from 0, so that it tells which of them have a weight.
      const bool is_masked = tile_.maximum[0] == -static_cast<Scalar>(__builtin_inf());
      const Vector from = broadcast(is_masked ? Scalar(0) : tile_.maximum[0]);
      spread = row_spread(z, p_.classes, smooth_weights(), from);
    }
    const int64_t target = tile_.target[0] - p_.first_class;
    const bool has_target = !tile_.ignored(0) && target >= 0 && target < p_.classes;
    put(at, GCE_SHARD_MAXIMUM, has_nan ? __builtin_nan("") : static_cast<double>(tile_.maximum[0]));
    put(at, GCE_SHARD_SHIFT, static_cast<double>(tile_.shift[0]));
    put(at, GCE_SHARD_REFERENCE, static_cast<double>(tile_.reference[0]));
    put(at, GCE_SHARD_SUM_HIGH, tile_.sum_high[0]);
    put(at, GCE_SHARD_SUM_LOW, tile_.sum_low[0]);
    put(at, GCE_SHARD_TARGET_LOGIT, has_target ? logit_of(target) : -__builtin_inf());
    put(at, GCE_SHARD_ARGMAX, static_cast<double>(tile_.argmax[0] + p_.first_class));
    put(at, GCE_SHARD_SPREAD_HIGH, spread.high);
    put(at, GCE_SHARD_SPREAD_LOW, spread.low);
    put(at, GCE_SHARD_WEIGHT_SUM, weight_sum_);
    put(at, GCE_SHARD_FIRST_CLASS, static_cast<double>(p_.first_class));
    put(at, GCE_SHARD_CLASSES, static_cast<double>(p_.classes));
  }

  // Of the slice's classes, as label smoothing takes them.
  double sum_of_weights() const {
    PairSum sum = {0.0, 0.0};
    const Scalar* weights = smooth_weights();
    for (int64_t v = 0; weights != nullptr && v < p_.classes; ++v) {
      add_exactly(&sum, static_cast<double>(weights[v]));
    }
    return sum.high + sum.low;
  }

  void read_merged(const RowCursor& at) {
    tile_.maximum[0] = static_cast<Scalar>(get(at, GCE_SHARD_MAXIMUM));
    tile_.shift[0] = static_cast<Scalar>(get(at, GCE_SHARD_SHIFT));
    tile_.reference[0] = static_cast<Scalar>(get(at, GCE_SHARD_REFERENCE));
    tile_.sum_high[0] = get(at, GCE_SHARD_SUM_HIGH);
    tile_.sum_low[0] = get(at, GCE_SHARD_SUM_LOW);
    tile_.target_logit[0] = static_cast<Scalar>(get(at, GCE_SHARD_TARGET_LOGIT));
    // Anyone may have written it: only what an int64 can hold may be converted.
    const double argmax = get(at, GCE_SHARD_ARGMAX);
    const bool is_class = argmax >= 0.0 && argmax < static_cast<double>(p_.all_classes);
    tile_.argmax[0] = is_class ? static_cast<int64_t>(argmax) : -1;
    tile_.spread_high[0] = get(at, GCE_SHARD_SPREAD_HIGH);
    tile_.spread_low[0] = get(at, GCE_SHARD_SPREAD_LOW);
  }

  void write_grad() {
    const Storage* z = logits_row();
    char* const out = tile_.grad[0];
    const bool in_place_of_row = p_.grad_class_stride == int64_t{sizeof(Storage)};
    if (!in_place_of_row) tile_.grad[0] = reinterpret_cast<char*>(gathered_);
    fill_grad_floors(&tile_);
    if (!finish_special_row(p_.classes, 0, tile_)) {
      const Vector reference = broadcast(tile_.reference[0]);
      const NothingToFinish nothing;
      PairSum any;
      if (tile_.shift[0] == 0) {
        row_pass<false, true>(z, p_.classes, broadcast(Scalar(0)), reference, kept_, nothing, &any);
      } else {
        row_pass<true, true>(z, p_.classes, broadcast(tile_.shift[0]), reference, kept_, nothing,
                             &any);
      }
      RowGrad<Storage> grad = RowGrad<Storage>::of(tile_, 0, p_.classes);
      grad.target -= p_.first_class;
      finish_at_once(grad, smooth_weights(), static_cast<SharedLine<Storage>*>(nullptr), kept_);
    }
    if (in_place_of_row) return;
    for (int64_t v = 0; v < p_.classes; ++v) {
      write(out + v * p_.grad_class_stride, gathered_[v]);
    }
  }

  const RowProblem& p_;
  const EpilogueNeeds needs_;
  Storage* const gathered_;
  Scalar* const kept_;
  const double weight_sum_;
  Tile<Storage> tile_;  // of one row
};

template <class Storage>
void lay_out_shard_as(RowProblem* p) {
  p->layout = kRowsOfShard;
  p->stream_grad = false;
  p->tile_rows = 1;
  p->ring_rows = p->line_count = 0;
  p->kept_stride = round_up(p->classes * int64_t{sizeof(typename Tile<Storage>::Scalar)});
  p->kept_offset = round_up(p->classes * int64_t{sizeof(Storage)});
  p->scratch_bytes = static_cast<size_t>(p->kept_offset + p->kept_stride);
  p->chunk_rows = rows_of_chunk(p->classes);
}

}  // namespace
}  // namespace gce
