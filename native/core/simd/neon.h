// The SIMD layer for AArch64 (Advanced SIMD). See simd/README.md for the contract that every header of this
// folder meets. Memory is reached by memcpy, which is one load or store and needs no alignment.
#include <arm_neon.h>
#include <string.h>

#include "../kernel_table.h"
#include "../storage.h"

#define GCE_ISA neon

namespace gce {
namespace {

struct F32 {
  using Scalar = float;
  static constexpr int kLanes = 4;
  float32x4_t v;
};
struct F64 {
  using Scalar = double;
  static constexpr int kLanes = 2;
  float64x2_t v;
};
struct Mask32 {
  uint32x4_t m;  // all bits of a lane, or none
};
struct Mask64 {
  uint64x2_t m;
};

// --- constants, arithmetic -----------------------------------------------------------------------
inline F32 broadcast(float x) { return {vdupq_n_f32(x)}; }
inline F64 broadcast(double x) { return {vdupq_n_f64(x)}; }
inline F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
inline F64 operator+(F64 a, F64 b) { return {vaddq_f64(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
inline F64 operator-(F64 a, F64 b) { return {vsubq_f64(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
inline F64 operator*(F64 a, F64 b) { return {vmulq_f64(a.v, b.v)}; }
inline F64 operator/(F64 a, F64 b) { return {vdivq_f64(a.v, b.v)}; }
inline F32 mul_add(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline F64 mul_add(F64 a, F64 b, F64 c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
inline F32 fused_mul_sub(F32 a, F32 b, F32 c) { return {vfmaq_f32(vnegq_f32(c.v), a.v, b.v)}; }
inline F64 fused_mul_sub(F64 a, F64 b, F64 c) { return {vfmaq_f64(vnegq_f64(c.v), a.v, b.v)}; }
inline F32 ceil(F32 a) { return {vrndpq_f32(a.v)}; }
inline F64 ceil(F64 a) { return {vrndpq_f64(a.v)}; }

// --- comparison, selection -----------------------------------------------------------------------
inline Mask32 operator<(F32 a, F32 b) { return {vcltq_f32(a.v, b.v)}; }
inline Mask64 operator<(F64 a, F64 b) { return {vcltq_f64(a.v, b.v)}; }
inline Mask32 not_less(F32 a, F32 b) { return {vmvnq_u32(vcltq_f32(a.v, b.v))}; }
inline Mask64 not_less(F64 a, F64 b) {
  return {veorq_u64(vcltq_f64(a.v, b.v), vdupq_n_u64(~UINT64_C(0)))};
}
inline Mask32 operator==(F32 a, F32 b) { return {vceqq_f32(a.v, b.v)}; }
inline Mask64 operator==(F64 a, F64 b) { return {vceqq_f64(a.v, b.v)}; }
inline F32 select(Mask32 m, F32 yes, F32 no) { return {vbslq_f32(m.m, yes.v, no.v)}; }
inline F64 select(Mask64 m, F64 yes, F64 no) { return {vbslq_f64(m.m, yes.v, no.v)}; }
inline Mask64 operator&(Mask64 a, Mask64 b) { return {vandq_u64(a.m, b.m)}; }
inline Mask64 operator|(Mask64 a, Mask64 b) { return {vorrq_u64(a.m, b.m)}; }
inline Mask64 negative(const int64_t* p) { return {vcltzq_s64(vld1q_s64(p))}; }
inline bool any(Mask32 m) { return vmaxvq_u32(m.m) != 0; }
inline bool all(Mask32 m) { return vminvq_u32(m.m) != 0; }
inline bool any(Mask64 m) { return vmaxvq_u32(vreinterpretq_u32_u64(m.m)) != 0; }
inline bool all(Mask64 m) { return vminvq_u32(vreinterpretq_u32_u64(m.m)) != 0; }
// Neither vmaxq (NaN if either is) nor vmaxnmq (the number, if one is) gives b where either is NaN.
inline F32 max(F32 a, F32 b) { return select(b < a, a, b); }
inline F64 max(F64 a, F64 b) { return select(b < a, a, b); }
inline F32 min(F32 a, F32 b) { return select(a < b, a, b); }
inline F32 max_positive(F32 a, F32 b) { return {vmaxq_f32(a.v, b.v)}; }
inline F64 max_positive(F64 a, F64 b) { return {vmaxq_f64(a.v, b.v)}; }
inline float max_of_lanes(F32 a) { return vmaxvq_f32(a.v); }
inline double max_of_lanes(F64 a) { return vmaxvq_f64(a.v); }
inline float first_lane(F32 a) { return vgetq_lane_f32(a.v, 0); }
inline double first_lane(F64 a) { return vgetq_lane_f64(a.v, 0); }

// --- 16-bit floats -------------------------------------------------------------------------------
inline F32 to_float(uint16x4_t x, const Float16*) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(x))};
}
inline F32 to_float(uint16x4_t x, const BFloat16*) {
  return {vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(x), 16))};
}
inline uint16x4_t from_float(F32 x, const Float16*) {
  return vreinterpret_u16_f16(vcvt_f16_f32(x.v));
}
// Round to nearest even in integers, so that every ISA gives the same bits; NaN stays a quiet NaN.
inline uint16x4_t from_float(F32 x, const BFloat16*) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
  return vshrn_n_u32(vbslq_u32((x == x).m, rounded, quiet), 16);
}

// --- memory (see four_lanes.inc.h) ---------------------------------------------------------------
using FloatX4 = float32x4_t;
using DoubleX2 = float64x2_t;
using UInt16X4 = uint16x4_t;
inline Mask32 first_of_4(int64_t n) {
  static const uint32_t kIndex[4] = {0, 1, 2, 3};
  return {vcltq_u32(vld1q_u32(kIndex), vdupq_n_u32(static_cast<uint32_t>(n)))};
}

// --- conversion ----------------------------------------------------------------------------------
inline F64 widen_low(F32 x) { return {vcvt_f64_f32(vget_low_f32(x.v))}; }
inline F64 widen_high(F32 x) { return {vcvt_high_f64_f32(x.v)}; }
inline F64 widen_folded(F32 x) {
  return {vcvt_f64_f32(vadd_f32(vget_low_f32(x.v), vget_high_f32(x.v)))};
}
inline F32 narrow(F64 low, F64 high) { return {vcvt_high_f32_f64(vcvt_f32_f64(low.v), high.v)}; }

// --- powers of two -------------------------------------------------------------------------------
constexpr int kExp2Bits = 0;
constexpr float kPowerMagic32 = 0x1.8p23f + 127.0f;
inline F32 power(F32 shifted, const uint32_t*) {
  return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(shifted.v), 23))};
}
inline F64 power(F64 shifted) {
  return {vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(shifted.v), 52))};
}
inline F32 keep(F32 x, Mask32 mask) {
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.v), mask.m))};
}
inline F64 keep(F64 x, Mask64 mask) {
  return {vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(x.v), mask.m))};
}

// A subnormal is brought into the normal range first. log(0) = -inf, log(+inf) = +inf.
inline F64 exponent_of(F64 x) {
  const Mask64 tiny = x < broadcast(0x1p-1022);
  const F64 normal = select(tiny, x * broadcast(0x1p54), x);
  const F64 field = {vcvtq_f64_u64(vshrq_n_u64(vreinterpretq_u64_f64(normal.v), 52))};
  const F64 bias = select(tiny, broadcast(1023.0 + 54.0), broadcast(1023.0));
  const F64 infinity = broadcast(__builtin_inf());
  const F64 above_zero = select(x < infinity, field - bias, x);
  return select(x == broadcast(0.0), broadcast(0.0) - infinity, above_zero);
}
inline F64 mantissa_of(F64 x) {
  const F64 normal = select(x < broadcast(0x1p-1022), x * broadcast(0x1p54), x);
  const uint64x2_t mantissa =
      vandq_u64(vreinterpretq_u64_f64(normal.v), vdupq_n_u64(0x000fffffffffffff));
  const uint64x2_t bits = vorrq_u64(mantissa, vdupq_n_u64(0x3ff0000000000000));
  const Mask64 has_log = {vcgeq_f64(x.v, vdupq_n_f64(0.0))};
  return select(has_log, F64{vreinterpretq_f64_u64(bits)}, broadcast(__builtin_nan("")));
}

}  // namespace
}  // namespace gce

#include "exponent_bits.inc.h"
#include "four_lanes.inc.h"
