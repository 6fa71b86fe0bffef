// From a row's sum of exponentials to its loss, gradient weight and statistics, vectorised over rows, in
// double whatever the logits are. Included by ../kernels.inc.h.
//
//   l = log p, p = softmax(z)[y], d = 1 - gamma
//   w = p / (gamma + d p) = 1 / (d + gamma / p),  w_b = max(b, w)
//   primitive  L = -log(gamma + d p) / d, and below t* = b gamma / (1 - b d): L(t*) + b (log t* - l)
//   surrogate  L = w_b (-l)
//   dL/dgamma  as pointwise.inc.h has it; below t* that of L(t*), as dL/dlog p is the same on both sides
//   with label smoothing eps, the row's loss is (1 - eps) c_y L + (eps / V) sum_v c_v (-log q_v)
//   with z-loss lambda, lambda logsumexp(z)^2 more, and the gradient 2 lambda logsumexp(z) q
//
// Everything starts from 1 - p = (sum of the other exponentials) / sum and from l, never from a rounded p.
// Source: arXiv 2302.13344; the primitive is the antiderivative of its thresholded weight.

namespace gce {
namespace {

// One row's target: l = log p, p and 1 - p each to full relative accuracy.
struct TargetProb {
  F64 p;
  F64 one_minus_p;
};

// log p from whichever of p and 1 - p is not near 1.
inline F64 log_prob(const TargetProb& t, F64 log_p_if_small) {
  const F64 half = broadcast(0.5);
  return select(t.one_minus_p < half,
                log_one_minus(select(t.one_minus_p < half, t.one_minus_p, half)), log_p_if_small);
}

// -log_s / d; at d = 0 its limit.
inline F64 minus_log_per_delta(F64 log_s, F64 delta, F64 limit) {
  const F64 zero = broadcast(0.0);
  return select(delta == zero, limit, (zero - log_s) / delta);
}

// -log(gamma + d p) / d. Not for gamma = 0, where p may have underflowed.
inline F64 primitive_at(const TargetProb& t, F64 gamma) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 delta = one - gamma;
  const F64 u = delta * t.one_minus_p;
  const Mask64 near_one = u < broadcast(0.5);
  const F64 v = select(near_one, one - u, mul_add(delta, t.p, gamma));
  const F64 lost = select(near_one, (one - v) - u, zero);
  return minus_log_per_delta(log(v) + lost / v, delta, t.one_minus_p);
}

// -log(gamma + p) where both may be subnormal numbers, of few digits: with both times 2^512.
constexpr double kTinyGamma = 0x1p-960;
inline F64 primitive_of_tiny(F64 log_p, F64 gamma) {
  const F64 shift = broadcast(512.0);
  const Exponential p = exponential_of(log_p);
  const F64 s = scale_by_integer(gamma, shift) + scale_by_integer(p.mantissa, p.exponent + shift);
  return mul_add(shift, broadcast(kLn2High),
                 mul_add(shift, broadcast(kLn2Low), broadcast(0.0) - log(s)));
}

inline F64 unthresholded_loss(const TargetProb& t, F64 log_p, F64 gamma) {
  const F64 zero = broadcast(0.0);
  F64 loss = primitive_at(t, gamma);
  const Mask64 tiny = gamma < broadcast(kTinyGamma);
  if (any(tiny)) {
    const F64 of_tiny = select(log_p < broadcast(-600.0), primitive_of_tiny(log_p, gamma), loss);
    loss = select(gamma == zero, zero - log_p, select(tiny, of_tiny, loss));
  }
  return loss;
}

// The knee t* = b s, s = gamma + d t*. With c = 1 - b d: s = gamma / c = 1 - d (1 - b) / c; at b = 1 it is 1, whatever gamma.
struct Knee {
  F64 s;
  F64 log_s;
  F64 log_p;  // to compare: t* itself may underflow
  F64 one_minus_p;
};
inline Knee knee_of(F64 gamma, F64 b) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 half = broadcast(0.5);
  const Mask64 is_one = b == one;  // c may be 0
  const F64 c = select(is_one, one, mul_add(b, gamma, one - b));
  const F64 one_minus_p = select(is_one, zero, (one - b) / c);
  const F64 s = select(is_one, one, gamma / c);
  const F64 u = (one - gamma) * one_minus_p;
  const F64 log_s = select(u < half, log_one_minus(select(u < half, u, half)), log(gamma) - log(c));
  return {s, log_s, log(b) + log_s, one_minus_p};
}

// The primitive loss with threshold, for log_p = log p.
inline F64 primitive_loss(const TargetProb& t, F64 log_p, F64 gamma, F64 b) {
  const F64 loss = unthresholded_loss(t, log_p, gamma);
  if (!any(broadcast(0.0) < b)) return loss;
  const Knee knee = knee_of(gamma, b);
  const F64 at_knee = minus_log_per_delta(knee.log_s, broadcast(1.0) - gamma, knee.one_minus_p);
  return select(log_p < knee.log_p, mul_add(b, knee.log_p - log_p, at_knee), loss);
}

// dL/dgamma. With s = gamma + d p, v = d (1 - p) / s and h = v / (2 + v):
// dL/dgamma = (log(1 + v) - v) / d^2 and log(1 + v) = 2h + h h^2 R(h^2), v = 2h + v h, so the difference is
// -h (v - h^2 R): no cancellation, and the factors 1/d go into v and h, so d = 0 needs no case.
inline F64 gamma_grad_at(F64 s, F64 log_s, F64 one_minus_p, F64 gamma) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 two = broadcast(2.0);
  const F64 delta = one - gamma;
  const F64 v_per_delta = one_minus_p / s;
  const F64 v = delta * v_per_delta;
  const F64 h_per_delta = v_per_delta / (two + v);
  const F64 h = v / (two + v);
  const F64 near = zero - h_per_delta * (v_per_delta - h_per_delta * h * horner<6>(h * h, kLog));
  const F64 far = select(s == zero, zero - v, (zero - log_s - v) / (delta * delta));
  return select(v < broadcast(0.41), near, far);
}
inline F64 gamma_grad(const TargetProb& t, F64 log_p, F64 gamma, F64 b) {
  const F64 zero = broadcast(0.0);
  const F64 s = mul_add(broadcast(1.0) - gamma, t.p, gamma);
  const F64 log_s = select(gamma == zero, log_p, log(s));
  const F64 grad = gamma_grad_at(s, log_s, t.one_minus_p, gamma);
  if (!any(zero < b)) return grad;
  const Knee knee = knee_of(gamma, b);
  const F64 at_knee = gamma_grad_at(knee.s, knee.log_s, knee.one_minus_p, gamma);
  return select(log_p < knee.log_p, at_knee, grad);
}

inline F64 surrogate_loss(F64 log_p, F64 weight) {
  const F64 zero = broadcast(0.0);
  return select(weight == zero, zero, weight * (zero - log_p));  // p -> 0: w log p -> 0
}

// What a row's pass found, F64::kLanes rows at a time: see Tile.
struct RowTerms {
  F64 target_logit;  // less the shift
  // of a reference for which the sum is in [1, 2):
  F64 reference;
  F64 exponential;  // the target's, as the pass computed it
  F64 sum_high;
  F64 sum_low;
  F64 raised;  // the pass's reference is less by this
};

struct TargetStats {
  TargetProb prob;
  F64 gamma_over_p;
  F64 x;  // log2 of the target's exponential
};

// gamma / p for a p of 0, or as good as that.
inline F64 gamma_over_zero(F64 gamma) {
  const F64 zero = broadcast(0.0);
  return select(gamma == zero, zero, broadcast(__builtin_inf()));
}

template <class Vector>
inline TargetStats target_stats(const RowTerms& row, F64 gamma) {
  const F64 zero = broadcast(0.0);
  const F64 log2e = broadcast(static_cast<double>(Log2E<Vector>::kValue));
  const F64 stretch = broadcast(Log2E<Vector>::kStretch);
  const F64 x = fused_mul_sub(row.target_logit, log2e, row.reference);
  // A target that may be most of the sum is taken as the sum has it, so that in 1 - p their common error
  // cancels. A smaller one is computed anew as 2^whole 2^fraction: with the rounding of Log2E undone, and
  // the fraction from the logit, as x itself is off by more the larger it is.
  const Mask64 small = x < broadcast(-2.0);
  const F64 floor = broadcast(-2040.0);
  const F64 whole = ceil(max(floor, x));  // keeps NaN
  const F64 fraction =
      mul_add(x, stretch, fused_mul_sub(row.target_logit, log2e, row.reference + whole));
  const F64 anew = exp2(select(x < floor, zero, fraction));
  const F64 exponent = select(small, whole, zero);
  const F64 numerator = select(small, anew, row.exponential);
  const F64 sum = row.sum_high + row.sum_low;
  const F64 rest = max(zero, (row.sum_high - scale_by_integer(numerator, exponent)) + row.sum_low);
  TargetStats stats;
  stats.prob.p = scale_by_integer(numerator / sum, exponent);
  stats.prob.one_minus_p = rest / sum;
  const F64 nan_if_sum_is = sum - sum;
  // gamma times 2^64, as a subnormal gamma would lose digits in the product.
  const F64 scaled = (gamma * broadcast(0x1p64)) * (sum / numerator);
  stats.gamma_over_p = select(x < floor, gamma_over_zero(gamma) + nan_if_sum_is,
                              scale_by_integer(scaled, zero - exponent - broadcast(64.0)));
  stats.x = mul_add(x, stretch, x);
  return stats;
}

inline F64 grad_weight(F64 gamma_over_p, F64 gamma, F64 b) {
  const F64 one = broadcast(1.0);
  return max(b, one / ((one - gamma) + gamma_over_p));  // keeps NaN
}

template <class Vector>
inline Vector magnitude_of(Vector x) {
  return max(x, broadcast(typename Vector::Scalar(0)) - x);
}

// Below it a row's exponentials give a gradient of 0, for factor times the exponential and a sum in
// [2^raised, 2^(raised + 1)): there it would be subnormal, which is slow and no use, as long as what is lost is below
// 2^-32 (float; double: 2^-64) of the gradient weight. Rows of a smaller weight keep their subnormal gradients.
template <class Vector>
[[gnu::always_inline]] inline F64 grad_floor(F64 factor, F64 raised) {
  constexpr bool kIsFloat = sizeof(typename Vector::Scalar) == sizeof(float);
  constexpr double kNormal = kIsFloat ? -125.0 : -1021.0;
  constexpr double kNegligible = kIsFloat ? -32.0 : -64.0;
  const F64 magnitude = max(magnitude_of(factor), broadcast(0x1p-1022));
  const F64 exact = broadcast(kNormal - 1.0) - exponent_of(magnitude);
  const F64 most = raised + broadcast(kNegligible);
  const F64 least = max(broadcast(static_cast<double>(ExponentRange<Vector>::kLeast) + 1.0),
                        raised + broadcast(kNormal));
  return scale_by_integer(broadcast(1.0), max(least, select(exact < most, exact, most)));
}

// Fills grad_floor from the results of the epilogue.
template <class Storage>
void fill_grad_floors(Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  for (int64_t r = 0; r < tile->rows; r += Vector::kLanes) {
    double floors[Vector::kLanes];
    for (int64_t i = 0; i < Vector::kLanes; i += F64::kLanes) {
      const F64 sum = load(tile->sum_high + r + i) + load(tile->sum_low + r + i);
      const F64 factor =
          load_as_double(tile->grad_factor + r + i) * load_as_double(tile->grad_scale + r + i);
      store(floors + i, grad_floor<Vector>(factor, exponent_of(sum)));
    }
    store_narrowed(tile->grad_floor + r, floors);
  }
}

// One NaN for all: its sign would depend on the order of operations.
inline F64 one_nan(F64 x) { return select(x == x, x, broadcast(__builtin_nan(""))); }

struct EpilogueNeeds {
  double divisor;  // of the gradient
  double inverse_divisor;
  double weight_sum;  // of the classes, for label smoothing
  bool loss;
  bool statistics;
  bool gamma_grad;
  bool grad;
  bool surrogate;
  bool smoothed;
  bool z_loss;

  // Whether CommonEpilogue can do loss and gradient, as far as that is the same for all rows.
  bool may_be_common() const { return !surrogate && !smoothed && !z_loss && divisor > 1e-300; }
  bool beside_loss_and_grad() const { return statistics || gamma_grad; }
  EpilogueNeeds of_loss_and_grad() const {
    EpilogueNeeds needs = *this;
    needs.statistics = needs.gamma_grad = false;
    return needs;
  }
  EpilogueNeeds beside() const {
    EpilogueNeeds needs = *this;
    needs.loss = needs.grad = false;
    return needs;
  }
};

// weight times value, 0 where the weight is 0: an infinite loss that does not count is none.
inline F64 counted_loss(F64 weight, F64 value) {
  const F64 zero = broadcast(0.0);
  return select(value == value, select(weight == zero, zero, weight * value), value);
}

// A row's factor takes in 2^-raised, unless it would be a subnormal number, of few digits: then grad_scale does.
template <class Vector>
constexpr double kLeastNormal =
    sizeof(typename Vector::Scalar) == sizeof(float) ? 0x1p-126 : 0x1p-1022;

// A vector's worth of factors. A product with -0 would depend on whether grad_floor is looked at.
template <class Scalar>
inline void make_zeros_positive(Scalar* factors) {
  store(factors, load(factors) + broadcast(Scalar(0)));
}

// Fills the results of the rows r to r + L - 1, whatever they hold: everything in double, F64::kLanes rows at a time.
template <class Storage>
class GeneralEpilogue {
 public:
  using Vector = typename Tile<Storage>::Vector;

  GeneralEpilogue(const EpilogueNeeds& needs, int64_t r, Tile<Storage>* tile)
      : needs_(needs), begin_(r), t_(*tile) {}

  void run() {
    prepare();
    for (int64_t i = 0; i < Vector::kLanes; i += F64::kLanes) {
      const int64_t r = begin_ + i;
      const F64 shift = load_as_double(t_.shift + r);
      const RowTerms row = terms(i, shift);
      const TargetStats stats = target_stats<Vector>(row, load(t_.gamma + r));
      const F64 weight =
          grad_weight(stats.gamma_over_p, load(t_.gamma + r), load(t_.threshold + r));
      const Mask64 ignored = negative(t_.target + r);
      const RowLogs logs = logs_of(r, row, stats, shift);
      if (needs_.loss) write_loss(r, row, stats, weight, logs, ignored);
      if (needs_.statistics) write_statistics(r, weight, logs, ignored);
      if (needs_.gamma_grad) write_gamma_grad(r, stats, logs, ignored);
      if (needs_.grad) write_grad(r, row, stats, weight, logs, ignored);
    }
    if (needs_.grad) narrow_grad();
  }

 private:
  // The rows' targets in double: logit, reference, and exponential as the passes compute it.
  void prepare() {
    const Vector target_logit = load(t_.target_logit + begin_);
    const Vector shift = load(t_.shift + begin_);
    const Vector k = load(t_.reference + begin_);
    const Exponent<Vector> exponent(k);
    Vector any_size = broadcast(ExponentRange<Vector>::kMagic);
    store_as_double(logit_, target_logit);
    store_as_double(reference_, k);
    store_as_double(exponential_, exponential(target_logit - shift, exponent, &any_size));
    if (!needs_.smoothed) return;
    const Vector maximum = load(t_.maximum + begin_);
    store_as_double(largest_, exponential(maximum - shift, exponent, &any_size));
  }

  RowTerms terms(int64_t i, F64 shift) {
    const F64 high = load(t_.sum_high + begin_ + i);
    const F64 low = load(t_.sum_low + begin_ + i);
    const F64 raised = exponent_of(high + low);
    const F64 scale = scale_by_integer(broadcast(1.0), broadcast(0.0) - raised);
    if (needs_.smoothed) store(largest_ + i, load(largest_ + i) * scale);
    return {load(logit_ + i) - shift,
            load(reference_ + i) + raised,
            load(exponential_ + i) * scale,
            high * scale,
            low * scale,
            raised};
  }

  struct RowLogs {
    F64 log_p;
    F64 logsumexp;
  };
  // 0 where they are not needed: two logarithms are a third of this epilogue.
  RowLogs logs_of(int64_t r, const RowTerms& row, const TargetStats& stats, F64 shift) const {
    const F64 zero = broadcast(0.0);
    const bool needed = needs_.beside_loss_and_grad() || needs_.z_loss ||
                        (needs_.loss && (needs_.surrogate || needs_log_p(r)));
    if (!needed) return {zero, zero};
    const F64 log_sum = log(row.sum_high + row.sum_low) * broadcast(1.0 + Log2E<Vector>::kStretch);
    const F64 to_natural = broadcast(1.0 / static_cast<double>(Log2E<Vector>::kValue));
    return {log_prob(stats.prob, mul_add(stats.x, broadcast(kLn2), zero - log_sum)),
            shift + mul_add(row.reference, to_natural, log_sum)};
  }
  bool needs_log_p(int64_t r) const {
    return any(load(t_.gamma + r) < broadcast(kTinyGamma)) ||
           any(broadcast(0.0) < load(t_.threshold + r));
  }

  void write_loss(int64_t r, const RowTerms& row, const TargetStats& stats, F64 weight,
                  const RowLogs& logs, Mask64 ignored) {
    const F64 of_target =
        needs_.surrogate
            ? surrogate_loss(logs.log_p, weight)
            : primitive_loss(stats.prob, logs.log_p, load(t_.gamma + r), load(t_.threshold + r));
    const F64 row_weight = load(t_.row_weight + r);
    F64 of_row = counted_loss(row_weight, of_target);
    if (needs_.smoothed) of_row = of_row + smooth_loss(r, row);
    if (needs_.z_loss) {
      of_row = of_row + counted_loss(load(t_.z_weight + r), logs.logsumexp * logs.logsumexp);
    }
    store(t_.loss + r, select(ignored, broadcast(0.0), one_nan(of_row)));
  }

  void write_statistics(int64_t r, F64 weight, const RowLogs& logs, Mask64 ignored) {
    const F64 zero = broadcast(0.0);
    store(t_.target_log_prob + r, select(ignored, zero, one_nan(logs.log_p)));
    store(t_.logsumexp + r, one_nan(logs.logsumexp));
    store(t_.grad_weight + r, select(ignored, zero, one_nan(weight)));
  }

  void write_gamma_grad(int64_t r, const TargetStats& stats, const RowLogs& logs, Mask64 ignored) {
    const F64 of_target =
        gamma_grad(stats.prob, logs.log_p, load(t_.gamma + r), load(t_.threshold + r));
    const F64 row_weight =
        (load(t_.row_weight + r) / broadcast(needs_.divisor)) * load(t_.upstream + r);
    const F64 of_row = counted_loss(row_weight, of_target);
    store(t_.gamma_grad + r, select(ignored, broadcast(0.0), one_nan(of_row)));
  }

  // Label smoothing's part, with m the row's maximum:
  // sum_v c_v (-log q_v) = C log(sum_v e^(z_v - m)) + sum_v c_v (m - z_v), two terms of one sign.
  F64 smooth_loss(int64_t r, const RowTerms& row) const {
    const F64 of_sum = log((row.sum_high + row.sum_low) / load(largest_ + (r - begin_)));
    const F64 high = load(t_.spread_high + r);
    const F64 low = load(t_.spread_low + r);  // means nothing where the other is infinite
    const F64 spread = high + select(high - high == broadcast(0.0), low, broadcast(0.0));
    return counted_loss(load(t_.smooth_weight + r), broadcast(needs_.weight_sum) * of_sum + spread);
  }

  void write_grad(int64_t r, const RowTerms& row, const TargetStats& stats, F64 weight,
                  const RowLogs& logs, Mask64 ignored) {
    const F64 zero = broadcast(0.0);
    const F64 divisor = broadcast(needs_.divisor);
    const F64 upstream = load(t_.upstream + r);
    const F64 slope = weight * (load(t_.row_weight + r) / divisor) * upstream;
    F64 factor = slope;
    F64 at_target = zero - slope * stats.prob.one_minus_p;
    if (needs_.smoothed) {
      const F64 smooth = (load(t_.smooth_weight + r) / divisor) * upstream;
      const F64 of_all = smooth * broadcast(needs_.weight_sum);
      factor = slope + of_all;
      at_target = at_target + (of_all * stats.prob.p - smooth * load(t_.class_weight + r));
      store(offset_ + (r - begin_), select(ignored, zero, zero - smooth));
    }
    if (needs_.z_loss) {
      const F64 half = (load(t_.z_weight + r) / divisor) * upstream * logs.logsumexp;
      const F64 of_all = half + half;
      factor = factor + of_all;
      at_target = at_target + of_all * stats.prob.p;
    }
    factor = select(ignored, zero, one_nan(factor / (row.sum_high + row.sum_low)));
    const F64 one = broadcast(1.0);
    const F64 down = scale_by_integer(one, zero - row.raised);
    const F64 product = factor * down;
    const Mask64 by_scale =
        (zero < magnitude_of(factor)) & (magnitude_of(product) < broadcast(kLeastNormal<Vector>));
    store(factor_ + (r - begin_), select(by_scale, factor, product));
    store(scale_ + (r - begin_), select(by_scale, down, one));
    store(at_target_ + (r - begin_), one_nan(at_target));
  }

  // To the types that the second pass works in.
  void narrow_grad() {
    store_narrowed(t_.grad_factor + begin_, factor_);
    make_zeros_positive(t_.grad_factor + begin_);
    store_narrowed(t_.grad_scale + begin_, scale_);
    store_narrowed(t_.target_grad_wide + begin_, at_target_);
    store(t_.target_grad + begin_, load(t_.target_grad_wide + begin_));
    if (needs_.smoothed) store_narrowed(t_.grad_offset + begin_, offset_);
  }

  static constexpr int kLanes = Vector::kLanes;

  const EpilogueNeeds& needs_;
  const int64_t begin_;
  Tile<Storage>& t_;
  alignas(64) double logit_[kLanes];
  double reference_[kLanes];
  double exponential_[kLanes];  // of the target
  double largest_[kLanes];      // exponential of the row's maximum
  double factor_[kLanes];
  double scale_[kLanes];
  double offset_[kLanes];
  double at_target_[kLanes];
};

}  // namespace
}  // namespace gce
