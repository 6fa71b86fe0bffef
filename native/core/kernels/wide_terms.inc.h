// What wide_rows.inc.h computes of F64::kLanes classes at a time, for float64 logits to the last bits of a double, for
// others to about 1e-10, which is nothing beside the rounding of results to float. Included by ../kernels.inc.h.
//
// The shorter way is for rows without threshold, and gamma 0 or of at least kLeastCommonGamma; that of the others is the
// exact one. As in epilogue_common.inc.h, with S the row's sum of exponentials, e a class', rest = S - e, d = 1 - gamma:
// D = gamma S + d e, w = e / D and -log(gamma + d q) = -log(D / S) = -(k log 2 + 2 atanh s) of
//   s = (2^-k D - S)/(2^-k D + S)      D/S > 1/2: k = 0, and the difference is -d rest.
// Which way a class goes depends on its row alone, never on its neighbours, and so do its bits.

namespace gce {
namespace {

// A row, or F64::kLanes of them: its options, and what its first pass found.
struct WideRow {
  F64 gamma;
  F64 threshold;
  F64 log_sum;   // log sum_v e_v
  F64 sum_high;  // sum_v e_v = sum_high + sum_low, e_v = exp(x_v - maximum)
  F64 sum_low;
  F64 inverse_sum;
  F64 inverse_delta;
  Mask64 is_cross_entropy;  // gamma = 0, where that needs no other case
  Mask64 is_common;
  bool needs_exact;  // a lane is neither, or statistics are wanted
  bool needs_log;    // the exact way: log q
};

// F64::kLanes classes.
struct ClassTerms {
  F64 loss;
  F64 weight;  // w_b
  F64 turn;    // 1 - d w, by which w changes relatively with log q; 0 where the threshold acts
  F64 log_prob;
  F64 gamma_grad;
};

inline ClassTerms select(Mask64 mask, const ClassTerms& yes, const ClassTerms& no) {
  return {select(mask, yes.loss, no.loss), select(mask, yes.weight, no.weight),
          select(mask, yes.turn, no.turn), no.log_prob, no.gamma_grad};
}

// Of classes with e = exp(d), d = x - maximum.
[[gnu::noinline]] ClassTerms exact_terms(const WideRow& row, const EpilogueNeeds& needs, F64 e,
                                         F64 d) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 delta = one - row.gamma;
  const F64 sum = row.sum_high + row.sum_low;
  const F64 rest = max(zero, (row.sum_high - e) + row.sum_low);
  const TargetProb prob = {e / sum, rest / sum};
  ClassTerms terms = {zero, zero, zero, zero, zero};
  if (row.needs_log) {
    const F64 l = d - row.log_sum;
    terms.log_prob = any(prob.one_minus_p < broadcast(0.5)) ? log_prob(prob, l) : l;
  }
  // gamma / p, and of an e that may have lost digits, or is 0, from its logarithm.
  const Mask64 is_small = d < broadcast(-600.0);
  const F64 scaled =
      (row.gamma * broadcast(0x1p64)) * (sum / select(is_small, one, e));  // as in target_stats
  F64 gamma_over_p = scaled * broadcast(0x1p-64);
  if (any(is_small)) {
    const F64 of_small = gamma_over_exponential(row.gamma, d, exponential_of(d)) * sum;
    gamma_over_p = select(is_small, of_small, gamma_over_p);
  }
  const F64 w = one / (delta + gamma_over_p);
  terms.weight = max(row.threshold, w);
  terms.turn = select(w < row.threshold, zero, one - delta * w);
  if (needs.loss) {
    terms.loss = needs.surrogate ? surrogate_loss(terms.log_prob, terms.weight)
                                 : primitive_loss(prob, terms.log_prob, row.gamma, row.threshold);
  }
  if (needs.gamma_grad) {
    terms.gamma_grad = gamma_grad(prob, terms.log_prob, row.gamma, row.threshold);
  }
  return terms;
}

[[gnu::always_inline]] inline ClassTerms common_terms(const WideRow& row, F64 e) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 magic = broadcast(kPowerMagic64);
  const F64 sum = row.sum_high;
  const F64 delta = one - row.gamma;
  const F64 rest = max(zero, sum - e);
  const F64 d_sum = mul_add(row.gamma, sum, delta * e);
  const Mask64 near_one = sum < d_sum + d_sum;
  const F64 minus_k = select(near_one, zero, exponent_of(sum) - exponent_of(d_sum));
  const F64 scaled = d_sum * power(minus_k + magic);
  const F64 numerator = select(near_one, zero - delta * rest, scaled - sum);
  const F64 denominator = scaled + sum;
  const F64 inverse_of_both = one / (d_sum * denominator);
  const F64 weight = e * (inverse_of_both * denominator);
  const F64 s = numerator * (inverse_of_both * d_sum);
  const F64 z = s * s;
  const F64 log_of_ratio = mul_add(s, z * horner<4>(z, kLogShort), s + s);
  const F64 minus_log = mul_add(minus_k, broadcast(kLn2), zero - log_of_ratio);
  const F64 loss = select(delta == zero, rest * row.inverse_sum, minus_log * row.inverse_delta);
  return {loss, weight, one - delta * weight, zero, zero};
}

inline ClassTerms cross_entropy_terms(const WideRow& row, F64 d) {
  const F64 zero = broadcast(0.0);
  return {row.log_sum - d, broadcast(1.0), zero, zero, zero};
}

// Which of them all of a group's rows take.
enum Way { kEachItsOwn, kAllCommon, kAllCrossEntropy };

template <bool kShort>
inline Way way_of(const WideRow& row) {
  if (!kShort || row.needs_exact) return kEachItsOwn;
  return all(row.is_common)          ? kAllCommon
         : all(row.is_cross_entropy) ? kAllCrossEntropy
                                     : kEachItsOwn;
}

template <bool kShort, Way kWay>
[[gnu::always_inline]] inline ClassTerms class_terms(const WideRow& row, const EpilogueNeeds& needs,
                                                     F64 e, F64 d) {
  if constexpr (kWay == kAllCommon) return common_terms(row, e);
  if constexpr (kWay == kAllCrossEntropy) return cross_entropy_terms(row, d);
  const ClassTerms exact = exact_terms(row, needs, e, d);
  if constexpr (!kShort) return exact;
  const ClassTerms terms = select(row.is_common, common_terms(row, e), exact);
  return select(row.is_cross_entropy, cross_entropy_terms(row, d), terms);
}

constexpr double kLeastShort = -700.0;  // e^l below that is 0, the short way

// e^l and 1 - e^l for l <= 0, -inf too, both to full relative accuracy; the short way's is 5e-10.
template <bool kShort>
[[gnu::always_inline]] inline TargetProb prob_of(F64 l) {
  if constexpr (kShort) {
    const F64 zero = broadcast(0.0);
    const F64 one = broadcast(1.0);
    const F64 log2e = broadcast(Log2E<F64>::kValue);
    const F64 magic = broadcast(kPowerMagic64);
    const F64 least = broadcast(kLeastShort);
    const F64 bounded = max(least, l);  // keeps NaN
    const F64 shifted = mul_add(bounded, log2e, magic);
    const F64 t = fused_mul_sub(bounded, log2e, shifted - magic);
    const F64 rest = t * horner<6>(t, kExp2QuotientF64Short);  // 2^t - 1
    const F64 whole = power(shifted);
    const F64 p = keep(mul_add(whole, rest, whole), not_less(l, least));
    return {p, select(whole == one, zero - rest, one - p)};
  }
  return target_prob_of(l, exponential_of(l));
}

// Finite for a subnormal kappa too, so that 0 stays 0.
inline double inverse_of_cap(double kappa) { return kappa < 0x1p-1022 ? 0x1p1022 : 1.0 / kappa; }

// kappa tanh(z / kappa) in place of n numbers, whole vectors of them, and its slope.
//   tanh |u| = (1 - E) / (1 + E), E = e^(-2 |u|), and 1 - tanh^2 = 4 E / (1 + E)^2
template <bool kShort>
void cap(double kappa, int64_t n, double* x, double* slope) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 size = broadcast(kappa);
  const F64 inverse_size = broadcast(inverse_of_cap(kappa));
  for (int64_t i = 0; i < n; i += F64::kLanes) {
    const F64 z = load(x + i);
    const F64 minus_2z = zero - (magnitude_of(z) + magnitude_of(z));
    const F64 l = kShort ? minus_2z * inverse_size : minus_2z / size;
    const TargetProb e = prob_of<kShort>(l);
    const F64 inverse = one / (one + e.p);
    const F64 capped = size * (e.one_minus_p * inverse);
    store(x + i, select(z < zero, zero - capped, capped));
    store(slope + i, broadcast(4.0) * e.p * (inverse * inverse));
  }
}
// Up to it 1e-10 of the cap is nothing beside a float's rounding.
constexpr double kLargestShortCap = 128.0;

// Sums of a row's terms: of its classes' vectors, or lane by lane.
template <bool kShort>
struct TermSum;
template <>
struct TermSum<false> {
  WideSum<F64> sums;
  [[gnu::always_inline]] void add(F64 x) { sums.add(x); }
};
template <>
struct TermSum<true> {
  F64 sum = broadcast(0.0);
  [[gnu::always_inline]] void add(F64 x) { sum = sum + x; }
};

struct F64Pair {
  F64 high;
  F64 low;
};
template <bool kRowsInLanes>
inline F64Pair pair_of(const TermSum<false>& of) {
  if constexpr (kRowsInLanes) return {of.sums.high, of.sums.low};
  const PairSum sum = sum_of_lanes(of.sums);
  return {broadcast(sum.high), broadcast(sum.low)};
}
template <bool kRowsInLanes>
inline F64Pair pair_of(const TermSum<true>& of) {
  if constexpr (kRowsInLanes) return {of.sum, broadcast(0.0)};
  return {broadcast(sum_of_lanes(of.sum)), broadcast(0.0)};
}
// As value_of.
template <bool kRowsInLanes, class Sum>
inline F64 total_of(const Sum& sum) {
  const F64Pair pair = pair_of<kRowsInLanes>(sum);
  const F64 zero = broadcast(0.0);
  return pair.high + select(pair.high - pair.high == zero, pair.low, zero);
}

}  // namespace
}  // namespace gce
