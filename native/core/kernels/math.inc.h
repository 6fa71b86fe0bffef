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

constexpr double kLn2 = 0x1.62e42fefa39efp-1;
constexpr double kLn2High = 0x1.62e42fefa0000p-1;  // 33 bits: exact times any exponent
constexpr double kLn2Low = 0x1.cf79abc9e3b39p-40;

inline void store_as_double(double* p, F32 x) {
  store(p, widen_low(x));
  store(p + F64::kLanes, widen_high(x));
}
inline void store_as_double(double* p, F64 x) { store(p, x); }

// A vector's worth of doubles, in the vector's own precision.
inline void store_narrowed(float* p, const double* from) {
  store(p, narrow(load(from), load(from + F64::kLanes)));
}
inline void store_narrowed(double* p, const double* from) { store(p, load(from)); }

// F64::kLanes floats or doubles.
inline F64 load_as_double(const float* p) {
  return widen_low(load_first(p, F64::kLanes, broadcast(0.0f)));
}
inline F64 load_as_double(const double* p) { return load(p); }

template <int kDegree, class Vector>
[[gnu::always_inline]] inline Vector horner(Vector t, const typename Vector::Scalar* coefficients) {
  Vector sum = broadcast(coefficients[kDegree]);
  for (int k = kDegree - 1; k >= 0; --k) {
    sum = mul_add(sum, t, broadcast(coefficients[k]));
  }
  return sum;
}

// Of 2^t = 1 + t q(t): the coefficients of q, and for float the powers of the fractions that the ISA's
// `power` looks up.
template <int kBits>
struct Exp2Fit;
template <>
struct Exp2Fit<0> {
  static constexpr int kDegree = 4;
  static constexpr const float* kQuotient = kExp2QuotientF32Bits0;
  static constexpr const uint32_t* kTable = nullptr;
};
template <>
struct Exp2Fit<3> {
  static constexpr int kDegree = 2;
  static constexpr const float* kQuotient = kExp2QuotientF32Bits3;
  static constexpr const uint32_t* kTable = kExp2TableBits3;
};
template <>
struct Exp2Fit<5> {
  static constexpr int kDegree = 1;
  static constexpr const float* kQuotient = kExp2QuotientF32Bits5;
  static constexpr const uint32_t* kTable = kExp2TableBits5;
};

inline F32 power_of(F32 shifted) { return power(shifted, Exp2Fit<kExp2Bits>::kTable); }
inline F64 power_of(F64 shifted) { return power(shifted); }
inline F32 exp2_quotient(F32 t) {
  return horner<Exp2Fit<kExp2Bits>::kDegree>(t, Exp2Fit<kExp2Bits>::kQuotient);
}
inline F64 exp2_quotient(F64 t) { return horner<10>(t, kExp2QuotientF64); }

// The range of x in e = 2^x, x = z log2(e) - K, for an integer K, the row's reference. Below kLeast e is no
// subnormal, on which arithmetic can be a hundred times slower. For double it is 0 there. For float it is
// 2^kLeast, which saves an operation and is nothing beside a sum, in double, of at least 1/2. Above kMost the
// row needs another K. K and so z have a limit, where x is exact enough.
template <class Vector>
struct ExponentRange;
template <>
struct ExponentRange<F32> {
  static constexpr float kMagic = kPowerMagic32;
  static constexpr float kLeast = -124.0f;
  static constexpr float kMost = 60.0f;
  static constexpr float kLargestLogit = 32768.0f;
};
template <>
struct ExponentRange<F64> {
  static constexpr double kMagic = kPowerMagic64;
  static constexpr double kLeast = -1020.0;
  static constexpr double kMost = 60.0;
  static constexpr double kLargestLogit = 1048576.0;
};

// What makes logits exponentials for one K.
template <class Vector>
struct Exponent {
  Vector magic;
  Vector least;  // logit
  explicit Exponent(Vector reference)
      : magic(broadcast(ExponentRange<Vector>::kMagic) - reference),
        least((reference + broadcast(ExponentRange<Vector>::kLeast)) *
              broadcast(1 / Log2E<Vector>::kValue)) {}
};

inline F32 zero_below(F32, F32, F32 e) { return e; }
inline F64 zero_below(F64 least, F64 z, F64 e) { return keep(e, not_less(z, least)); }

// 2^(z log2(e) - K) of N vectors, the inner loop of everything: relative error 1.7e-7 (float), 2^-52 (double);
// powers of an integer are exact, NaN stays NaN. *largest takes in x + kMagic. Step by step for all N, so that a CPU
// that waits for one has the others at hand.
template <int N, class Vector>
[[gnu::always_inline]] inline void exponentials(const Vector* z, const Exponent<Vector>& of,
                                                Vector* largest, Vector* e) {
  const Vector log2e = broadcast(Log2E<Vector>::kValue);
  Vector bounded[N];
  Vector shifted[N];
  Vector t[N];
  Vector whole[N];
  for (int u = 0; u < N; ++u) bounded[u] = max(of.least, z[u]);
  for (int u = 0; u < N; ++u) shifted[u] = mul_add(bounded[u], log2e, of.magic);
  for (int u = 0; u < N; ++u) *largest = max_positive(*largest, shifted[u]);
  for (int u = 0; u < N; ++u) t[u] = fused_mul_sub(bounded[u], log2e, shifted[u] - of.magic);
  for (int u = 0; u < N; ++u) whole[u] = power_of(shifted[u]);
  for (int u = 0; u < N; ++u) t[u] = t[u] * exp2_quotient(t[u]);
  for (int u = 0; u < N; ++u) {
    e[u] = zero_below(of.least, z[u], mul_add(whole[u], t[u], whole[u]));
  }
}
template <class Vector>
[[gnu::always_inline]] inline Vector exponential(Vector z, const Exponent<Vector>& of,
                                                 Vector* largest) {
  Vector e;
  exponentials<1>(&z, of, largest, &e);
  return e;
}

// 2^t for |t| <= 1/2 and a little more: relative error 2^-52, and 1.1e-10.
inline F64 exp2_centered(F64 t) { return mul_add(t, exp2_quotient(t), broadcast(1.0)); }
[[gnu::always_inline]] inline F64 exp2_short(F64 t) {
  return mul_add(t, horner<6>(t, kExp2QuotientF64Short), broadcast(1.0));
}
// 2^x for |x| <= 1021.
inline F64 exp2(F64 x) {
  const F64 magic = broadcast(kPowerMagic64);
  const F64 shifted = x + magic;
  return power(shifted) * exp2_centered(x - (shifted - magic));
}

// log(x) for x > 0, subnormal and +inf too: error below 2 ulp, and relative error of that size near 1.
[[gnu::always_inline]] inline F64 log(F64 x) {
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
