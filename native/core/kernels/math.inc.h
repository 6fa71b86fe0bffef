// exp2 and log on vectors, and the types a storage format computes in. Included by ../kernels.inc.h.

namespace gce {
namespace {

template <class Storage>
struct ComputeOf {
  using Vector = F32;
};
template <>
struct ComputeOf<double> {
  using Vector = F64;
};

// log2(e), rounded. Sums and gradients use the same constant, so its error only stretches the
// distances between a row's logits by one part in 2^26 (float) or 2^54.
template <class Vector>
struct Log2E;
template <>
struct Log2E<F32> {
  static constexpr float kValue = 0x1.715476p+0f;
  static constexpr double kStretch = 0x1.cab1b75d6aa83p-27;  // exact log2(e) / kValue - 1
};
template <>
struct Log2E<F64> {
  static constexpr double kValue = 0x1.71547652b82fep+0;
  static constexpr double kStretch = 0x1.0444d0e734faap-56;
};

constexpr double kLn2High = 0x1.62e42fefa0000p-1;  // 33 bits: exact times any exponent
constexpr double kLn2Low = 0x1.cf79abc9e3b39p-40;

inline void store_as_double(double* p, F32 x) {
  store(p, widen_low(x));
  store(p + F64::kLanes, widen_high(x));
}
inline void store_as_double(double* p, F64 x) { store(p, x); }

// F64::kLanes floats or doubles.
inline F64 load_as_double(const float* p) {
  return widen_low(load_first(p, F64::kLanes, broadcast(0.0f)));
}
inline F64 load_as_double(const double* p) { return load(p); }

template <int kDegree, class Vector>
inline Vector horner(Vector t, const typename Vector::Scalar* coefficients) {
  Vector sum = broadcast(coefficients[kDegree]);
  for (int k = kDegree - 1; k >= 0; --k) {
    sum = mul_add(sum, t, broadcast(coefficients[k]));
  }
  return sum;
}

// From here on 2^x is a normal number, with an exponent to spare for the rounding of x to an integer.
template <class Vector>
struct NormalExponent;
template <>
struct NormalExponent<F32> {
  static constexpr float kValue = -125.0f;
};
template <>
struct NormalExponent<F64> {
  static constexpr double kValue = -1021.0;
};

template <class Vector>
inline Vector normal_exponent() {
  return broadcast(NormalExponent<Vector>::kValue);
}

// 2^x for floor <= x <= 1 and +0 for x < floor, the inner loop of everything: relative error 1.8e-7
// (float), 2^-52 (double). 2^integer is exact, NaN stays NaN. A floor of at least normal_exponent keeps
// subnormal numbers, on which arithmetic can be a hundred times slower, out of the loops.
inline F32 exp2(F32 x, F32 floor) {
  const Split32 parts = split(x);
  return scale(
      horner<5>(parts.fraction, kFractionIsPositive ? kExp2PositiveF32 : kTwiceExp2CenteredF32),
      parts, not_less(x, floor));
}
inline F64 exp2(F64 x, F64 floor) {
  const Split64 parts = split(x);
  return scale(
      horner<11>(parts.fraction, kFractionIsPositive ? kExp2PositiveF64 : kTwiceExp2CenteredF64),
      parts, not_less(x, floor));
}
template <class Vector>
inline Vector exp2(Vector x) {
  return exp2(x, normal_exponent<Vector>());
}

// log(x) for x > 0, subnormal and +inf too: error below 2 ulp, and relative error of that size near 1.
inline F64 log(F64 x) {
  const F64 one = broadcast(1.0);
  F64 exponent = exponent_of(x);
  F64 mantissa = mantissa_of(x);
  const Mask64 large = broadcast(0x1.6a09e667f3bcdp+0) < mantissa;  // sqrt(2)
  mantissa = select(large, mantissa * broadcast(0.5), mantissa);
  exponent = select(large, exponent + one, exponent);
  const F64 f = mantissa - one;
  const F64 s = f / (broadcast(2.0) + f);
  const F64 z = s * s;
  const F64 tail = s * (z * horner<6>(z, kLog));
  const F64 low = mul_add(exponent, broadcast(kLn2Low), tail);
  return mul_add(exponent, broadcast(kLn2High), mul_add(s, broadcast(2.0), low));
}

// log(1 - u) for 0 <= u <= 1 without cancellation: the rounding error of 1 - u is known exactly.
inline F64 log_one_minus(F64 u) {
  const F64 one = broadcast(1.0);
  const F64 v = one - u;
  const F64 lost = (one - v) - u;
  return log(v) + lost / v;
}

// e^l = 2^exponent mantissa.
struct Exponential {
  F64 mantissa;
  F64 exponent;
};

// Where l is outside [kLeastLogP, 700] the result is that of the nearer end.
constexpr double kLeastLogP = -1400.0;  // past the logarithm of any double, and of any ratio of two

inline Exponential exponential_of(F64 l) {
  constexpr double kLog2ELow = 0x1.777d0ffda0d24p-56;  // log2(e) - Log2E<F64>
  const F64 log2e = broadcast(Log2E<F64>::kValue);
  const F64 bounded = max(broadcast(kLeastLogP), l);  // keeps NaN
  const F64 above = select(broadcast(700.0) < bounded, broadcast(700.0), bounded);
  const F64 whole = ceil(above * log2e);
  const F64 fraction = mul_add(above, broadcast(kLog2ELow), fused_mul_sub(above, log2e, whole));
  return {exp2(fraction), whole};
}

}  // namespace
}  // namespace gce
