// The SIMD layer for any machine, in the vector extensions of GCC and Clang (SSE2 on x86-64). See
// simd/README.md for the contract that every header of this folder meets.
#include <string.h>

#include "../kernel_table.h"
#include "../storage.h"

#define GCE_ISA baseline

#if defined(__GNUC__)
// Given on machines without vector registers; nothing here crosses an ABI.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace gce {
namespace {

using FloatX4 = float __attribute__((vector_size(16)));
using DoubleX2 = double __attribute__((vector_size(16)));
using Int32X4 = int32_t __attribute__((vector_size(16)));
using Int64X2 = int64_t __attribute__((vector_size(16)));
using UInt32X4 = uint32_t __attribute__((vector_size(16)));
using UInt64X2 = uint64_t __attribute__((vector_size(16)));
using UInt16X4 = uint16_t __attribute__((vector_size(8)));
using DoubleX4 = double __attribute__((vector_size(32)));

struct F32 {
  using Scalar = float;
  static constexpr int kLanes = 4;
  FloatX4 v;
};
struct F64 {
  using Scalar = double;
  static constexpr int kLanes = 2;
  DoubleX2 v;
};
struct Mask32 {
  Int32X4 m;  // all bits of a lane, or none
};
struct Mask64 {
  Int64X2 m;
};

// --- constants, arithmetic -----------------------------------------------------------------------
inline F32 broadcast(float x) { return {FloatX4{x, x, x, x}}; }
inline F64 broadcast(double x) { return {DoubleX2{x, x}}; }
inline F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
inline F64 operator+(F64 a, F64 b) { return {a.v + b.v}; }
inline F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
inline F64 operator-(F64 a, F64 b) { return {a.v - b.v}; }
inline F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
inline F64 operator*(F64 a, F64 b) { return {a.v * b.v}; }
inline F64 operator/(F64 a, F64 b) { return {a.v / b.v}; }
inline F32 mul_add(F32 a, F32 b, F32 c) { return a * b + c; }
inline F64 mul_add(F64 a, F64 b, F64 c) { return a * b + c; }

// --- comparison, selection -----------------------------------------------------------------------
inline Mask32 operator<(F32 a, F32 b) { return {reinterpret_cast<Int32X4>(a.v < b.v)}; }
inline Mask64 operator<(F64 a, F64 b) { return {reinterpret_cast<Int64X2>(a.v < b.v)}; }
inline Mask32 not_less(F32 a, F32 b) { return {~reinterpret_cast<Int32X4>(a.v < b.v)}; }
inline Mask64 not_less(F64 a, F64 b) { return {~reinterpret_cast<Int64X2>(a.v < b.v)}; }
inline Mask32 operator==(F32 a, F32 b) { return {reinterpret_cast<Int32X4>(a.v == b.v)}; }
inline Mask64 operator==(F64 a, F64 b) { return {reinterpret_cast<Int64X2>(a.v == b.v)}; }
inline F32 select(Mask32 m, F32 yes, F32 no) {
  return {reinterpret_cast<FloatX4>((m.m & reinterpret_cast<Int32X4>(yes.v)) |
                                    (~m.m & reinterpret_cast<Int32X4>(no.v)))};
}
inline F64 select(Mask64 m, F64 yes, F64 no) {
  return {reinterpret_cast<DoubleX2>((m.m & reinterpret_cast<Int64X2>(yes.v)) |
                                     (~m.m & reinterpret_cast<Int64X2>(no.v)))};
}
inline Mask64 operator&(Mask64 a, Mask64 b) { return {a.m & b.m}; }
inline Mask64 operator|(Mask64 a, Mask64 b) { return {a.m | b.m}; }
inline Mask64 negative(const int64_t* p) {
  Int64X2 x;
  memcpy(&x, p, sizeof(x));
  return {x < 0};
}
inline bool any(Mask64 m) { return (m.m[0] | m.m[1]) != 0; }
inline bool all(Mask64 m) { return (m.m[0] & m.m[1]) != 0; }
inline bool any(Mask32 m) { return any(Mask64{reinterpret_cast<Int64X2>(m.m)}); }
inline bool all(Mask32 m) {
  const Int64X2 pairs = reinterpret_cast<Int64X2>(m.m);
  return (pairs[0] & pairs[1]) == -1;
}
inline F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
inline F64 max(F64 a, F64 b) { return {a.v > b.v ? a.v : b.v}; }
inline F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
inline F32 max_positive(F32 a, F32 b) { return max(a, b); }
inline F64 max_positive(F64 a, F64 b) { return max(a, b); }
inline float first_lane(F32 a) { return a.v[0]; }
inline double first_lane(F64 a) { return a.v[0]; }
inline double max_of_lanes(F64 a) { return a.v[0] > a.v[1] ? a.v[0] : a.v[1]; }
inline float max_of_lanes(F32 a) {
  const F32 m = max(a, F32{__builtin_shufflevector(a.v, a.v, 2, 3, 0, 1)});
  return m.v[0] > m.v[1] ? m.v[0] : m.v[1];
}

// Rounded to nearest by an addition, and up by one where that went down.
inline F32 ceil(F32 a) {
  const F32 magic = broadcast(0x1.8p23f);
  const F32 nearest = (a + magic) - magic;
  return select(nearest < a, nearest + broadcast(1.0f), nearest);
}
inline F64 ceil(F64 a) {
  const F64 magic = broadcast(0x1.8p52);
  const F64 nearest = (a + magic) - magic;
  return select(nearest < a, nearest + broadcast(1.0), nearest);
}

// --- conversion ----------------------------------------------------------------------------------
// By way of a vector of four doubles, never kept: GCC converts vectors of eight bytes lane by lane.
inline F64 widen_low(F32 x) {
  const DoubleX4 all = __builtin_convertvector(x.v, DoubleX4);
  return {__builtin_shufflevector(all, all, 0, 1)};
}
inline F64 widen_high(F32 x) {
  const DoubleX4 all = __builtin_convertvector(x.v, DoubleX4);
  return {__builtin_shufflevector(all, all, 2, 3)};
}
inline F64 widen_folded(F32 x) {
  return widen_low({x.v + __builtin_shufflevector(x.v, x.v, 2, 3, 0, 1)});
}
inline F32 narrow(F64 low, F64 high) {
  const DoubleX4 all = __builtin_shufflevector(low.v, high.v, 0, 1, 2, 3);
  return {__builtin_convertvector(all, FloatX4)};
}

// --- a b - c without FMA -------------------------------------------------------------------------
// The product of two floats is exact in double.
inline F32 fused_mul_sub(F32 a, F32 b, F32 c) {
  return narrow(widen_low(a) * widen_low(b) - widen_low(c),
                widen_high(a) * widen_high(b) - widen_high(c));
}
// Dekker's product with Veltkamp's splitting: a b = product + error exactly. Where the splitting
// overflows (|a| > 2^995, infinity, NaN) the error comes out as NaN and counts as 0.
inline F64 fused_mul_sub(F64 a, F64 b, F64 c) {
  const F64 splitter = broadcast(0x1p27 + 1.0);
  const F64 a_scaled = a * splitter;
  const F64 b_scaled = b * splitter;
  const F64 a_high = a_scaled - (a_scaled - a);
  const F64 b_high = b_scaled - (b_scaled - b);
  const F64 a_low = a - a_high;
  const F64 b_low = b - b_high;
  const F64 product = a * b;
  const F64 error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
  const Int64X2 known = (error == error).m & reinterpret_cast<Int64X2>(error.v);
  return (product - c) + F64{reinterpret_cast<DoubleX2>(known)};
}

// --- 16-bit floats -------------------------------------------------------------------------------
inline UInt32X4 bits_of(F32 x) { return reinterpret_cast<UInt32X4>(x.v); }
inline F32 from_bits(UInt32X4 bits) { return {reinterpret_cast<FloatX4>(bits)}; }
inline UInt32X4 bits_of(Mask32 m) { return reinterpret_cast<UInt32X4>(m.m); }

inline F32 to_float(UInt16X4 x, const Float16*) {
  const UInt32X4 half = __builtin_convertvector(x, UInt32X4);
  const UInt32X4 sign = (half & 0x8000u) << 16;
  const UInt32X4 rest = (half & 0x7fffu) << 13;
  const UInt32X4 rebiased = rest + (112u << 23);
  const UInt32X4 special = reinterpret_cast<UInt32X4>(rest >= 0x0f800000u);  // infinity, NaN
  const UInt32X4 large = rebiased | (special & 0x7f800000u);
  // A subnormal's mantissa, put behind an implicit one that is then taken off.
  const UInt32X4 small = bits_of(from_bits(rest + (113u << 23)) - broadcast(0x1p-14f));
  const UInt32X4 subnormal = reinterpret_cast<UInt32X4>(rest < 0x00800000u);
  return from_bits((subnormal & small) | (~subnormal & large) | sign);
}
inline F32 to_float(UInt16X4 x, const BFloat16*) {
  return from_bits(__builtin_convertvector(x, UInt32X4) << 16);
}

// Round to nearest even in integers; overflow to infinity; NaN quiet, with the top of its payload.
inline UInt16X4 from_float(F32 x, const Float16*) {
  const UInt32X4 sign = bits_of(x) & 0x80000000u;
  const UInt32X4 rest = bits_of(x) ^ sign;
  const UInt32X4 odd = (rest >> 13) & 1u;
  const UInt32X4 normal = (rest - (112u << 23) + 0xfffu + odd) >> 13;
  // Below 2^-14 the addition of 1/2 rounds at the place of a half's last bit.
  const UInt32X4 small = bits_of(from_bits(rest) + broadcast(0.5f)) - 0x3f000000u;
  const UInt32X4 is_small = reinterpret_cast<UInt32X4>(rest < 0x38800000u);
  const UInt32X4 is_large = reinterpret_cast<UInt32X4>(rest >= 0x47800000u);  // 2^16 and up
  const UInt32X4 nan = ~bits_of(x == x);
  const UInt32X4 large = 0x7c00u | (nan & (0x0200u | ((rest >> 13) & 0x03ffu)));
  const UInt32X4 finite = (is_small & small) | (~is_small & normal);
  const UInt32X4 magnitude = (is_large & large) | (~is_large & finite);
  return __builtin_convertvector(magnitude | (sign >> 16), UInt16X4);
}
inline UInt16X4 from_float(F32 x, const BFloat16*) {
  const UInt32X4 bits = bits_of(x);
  const UInt32X4 rounded = bits + (((bits >> 16) & 1u) + 0x7fffu);
  const UInt32X4 number = bits_of(x == x);
  const UInt32X4 chosen = (number & rounded) | (~number & (bits | 0x00400000u));
  return __builtin_convertvector(chosen >> 16, UInt16X4);
}

// --- memory (see four_lanes.inc.h) ---------------------------------------------------------------
inline Mask32 first_of_4(int64_t n) {
  const int32_t count = static_cast<int32_t>(n);
  return {Int32X4{0, 1, 2, 3} < Int32X4{count, count, count, count}};
}

// --- powers of two -------------------------------------------------------------------------------
constexpr int kExp2Bits = 0;
constexpr float kPowerMagic32 = 0x1.8p23f + 127.0f;
inline F32 power(F32 shifted, const uint32_t*) { return from_bits(bits_of(shifted) << 23); }
inline F64 power(F64 shifted) {
  return {reinterpret_cast<DoubleX2>(reinterpret_cast<UInt64X2>(shifted.v) << 52)};
}
inline F32 keep(F32 x, Mask32 mask) { return from_bits(bits_of(x) & bits_of(mask)); }
inline F64 keep(F64 x, Mask64 mask) {
  return {reinterpret_cast<DoubleX2>(reinterpret_cast<Int64X2>(x.v) & mask.m)};
}

// A subnormal is brought into the normal range first. log(0) = -inf, log(+inf) = +inf.
inline F64 exponent_of(F64 x) {
  const Mask64 tiny = x < broadcast(0x1p-1022);
  const F64 normal = select(tiny, x * broadcast(0x1p54), x);
  const UInt64X2 field = reinterpret_cast<UInt64X2>(normal.v) >> 52;
  const F64 biased = {reinterpret_cast<DoubleX2>(field | 0x4330000000000000u)};  // 2^52 + field
  const F64 bias = select(tiny, broadcast(0x1p52 + 1023.0 + 54.0), broadcast(0x1p52 + 1023.0));
  const F64 infinity = broadcast(__builtin_inf());
  const F64 above_zero = select(x < infinity, biased - bias, x);
  return select(x == broadcast(0.0), broadcast(0.0) - infinity, above_zero);
}
inline F64 mantissa_of(F64 x) {
  const F64 normal = select(x < broadcast(0x1p-1022), x * broadcast(0x1p54), x);
  const UInt64X2 bits =
      (reinterpret_cast<UInt64X2>(normal.v) & 0x000fffffffffffffu) | 0x3ff0000000000000u;
  const Mask64 has_log = {reinterpret_cast<Int64X2>(x.v >= broadcast(0.0).v)};
  return select(has_log, F64{reinterpret_cast<DoubleX2>(bits)}, broadcast(__builtin_nan("")));
}

}  // namespace
}  // namespace gce

#include "exponent_bits.inc.h"
#include "four_lanes.inc.h"
