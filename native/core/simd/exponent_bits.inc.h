// Powers of two of doubles by the exponent's bits, for ISAs without vreduce and vscalef. Included at the end of
// a header that has defined keep and power (README.md).
//
// The fraction is centred and its polynomial gives twice the power, so that scale multiplies by 2^(n - 1): where
// the result would just fail to be a normal number that factor is 0, and no product is ever subnormal, which
// would be slow even in a lane that is masked. Out of range the power is anything, for scale to mask. It is
// multiplied in, which keeps a NaN.

namespace gce {
namespace {

constexpr double kPowerMagic64 = 0x1.8p52 + 1023.0;
constexpr bool kFractionIsPositive = false;
struct Split64 {
  F64 fraction;
  F64 shifted;  // n - 1 + kPowerMagic64
};
inline Split64 split(F64 x) {
  const F64 magic = broadcast(kPowerMagic64 - 1.0);
  const F64 shifted = x + magic;
  return {x - (shifted - magic), shifted};
}
inline F64 scale(F64 x, Split64 s, Mask64 alive) { return keep(x * power(s.shifted), alive); }

// In two halves, because 2^n itself may overflow or vanish where x 2^n does not.
inline F64 scale_by_integer(F64 x, F64 n) {
  const F64 magic = broadcast(kPowerMagic64);
  const F64 shifted = n * broadcast(0.5) + magic;
  const F64 other_half = n - (shifted - magic);
  return x * power(shifted) * power(other_half + magic);
}

}  // namespace
}  // namespace gce
