// Powers of two of doubles by the exponent's bits, for ISAs without vscalef. Included at the end of a header that
// has defined power (README.md).

namespace gce {
namespace {

constexpr double kPowerMagic64 = 0x1.8p52 + 1023.0;

// In two halves, because 2^n itself may overflow or vanish where x 2^n does not.
inline F64 scale_by_integer(F64 x, F64 n) {
  const F64 magic = broadcast(kPowerMagic64);
  const F64 shifted = n * broadcast(0.5) + magic;
  const F64 other_half = n - (shifted - magic);
  return x * power(shifted) * power(other_half + magic);
}

}  // namespace
}  // namespace gce
