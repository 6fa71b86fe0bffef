// The epilogue of float rows in the common case: one division, and all of it in registers.
// Included by ../kernels.inc.h.
//
// In double, with S the sum of exponentials, e the target's, rest = S - e the others', d = 1 - gamma,
// D = gamma S + d e, whence p = e/S, w = e/D, gamma + d p = D/S. The logarithm is that of 2^k (2^-k D)/S, with
//   s = (2^-k D - S)/(2^-k D + S):   -log(D/S) = -(k log 2 + 2 atanh s)
// and one division serves it and all else: 1/(S D (2^-k D + S)). Where D/S > 1/2, k = 0 and the difference is -d rest.
// Polynomials are of 1e-10 or better: nothing beside the exponentials' 1.7e-7.
//
// A reference greater by n scales e and S by 2^-n, and changes no digit of any result.

namespace gce {
namespace {

constexpr int kEpilogueRows = kEpilogueVectors * F32::kLanes;
static_assert(kMaxTileRows % kEpilogueRows == 0, "the last rows of a tile");

// A number for each of kEpilogueRows rows. Every operation is done for all, so that a CPU that waits for one vector has
// the others at hand.
struct Numbers {
  F64 of[2 * kEpilogueVectors];
};
struct Marks {
  Mask64 of[2 * kEpilogueVectors];
};
template <class Of>
[[gnu::always_inline]] inline Numbers each(const Of& of) {
  static_assert(kEpilogueVectors == 2, "four of them");
  return {{of(0), of(1), of(2), of(3)}};
}
template <class Of>
[[gnu::always_inline]] inline Marks each_mark(const Of& of) {
  return {{of(0), of(1), of(2), of(3)}};
}
#define GCE_EACH [[gnu::always_inline]] inline
GCE_EACH Numbers every(double x) {
  return each([=](int) { return broadcast(x); });
}
GCE_EACH Numbers operator+(const Numbers& a, const Numbers& b) {
  return each([&](int u) { return a.of[u] + b.of[u]; });
}
GCE_EACH Numbers operator-(const Numbers& a, const Numbers& b) {
  return each([&](int u) { return a.of[u] - b.of[u]; });
}
GCE_EACH Numbers operator*(const Numbers& a, const Numbers& b) {
  return each([&](int u) { return a.of[u] * b.of[u]; });
}
GCE_EACH Numbers operator/(const Numbers& a, const Numbers& b) {
  return each([&](int u) { return a.of[u] / b.of[u]; });
}
GCE_EACH Numbers mul_add(const Numbers& a, const Numbers& b, const Numbers& c) {
  return each([&](int u) { return mul_add(a.of[u], b.of[u], c.of[u]); });
}
GCE_EACH Numbers fused_mul_sub(const Numbers& a, const Numbers& b, const Numbers& c) {
  return each([&](int u) { return fused_mul_sub(a.of[u], b.of[u], c.of[u]); });
}
GCE_EACH Numbers max(const Numbers& a, const Numbers& b) {
  return each([&](int u) { return max(a.of[u], b.of[u]); });
}
GCE_EACH Marks operator<(const Numbers& a, const Numbers& b) {
  return each_mark([&](int u) { return a.of[u] < b.of[u]; });
}
GCE_EACH Marks operator==(const Numbers& a, const Numbers& b) {
  return each_mark([&](int u) { return a.of[u] == b.of[u]; });
}
GCE_EACH Marks operator&(const Marks& a, const Marks& b) {
  return each_mark([&](int u) { return a.of[u] & b.of[u]; });
}
GCE_EACH Marks operator|(const Marks& a, const Marks& b) {
  return each_mark([&](int u) { return a.of[u] | b.of[u]; });
}
GCE_EACH Numbers select(const Marks& m, const Numbers& yes, const Numbers& no) {
  return each([&](int u) { return select(m.of[u], yes.of[u], no.of[u]); });
}
GCE_EACH bool all(const Marks& m) { return all((m.of[0] & m.of[1]) & (m.of[2] & m.of[3])); }
GCE_EACH bool any(const Marks& m) { return any((m.of[0] | m.of[1]) | (m.of[2] | m.of[3])); }
GCE_EACH Numbers one_nan(const Numbers& x) {
  return each([&](int u) { return one_nan(x.of[u]); });
}
GCE_EACH Numbers exponent_of(const Numbers& x) {
  return each([&](int u) { return exponent_of(x.of[u]); });
}
GCE_EACH Numbers magnitude_of(const Numbers& x) {
  return each([&](int u) { return magnitude_of(x.of[u]); });
}
GCE_EACH Numbers power(const Numbers& shifted) {
  return each([&](int u) { return power(shifted.of[u]); });
}
template <int kDegree>
GCE_EACH Numbers horner(const Numbers& t, const double* coefficients) {
  Numbers sum = every(coefficients[kDegree]);
  for (int k = kDegree - 1; k >= 0; --k) sum = mul_add(sum, t, every(coefficients[k]));
  return sum;
}
GCE_EACH Numbers load_numbers(const double* p) {
  return each([&](int u) { return load(p + u * F64::kLanes); });
}
GCE_EACH Marks negative_numbers(const int64_t* p) {
  return each_mark([&](int u) { return negative(p + u * F64::kLanes); });
}
GCE_EACH void store_numbers(double* p, const Numbers& x) {
  for (int u = 0; u < 2 * kEpilogueVectors; ++u) store(p + u * F64::kLanes, x.of[u]);
}
// From and to as many floats.
GCE_EACH Numbers widen(const F32* x) {
  return each([&](int u) { return u % 2 == 0 ? widen_low(x[u / 2]) : widen_high(x[u / 2]); });
}
GCE_EACH Numbers load_numbers(const float* p) {
  const F32 x[kEpilogueVectors] = {load(p), load(p + F32::kLanes)};
  return widen(x);
}
GCE_EACH void store_numbers(float* p, const Numbers& x) {
  for (int v = 0; v < kEpilogueVectors; ++v) {
    store(p + v * F32::kLanes, narrow(x.of[2 * v], x.of[2 * v + 1]));
  }
}
#undef GCE_EACH

// Fills the results of rows r to r + kEpilogueRows - 1. Those of rows that are not common are the general
// epilogue's: rows with a threshold, or a gamma below kLeastCommonGamma, or p below 2^-100, or a NaN.
template <class Storage>
class CommonEpilogue {
 public:
  CommonEpilogue(const EpilogueNeeds& needs, Tile<Storage>* tile) : needs_(needs), t_(*tile) {}

  [[gnu::always_inline]] void run(int64_t r) {
    const Numbers zero = every(0.0);
    const Numbers one = every(1.0);
    const Numbers magic = every(kPowerMagic64);
    const Numbers log2e = every(static_cast<double>(Log2E<F32>::kValue));
    F32 logit32[kEpilogueVectors];
    F32 as_summed32[kEpilogueVectors];  // the target's exponential: see target_stats
    for (int v = 0; v < kEpilogueVectors; ++v) {
      const int64_t at = r + v * F32::kLanes;
      F32 any_size = broadcast(ExponentRange<F32>::kMagic);
      logit32[v] = load(t_.target_logit + at) - load(t_.shift + at);
      as_summed32[v] = exponential(logit32[v], Exponent<F32>(load(t_.reference + at)), &any_size);
    }
    const Numbers logit = widen(logit32);
    const Numbers high = load_numbers(t_.sum_high + r);
    const Numbers low = load_numbers(t_.sum_low + r);
    const Numbers sum = high + low;
    const Numbers raised = exponent_of(sum);
    const Numbers reference = load_numbers(t_.reference + r) + raised;
    const Numbers x = fused_mul_sub(logit, log2e, reference);
    const Marks ignored = negative_numbers(t_.target + r);
    Marks common = every(-100.0) < x;
    if (!t_.options_are_common) common = common & has_common_options(r);
    common = common | ignored;
    const bool all_common = all(common);
    if (!all_common) general(r);
    const auto put = [&](auto* array, const Numbers& value) {
      store_numbers(array, all_common ? value : select(common, value, load_numbers(array)));
    };

    const Numbers shifted = x + magic;
    const Numbers fraction = mul_add(x, every(Log2E<F32>::kStretch),
                                     fused_mul_sub(logit, log2e, reference + (shifted - magic)));
    const Numbers power_of_fraction =
        mul_add(fraction, horner<6>(fraction, kExp2QuotientF64Short), one);
    const Numbers anew = power(shifted + raised) * power_of_fraction;
    const Numbers e = select(x < every(-2.0), anew, widen(as_summed32));

    const Numbers gamma = load_numbers(t_.gamma + r);
    const Numbers delta = one - gamma;
    const Numbers rest = max(zero, (high - e) + low);
    const Numbers d_sum = mul_add(gamma, sum, delta * e);
    const Marks near_one = sum < d_sum + d_sum;
    const Numbers minus_k = select(near_one, zero, raised - exponent_of(d_sum));
    const Numbers scaled = d_sum * power(minus_k + magic);
    const Numbers numerator = select(near_one, zero - delta * rest, scaled - sum);
    const Numbers denominator = scaled + sum;
    const Numbers product = sum * d_sum;
    const Numbers inverse_of_all = one / (product * denominator);
    const Numbers inverse = inverse_of_all * denominator;  // of the product
    const Numbers inverse_sum = inverse * d_sum;
    const Numbers one_minus_p = rest * inverse_sum;
    const Numbers row_weight = load_numbers(t_.row_weight + r);
    if (needs_.grad) {
      const Numbers weight = e * (sum * inverse);
      const Numbers slope =
          weight * ((row_weight * every(needs_.inverse_divisor)) * load_numbers(t_.upstream + r));
      const Numbers factor = select(ignored, zero, one_nan(slope * inverse_sum));
      put(t_.grad_factor + r, factor);
      put(t_.grad_scale + r, one);
      const Numbers size = magnitude_of(factor);
      if (!all(every(kLeastNormal<F32>) < size)) {
        const Marks by_scale = (zero < size) & (size < every(kLeastNormal<F32>));
        put(t_.grad_factor + r, select(by_scale, factor * power(raised + magic), factor));
        put(t_.grad_scale + r, select(by_scale, power(magic - raised), one));
      }
      put(t_.target_grad_wide + r, one_nan(zero - slope * one_minus_p));
      for (int v = 0; v < kEpilogueVectors; ++v) {
        const int64_t at = r + v * F32::kLanes;
        make_zeros_positive(t_.grad_factor + at);
        store(t_.target_grad + at, load(t_.target_grad_wide + at));
      }
    }
    if (!needs_.loss) return;
    const Numbers s = numerator * (inverse_of_all * product);
    const Numbers z = s * s;
    const Numbers log_of_ratio = mul_add(s, z * horner<4>(z, kLogShort), s + s);
    const Numbers minus_log = mul_add(minus_k, every(kLn2), zero - log_of_ratio);
    const Numbers inverse_delta = load_numbers(t_.inverse_delta + r);
    const Numbers of_row = select(delta == zero, one_minus_p, minus_log * inverse_delta);
    put(t_.loss + r, select(ignored, zero, one_nan(of_row * row_weight)));
  }

 private:
  [[gnu::noinline]] void general(int64_t r) {
    for (int v = 0; v < kEpilogueVectors; ++v) {
      GeneralEpilogue<Storage>(needs_, r + v * F32::kLanes, &t_).run();
    }
  }

  [[gnu::always_inline]] Marks has_common_options(int64_t r) const {
    const Numbers gamma = load_numbers(t_.gamma + r);
    const Numbers threshold = load_numbers(t_.threshold + r);
    return each_mark([&](int u) {
      return not_less(gamma.of[u], broadcast(kLeastCommonGamma)) &
             (threshold.of[u] == broadcast(0.0));
    });
  }

  const EpilogueNeeds needs_;
  Tile<Storage>& t_;
};

template <class Storage>
void general_epilogue(const EpilogueNeeds& needs, Tile<Storage>* tile) {
  for (int64_t r = 0; r < tile->rows; r += Tile<Storage>::Vector::kLanes) {
    GeneralEpilogue<Storage>(needs, r, tile).run();
  }
}

// Fills the results of one tile, but for grad_floor. Loss and gradient are the same whatever else is asked for.
template <class Storage>
void tile_epilogue(const EpilogueNeeds& needs, Tile<Storage>* tile) {
  if constexpr (sizeof(typename Tile<Storage>::Scalar) == sizeof(float)) {
    if (needs.may_be_common()) {
      CommonEpilogue<Storage> epilogue(needs.of_loss_and_grad(), tile);
      for (int64_t r = 0; r < tile->rows; r += kEpilogueRows) epilogue.run(r);
      if (needs.beside_loss_and_grad()) general_epilogue(needs.beside(), tile);
      return;
    }
  }
  general_epilogue(needs, tile);
}

}  // namespace
}  // namespace gce
