// The sigmoid form of float elements in the common case: one division for each outcome, several vectors at a time.
// Included by ../kernels.inc.h.
//
// As in epilogue_common.inc.h, with e = e^-|z|, S = 1 + e, and for an outcome of p = a/S, a being 1 or e, and rest = S - a:
// D = gamma S + d a, whence w = a/D, gamma + d p = D/S, and -log(D/S) = -(k log 2 + 2 atanh s) with
//   s = (2^-k D - S)/(2^-k D + S)      D/S > 1/2: k = 0, and the difference is -d rest.
// At gamma = 0 one logarithm is enough for both: -log p is log S, and |z| more for the smaller p; log S = 2 atanh(e/(2 + e)).
// Polynomials are of 4e-10 or better: nothing beside the rounding of results to float. Not for e < 2^-100.

namespace gce {
namespace {

constexpr double kLargestCommonLogit = 69.0;

// What both outcomes of an element share.
struct CommonElement {
  Numbers e;
  Numbers sum;
  Numbers gamma;
  Numbers delta;
  Numbers inverse_delta;
};

// Loss and w (1 - p) of one outcome; of an element loss and gradient, but for the element's weight.
struct CommonParts {
  Numbers loss;
  Numbers slope;
};

[[gnu::always_inline]] inline Numbers common_exponential(const Numbers& l) {
  const Numbers magic = every(kPowerMagic64);
  const Numbers log2e = every(Log2E<F64>::kValue);
  const Numbers shifted = mul_add(l, log2e, magic);
  const Numbers fraction = fused_mul_sub(l, log2e, shifted - magic);
  const Numbers power_of_fraction =
      mul_add(fraction, horner<6>(fraction, kExp2QuotientF64Short), every(1.0));
  return power(shifted) * power_of_fraction;
}

[[gnu::always_inline]] inline CommonParts common_parts(const CommonElement& of,
                                                       const Marks& is_likely) {
  const Numbers zero = every(0.0);
  const Numbers one = every(1.0);
  const Numbers a = select(is_likely, one, of.e);
  const Numbers rest = select(is_likely, of.e, one);
  const Numbers d_sum = mul_add(of.gamma, of.sum, of.delta * a);
  const Marks near_one = of.sum < d_sum + d_sum;
  const Numbers minus_k = select(near_one, zero, zero - exponent_of(d_sum));
  const Numbers scaled = d_sum * power(minus_k + every(kPowerMagic64));
  const Numbers numerator = select(near_one, zero - of.delta * rest, scaled - of.sum);
  const Numbers denominator = scaled + of.sum;
  const Numbers product = of.sum * d_sum;
  const Numbers inverse_of_all = one / (product * denominator);
  const Numbers inverse = inverse_of_all * denominator;  // of the product
  const Numbers one_minus_p = rest * (inverse * d_sum);
  const Numbers s = numerator * (inverse_of_all * product);
  const Numbers z = s * s;
  const Numbers log_of_ratio = mul_add(s, z * horner<4>(z, kLogShort), s + s);
  const Numbers minus_log = mul_add(minus_k, every(kLn2), zero - log_of_ratio);
  return {select(of.delta == zero, one_minus_p, minus_log * of.inverse_delta),
          a * (of.sum * inverse) * one_minus_p};
}

// At gamma = 0: of_positive (-log p1) + of_negative (-log p0).
[[gnu::always_inline]] inline CommonParts common_cross_entropy(const Numbers& e,
                                                               const Numbers& size,
                                                               const Marks& is_negative,
                                                               const Numbers& of_positive,
                                                               const Numbers& of_negative) {
  const Numbers sum = every(1.0) + e;
  const Numbers two_more = every(2.0) + e;
  const Numbers inverse_of_both = every(1.0) / (sum * two_more);
  const Numbers s = e * (sum * inverse_of_both);
  const Numbers z = s * s;
  const Numbers log_sum = mul_add(s, z * horner<4>(z, kLogShort), s + s);
  const Numbers large = two_more * inverse_of_both;
  const Numbers small = e * large;
  const Numbers of_unlikely = select(is_negative, of_positive, of_negative);
  return {mul_add(of_positive + of_negative, log_sum, of_unlikely * size),
          of_negative * select(is_negative, small, large) -
              of_positive * select(is_negative, large, small)};
}

}  // namespace
}  // namespace gce
