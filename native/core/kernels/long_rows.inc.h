// A few long rows, for more threads than rows: the unit of work is a segment of a row. Included by
// ../kernels.inc.h.
//
//   sum            the segment's part of row_sum, by the reference of the row's first classes
//   end_of_sums    whoever finishes a row's last segment adds their sums, in order, and does the epilogue
//   grad           the segment's exponentials once more, into scratch, and their gradients
//
// There is a round of tasks, one for each segment, for the sums of row 0, the sums of row 1, the gradients of row 0, the
// sums of row 2, the gradients of row 1, ... A worker begins with segments of its own, the same in each round, as they
// are in its cache, and goes on with others'. A gradient waits for its row's sums. Those were all begun in a round before,
// by workers that wait for nothing: so the waiting ends, however few threads there are.

namespace gce {
namespace {

// What a row's second pass needs of its first.
template <class Storage>
struct SummedRow {
  RowGrad<Storage> grad;
  typename Tile<Storage>::Scalar shift;
  typename Tile<Storage>::Scalar reference;
  bool is_finished;
};

template <class Storage>
class SegmentWorker {
 public:
  SegmentWorker(const RowProblem& problem, char* scratch, int64_t worker, const LongRows& rows,
                PairSum* loss_sums)
      : p_(problem),
        kept_(reinterpret_cast<Scalar*>(scratch)),
        worker_(worker),
        rows_(rows),
        loss_sums_(loss_sums),
        segments_(segments_of(problem.classes)),
        needs_(needs_of(problem)) {
    fill_constants(p_, &tile_);
  }

  void run() {
    const int64_t rounds = needs_.grad ? 2 * p_.rows : p_.rows;
    for (int64_t round = 0; round < rounds; ++round) {
      for (int64_t k = 0; k < rows_.workers; ++k) {
        const int64_t of = (worker_ + k) % rows_.workers;
        const int64_t first = segments_ * of / rows_.workers;
        const int64_t end = segments_ * (of + 1) / rows_.workers;
        int64_t* const begun = &rows_.begun[round * rows_.workers + of];
        for (;;) {
          const int64_t segment = first + __atomic_fetch_add(begun, 1, __ATOMIC_RELAXED);
          if (segment >= end) break;
          do_task(round, segment);
        }
      }
    }
    line_.flush();
    if (p_.stream_grad) stream_fence();
  }

 private:
  using Scalar = typename Tile<Storage>::Scalar;
  using Vector = typename Tile<Storage>::Vector;

  void do_task(int64_t round, int64_t segment) {
    if (!needs_.grad || round == 0) return sum(round, segment);
    if (round % 2 == 1 && round + 1 < 2 * p_.rows) return sum((round + 1) / 2, segment);
    grad((round - 1) / 2, segment);
  }

  const Storage* logits(int64_t row) const {
    return reinterpret_cast<const Storage*>(RowCursor(p_, row).pointer(kLogits));
  }
  int64_t length(int64_t segment) const {
    const int64_t left = p_.classes - segment * kSegment;
    return left < kSegment ? left : kSegment;
  }
  LongRows::Segment& at(int64_t row, int64_t segment) {
    assert(0 <= row && row < p_.rows && 0 <= segment && segment < segments_);
    return rows_.segments[row * segments_ + segment];
  }
  SummedRow<Storage>& summed(int64_t row) {
    static_assert(sizeof(SummedRow<Storage>) <= sizeof(LongRow::second_pass), "its room");
    return *reinterpret_cast<SummedRow<Storage>*>(rows_.rows[row].second_pass);
  }

  void sum(int64_t row, int64_t segment) {
    const Storage* z = logits(row);
    const Vector zero = broadcast(Scalar(0));
    const Scalar probe = row_max(z, kProbe);
    LongRows::Segment& found = at(row, segment);
    found.exceeds = !is_usual_maximum<Vector>(probe);
    if (!found.exceeds) {
      found.exceeds = row_pass<false, false>(
          z + segment * kSegment, length(segment), zero, reference_exponent(broadcast(probe)),
          static_cast<Scalar*>(nullptr), NothingToFinish(), &found.sum);
    }
    const int64_t unfinished = __atomic_sub_fetch(&rows_.rows[row].unfinished, 1, __ATOMIC_ACQ_REL);
    assert(unfinished >= 0);
    if (unfinished > 0) return;
    end_of_sums(row);
    __atomic_store_n(&rows_.rows[row].is_summed, 1, __ATOMIC_RELEASE);
  }

  void end_of_sums(int64_t row) {
    const RowCursor at_row(p_, row);
    RowCursor cursor = at_row;
    tile_.rows = 1;
    load_tile(p_, &cursor, &tile_);
    const Storage* z = reinterpret_cast<const Storage*>(tile_.logits[0]);
    add_sums(z, row);
    read_target_logit(p_, 0, &tile_);
    row_extras(z, p_, 0, &tile_);
    tile_epilogue(needs_, &tile_);
    if (needs_.grad) fill_grad_floors(&tile_);
    LossSum loss;
    if (needs_.loss) loss.add(tile_.loss, 1);
    loss_sums_[row] = loss.total();
    store_tile(at_row, tile_);
    if (!needs_.grad) return;
    summed(row) = {RowGrad<Storage>::of(tile_, 0, p_.classes), tile_.shift[0], tile_.reference[0],
                   finish_special_row(p_.classes, 0, tile_)};
  }

  void add_sums(const Storage* z, int64_t row) {
    PairSum total = {0.0, 0.0};
    bool again = false;
    for (int64_t s = 0; s < segments_; ++s) {
      again = again || at(row, s).exceeds;
      add_pair(&total, at(row, s).sum);
    }
    if (again) {
      return row_sum<false>(z, p_.classes, 0, static_cast<Scalar*>(nullptr), NothingToFinish(),
                            &tile_);
    }
    tile_.shift[0] = 0;
    tile_.reference[0] = first_lane(reference_exponent(broadcast(row_max(z, kProbe))));
    tile_.sum_high[0] = total.high;
    tile_.sum_low[0] = total.low;
  }

  void grad(int64_t row, int64_t segment) {
    while (__atomic_load_n(&rows_.rows[row].is_summed, __ATOMIC_ACQUIRE) == 0) yield_thread();
    const SummedRow<Storage>& of = summed(row);
    if (of.is_finished) return;
    const int64_t begin = segment * kSegment;
    PairSum unused;
    row_pass<true, true>(logits(row) + begin, length(segment), broadcast(of.shift),
                         broadcast(of.reference), kept_, NothingToFinish(), &unused);
    RowGrad<Storage> part = of.grad;
    part.out += begin;
    part.classes = length(segment);
    part.target -= begin;
    const auto* weights = reinterpret_cast<const Scalar*>(p_.smooth_weights);
    finish_at_once(part, weights == nullptr ? weights : weights + begin,
                   p_.stream_grad ? &line_ : nullptr, kept_);
  }

  const RowProblem& p_;
  Scalar* const kept_;  // of one segment
  const int64_t worker_;
  const LongRows& rows_;
  PairSum* const loss_sums_;
  const int64_t segments_;
  const EpilogueNeeds needs_;
  Tile<Storage> tile_;
  SharedLine<Storage> line_;
};

}  // namespace
}  // namespace gce
