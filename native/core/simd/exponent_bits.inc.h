// Powers of two by the exponent's bits, for ISAs without vreduce and vscalef. Included at the end of a
// header that has defined keep(x, mask), x where the mask is set and +0 elsewhere, and power_of_two:
//
// x + kPowerMagic is rounded to an integer, and its low bits are that integer plus the exponent bias:
// shifted up by power_of_two they are 2^n. Multiplied in, they keep a NaN. Out of range they are anything,
// for scale to mask. The fraction is centred and its polynomial gives twice the power, so that scale
// multiplies by 2^(n - 1): where the result would just fail to be a normal number that factor is 0, and no
// product is ever subnormal, which would be slow even in a lane that is masked.

namespace gce {
namespace {

constexpr bool kFractionIsPositive = false;
constexpr double kPowerMagic64 = 0x1.8p52 + 1023.0;
constexpr float kMagic32 = 0x1.8p23f + 126.0f;
constexpr double kMagic64 = kPowerMagic64 - 1.0;
struct Split32 {
  F32 fraction;
  F32 shifted;  // n + kMagic
};
struct Split64 {
  F64 fraction;
  F64 shifted;
};
inline Split32 split(F32 x) {
  const F32 magic = broadcast(kMagic32);
  const F32 shifted = x + magic;
  return {x - (shifted - magic), shifted};
}
inline Split64 split(F64 x) {
  const F64 magic = broadcast(kMagic64);
  const F64 shifted = x + magic;
  return {x - (shifted - magic), shifted};
}
inline F32 scale(F32 x, Split32 s, Mask32 alive) {
  return keep(x * power_of_two(s.shifted), alive);
}
inline F64 scale(F64 x, Split64 s, Mask64 alive) {
  return keep(x * power_of_two(s.shifted), alive);
}

// In two halves, because 2^n itself may overflow or vanish where x 2^n does not.
inline F64 scale_by_integer(F64 x, F64 n) {
  const F64 magic = broadcast(kPowerMagic64);
  const F64 shifted = n * broadcast(0.5) + magic;
  const F64 other_half = n - (shifted - magic);
  return x * power_of_two(shifted) * power_of_two(other_half + magic);
}

}  // namespace
}  // namespace gce
