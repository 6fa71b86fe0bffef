// The epilogue of float rows in the common case: fewer divisions, shorter polynomials. Included by ../kernels.inc.h.
//
// In double, with S the sum of exponentials, e the target's, d = 1 - gamma, D = gamma S + d e and one division
// r = 1/(S D):   p = e/S = e D r,   w = e/D = e S r,   L = -log(gamma + d p)/d,   grad factor w/S.
// Relative errors are below 1e-9, and that of 1 - p is the general one's: results that become floats have the same
// accuracy. Of rows that are not common (see `common`) the general epilogue's results stay.

namespace gce {
namespace {

// Step by step for all rows, so that a CPU that waits for one has the others at hand.
template <class Storage>
class CommonEpilogue {
 public:
  explicit CommonEpilogue(EpilogueRows<Storage>* rows) : rows_(*rows), t_(rows->tile) {}

  [[gnu::always_inline]] void run(int64_t count) {
    for (int64_t r = 0; r < count; r += F64::kLanes) prepare(r);
    for (int64_t r = 0; r < count; r += F64::kLanes) probabilities(r);
    for (int64_t r = 0; r < count && rows_.needs.loss; r += F64::kLanes) losses(r);
  }

 private:
  // The target's exponential, or all of the general epilogue.
  [[gnu::always_inline]] void prepare(int64_t r) {
    const F64 logit = load(rows_.logit + r) - load_as_double(t_.shift + r);
    const F64 reference = load(rows_.reference + r);
    const F64 sum = load(t_.sum_high + r) + load(t_.sum_low + r);
    const F64 raised = exponent_of(sum);
    const F64 log2e = broadcast(static_cast<double>(Log2E<F32>::kValue));
    const F64 x = fused_mul_sub(logit, log2e, reference);
    t_.has_nan = t_.has_nan || !all(sum == sum);
    const F64 common = is_common(r, x, raised);
    all_common_ = all_common_ && all(common == broadcast(1.0));
    if (!all(common == broadcast(1.0))) GeneralEpilogue<Storage>(&rows_).run(r);
    store(common_ + r, common);
    store(raised_ + r, raised);
    store(rows_.exponential + r,
          select(x < raised - broadcast(2.0), exponential_of(logit, reference, x),
                 load(rows_.exponential + r)));
  }

  // p, 1 - p, and the gradient.
  [[gnu::always_inline]] void probabilities(int64_t r) {
    const F64 zero = broadcast(0.0);
    const F64 one = broadcast(1.0);
    const F64 high = load(t_.sum_high + r);
    const F64 low = load(t_.sum_low + r);
    const F64 sum = high + low;
    const F64 gamma = load(t_.gamma + r);
    const F64 e = load(rows_.exponential + r);
    const F64 d_sum = mul_add(gamma, sum, (one - gamma) * e);
    const F64 inverse = one / (sum * d_sum);
    const F64 inverse_sum = inverse * d_sum;
    const F64 one_minus_p = max(zero, (high - e) + low) * inverse_sum;
    store(one_minus_p_ + r, one_minus_p);
    store(p_ + r, e * inverse_sum);
    if (!rows_.needs.grad) return;
    const F64 weight = e * (sum * inverse);
    const F64 row_weight = load(t_.row_weight + r) * broadcast(1.0 / rows_.needs.divisor);
    const F64 slope = weight * (row_weight * load(t_.upstream + r));
    const Mask64 ignored = load(rows_.counted + r) == zero;
    const F64 factor = select(ignored, zero, one_nan(slope * inverse_sum));
    put(r, factor, rows_.factor);
    put(r, one, rows_.scale);
    put(r, scale_by_integer(one, floor_of(factor, load(raised_ + r))), rows_.floor);
    put(r, one_nan(zero - slope * one_minus_p), rows_.at_target);
  }

  [[gnu::always_inline]] void losses(int64_t r) {
    const F64 zero = broadcast(0.0);
    const F64 one = broadcast(1.0);
    const F64 gamma = load(t_.gamma + r);
    const F64 delta = one - gamma;
    const F64 one_minus_p = load(one_minus_p_ + r);
    const F64 u = delta * one_minus_p;
    const Mask64 near_one = u < broadcast(0.5);
    const F64 v = select(near_one, one - u, mul_add(delta, load(p_ + r), gamma));
    const F64 lost = select(near_one, (one - v) - u, zero);
    const F64 quotient = (zero - (log_for_float(v) + lost)) * load(t_.inverse_delta + r);
    const F64 of_row = select(delta == zero, one_minus_p, quotient) * load(t_.row_weight + r);
    const Mask64 ignored = load(rows_.counted + r) == zero;
    put(r, select(ignored, zero, one_nan(of_row)), t_.loss);
  }

  // Rows that are not common keep what is there.
  [[gnu::always_inline]] void put(int64_t r, F64 value, double* array) {
    const Mask64 common = load(common_ + r) == broadcast(1.0);
    store(array + r, all_common_ ? value : select(common, value, load(array + r)));
  }

  // 1 where there is no threshold; gamma is 0 or no tiny number; p is not below 2^-100 of the sum's reference; a
  // factor takes the sum's size in; and nothing is NaN. And where the row is ignored. Else 0.
  [[gnu::always_inline]] F64 is_common(int64_t r, F64 x, F64 raised) {
    const F64 zero = broadcast(0.0);
    const F64 one = broadcast(1.0);
    const F64 gamma = load(t_.gamma + r);
    F64 common = select(broadcast(-100.0) < x, one, zero);
    common = select(raised < broadcast(kMostByFactor), common, zero);
    common = select(load(t_.threshold + r) == zero, common, zero);
    common = select(gamma < broadcast(0x1p-100), select(gamma == zero, common, zero), common);
    return select(load(rows_.counted + r) == zero, one, common);
  }

  // 2^x with the rounding of Log2E undone; see target_stats.
  [[gnu::always_inline]] static F64 exponential_of(F64 logit, F64 reference, F64 x) {
    const F64 magic = broadcast(kPowerMagic64);
    const F64 shifted = x + magic;
    const F64 whole = shifted - magic;
    const F64 log2e = broadcast(static_cast<double>(Log2E<F32>::kValue));
    const F64 fraction = mul_add(x, broadcast(Log2E<F32>::kStretch),
                                 fused_mul_sub(logit, log2e, reference + whole));
    return power(shifted) * horner<7>(fraction, kExp2ForFloat);
  }

  // As in GeneralEpilogue::write_grad, for a factor that is not normalised.
  [[gnu::always_inline]] static F64 floor_of(F64 factor, F64 raised) {
    const F64 magnitude = max(max(factor, broadcast(0.0) - factor), broadcast(0x1p-1022));
    const F64 exact = broadcast(-126.0) - exponent_of(magnitude);
    const F64 most = raised - broadcast(32.0);
    return max(broadcast(static_cast<double>(ExponentRange<F32>::kLeast) + 1.0),
               select(exact < most, exact, most));
  }

  EpilogueRows<Storage>& rows_;
  Tile<Storage>& t_;
  bool all_common_ = true;
  double common_[Tile<Storage>::kSize];
  double raised_[Tile<Storage>::kSize];
  double p_[Tile<Storage>::kSize];
  double one_minus_p_[Tile<Storage>::kSize];
};

// Fills the results of one tile.
template <class Storage>
[[gnu::always_inline]] inline void tile_epilogue(const EpilogueNeeds& needs, Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  EpilogueRows<Storage> rows(needs, tile);
  const int64_t count = (tile->rows + Vector::kLanes - 1) / Vector::kLanes * Vector::kLanes;
  tile->has_nan = false;
  rows.prepare(count);
  bool done = false;
  if constexpr (sizeof(typename Vector::Scalar) == sizeof(float)) {
    done = needs.may_be_common();
    if (done) CommonEpilogue<Storage>(&rows).run(count);
  }
  for (int64_t r = 0; r < count && !done; r += F64::kLanes) {
    GeneralEpilogue<Storage>(&rows).run(r);
  }
  if (needs.grad) rows.narrow_grad(count);
}

}  // namespace
}  // namespace gce
