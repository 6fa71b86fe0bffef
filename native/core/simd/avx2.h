// The SIMD layer for AVX2 with FMA and F16C. See simd/README.md for the contract that every header of
// this folder meets.
#include <immintrin.h>

#include "../kernel_table.h"
#include "../storage.h"

#define GCE_ISA avx2

namespace gce {
namespace {

struct F32 {
  using Scalar = float;
  static constexpr int kLanes = 8;
  __m256 v;
};
struct F64 {
  using Scalar = double;
  static constexpr int kLanes = 4;
  __m256d v;
};
struct Mask32 {
  __m256 m;  // all bits of a lane, or none
};
struct Mask64 {
  __m256d m;
};

// --- constants, arithmetic -----------------------------------------------------------------------
inline F32 broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline F64 broadcast(double x) { return {_mm256_set1_pd(x)}; }
inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F64 operator+(F64 a, F64 b) { return {_mm256_add_pd(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F64 operator-(F64 a, F64 b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F64 operator*(F64 a, F64 b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline F64 operator/(F64 a, F64 b) { return {_mm256_div_pd(a.v, b.v)}; }
inline F32 mul_add(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F64 mul_add(F64 a, F64 b, F64 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline F32 fused_mul_sub(F32 a, F32 b, F32 c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }
inline F64 fused_mul_sub(F64 a, F64 b, F64 c) { return {_mm256_fmsub_pd(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F64 max(F64 a, F64 b) { return {_mm256_max_pd(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
// Of positive numbers, whose order is that of their bits; integers have more ports.
inline F32 max_positive(F32 a, F32 b) {
  return {
      _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.v), _mm256_castps_si256(b.v)))};
}
inline F64 max_positive(F64 a, F64 b) { return max(a, b); }
inline F32 ceil(F32 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)}; }
inline F64 ceil(F64 a) { return {_mm256_round_pd(a.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)}; }

// --- comparison, selection -----------------------------------------------------------------------
inline Mask32 operator<(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask64 operator<(F64 a, F64 b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask32 not_less(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_NLT_UQ)}; }
inline Mask64 not_less(F64 a, F64 b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_NLT_UQ)}; }
inline Mask32 operator==(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask64 operator==(F64 a, F64 b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
inline F32 select(Mask32 m, F32 yes, F32 no) { return {_mm256_blendv_ps(no.v, yes.v, m.m)}; }
inline F64 select(Mask64 m, F64 yes, F64 no) { return {_mm256_blendv_pd(no.v, yes.v, m.m)}; }
inline Mask64 operator&(Mask64 a, Mask64 b) { return {_mm256_and_pd(a.m, b.m)}; }
inline Mask64 operator|(Mask64 a, Mask64 b) { return {_mm256_or_pd(a.m, b.m)}; }
inline Mask64 negative(const int64_t* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_setzero_si256(), x))};
}
inline bool any(Mask32 m) { return _mm256_movemask_ps(m.m) != 0; }
inline bool any(Mask64 m) { return _mm256_movemask_pd(m.m) != 0; }
inline bool all(Mask32 m) { return _mm256_movemask_ps(m.m) == 0xff; }
inline bool all(Mask64 m) { return _mm256_movemask_pd(m.m) == 0xf; }
inline float max_of_lanes(F32 a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline double max_of_lanes(F64 a) {
  const __m128d m = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(m, _mm_unpackhi_pd(m, m)));
}
inline float first_lane(F32 a) { return _mm256_cvtss_f32(a.v); }
inline double first_lane(F64 a) { return _mm256_cvtsd_f64(a.v); }

// --- memory --------------------------------------------------------------------------------------
inline __m128i load_16_bytes(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
inline F32 float16_to_float(__m128i x) { return {_mm256_cvtph_ps(x)}; }
inline F32 bfloat16_to_float(__m128i x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
}
inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F64 load(const double* p) { return {_mm256_loadu_pd(p)}; }
inline F32 load(const Float16* p) { return float16_to_float(load_16_bytes(p)); }
inline F32 load(const BFloat16* p) { return bfloat16_to_float(load_16_bytes(p)); }

inline F32 pick(const float* p, const int32_t* index) {
  const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(p), lanes)};
}

inline __m256i first_of_8(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_of_4(int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline F32 fill_after(F32 x, int64_t n, F32 fill) {
  return {_mm256_blendv_ps(fill.v, x.v, _mm256_castsi256_ps(first_of_8(n)))};
}
inline F32 keep_first(F32 x, int64_t n) {
  return {_mm256_and_ps(x.v, _mm256_castsi256_ps(first_of_8(n)))};
}
inline F64 keep_first(F64 x, int64_t n) {
  return {_mm256_and_pd(x.v, _mm256_castsi256_pd(first_of_4(n)))};
}
// n < 8 elements of 2 bytes, without a call of memcpy.
inline void copy_first(char* to, const char* from, int64_t n) {
  if (n & 4) memcpy(to, from, 8);
  const int64_t past_4 = n & 4;
  if (n & 2) memcpy(to + 2 * past_4, from + 2 * past_4, 4);
  const int64_t past_2 = n & 6;
  if (n & 1) memcpy(to + 2 * past_2, from + 2 * past_2, 2);
}
inline __m128i load_first_16_bit(const void* p, int64_t n) {
  char buffer[16] = {};
  copy_first(buffer, static_cast<const char*>(p), n);
  return load_16_bytes(buffer);
}

inline F32 load_first(const float* p, int64_t n, F32 fill) {
  return fill_after({_mm256_maskload_ps(p, first_of_8(n))}, n, fill);
}
inline F64 load_first(const double* p, int64_t n, F64 fill) {
  const __m256i mask = first_of_4(n);
  return {_mm256_blendv_pd(fill.v, _mm256_maskload_pd(p, mask), _mm256_castsi256_pd(mask))};
}
inline F32 load_first(const Float16* p, int64_t n, F32 fill) {
  return fill_after(float16_to_float(load_first_16_bit(p, n)), n, fill);
}
inline F32 load_first(const BFloat16* p, int64_t n, F32 fill) {
  return fill_after(bfloat16_to_float(load_first_16_bit(p, n)), n, fill);
}

inline __m128i to_float16(F32 x) {
  return _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Round to nearest even in integers, so that every ISA gives the same bits; NaN stays a quiet NaN.
inline __m256i upper_halves(F32 x) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
inline __m128i to_bfloat16(F32 x) {
  const __m256i quiet = _mm256_or_si256(_mm256_castps_si256(x.v), _mm256_set1_epi32(0x00400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(upper_halves(x), quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
inline __m256i to_bfloat16(F32 a, F32 b) {
  const __m256i low = _mm256_srli_epi32(upper_halves(a), 16);
  const __m256i high = _mm256_srli_epi32(upper_halves(b), 16);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}
inline void store_16_bytes(void* p, __m128i x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }
inline void store_first_16_bit(void* p, __m128i x, int64_t n) {
  char buffer[16];
  store_16_bytes(buffer, x);
  copy_first(static_cast<char*>(p), buffer, n);
}

inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x.v); }
inline void store(double* p, F64 x) { _mm256_storeu_pd(p, x.v); }
inline void store(Float16* p, F32 x) { store_16_bytes(p, to_float16(x)); }
inline void store(BFloat16* p, F32 x) { store_16_bytes(p, to_bfloat16(x)); }
inline void store_numbers(BFloat16* p, F32 a, F32 b) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(a, b));
}
inline void stream_numbers(BFloat16* p, F32 a, F32 b) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(a, b));
}
inline void store_first(float* p, F32 x, int64_t n) { _mm256_maskstore_ps(p, first_of_8(n), x.v); }
inline void store_first(double* p, F64 x, int64_t n) { _mm256_maskstore_pd(p, first_of_4(n), x.v); }
inline void store_first(Float16* p, F32 x, int64_t n) { store_first_16_bit(p, to_float16(x), n); }
inline void store_first(BFloat16* p, F32 x, int64_t n) { store_first_16_bit(p, to_bfloat16(x), n); }
inline void stream(float* p, F32 x) { _mm256_stream_ps(p, x.v); }
inline void stream(double* p, F64 x) { _mm256_stream_pd(p, x.v); }
inline void stream(Float16* p, F32 x) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_float16(x));
}
inline void stream(BFloat16* p, F32 x) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bfloat16(x));
}
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// --- conversion ----------------------------------------------------------------------------------
inline F64 widen_low(F32 x) { return {_mm256_cvtps_pd(_mm256_castps256_ps128(x.v))}; }
inline F64 widen_high(F32 x) { return {_mm256_cvtps_pd(_mm256_extractf128_ps(x.v, 1))}; }
inline F64 widen_folded(F32 x) {
  return {_mm256_cvtps_pd(_mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1)))};
}
inline F32 narrow(F64 low, F64 high) {
  return {_mm256_set_m128(_mm256_cvtpd_ps(high.v), _mm256_cvtpd_ps(low.v))};
}

// --- transposition -------------------------------------------------------------------------------
[[gnu::always_inline]] inline void transpose(F32* rows) {
  __m256 a[8];
  __m256 b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {  // b[i + k]: column k of rows i to i + 3, in each 128-bit half
    for (int k = 0; k < 2; ++k) {
      const __m256d low = _mm256_castps_pd(a[i + k]);
      const __m256d high = _mm256_castps_pd(a[i + 2 + k]);
      b[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
      b[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
    }
  }
  for (int k = 0; k < 4; ++k) {
    rows[k].v = _mm256_permute2f128_ps(b[k], b[k + 4], 0x20);
    rows[k + 4].v = _mm256_permute2f128_ps(b[k], b[k + 4], 0x31);
  }
}
[[gnu::always_inline]] inline void transpose(F64* rows) {
  __m256d a[4];
  for (int i = 0; i < 4; i += 2) {
    a[i] = _mm256_unpacklo_pd(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_pd(rows[i].v, rows[i + 1].v);
  }
  for (int k = 0; k < 2; ++k) {
    rows[k].v = _mm256_permute2f128_pd(a[k], a[k + 2], 0x20);
    rows[k + 2].v = _mm256_permute2f128_pd(a[k], a[k + 2], 0x31);
  }
}

// --- powers of two -------------------------------------------------------------------------------
constexpr int kExp2Bits = 3;
constexpr float kPowerMagic32 = 0x1.8p20f;
inline F32 power(F32 shifted, const uint32_t* table) {
  const __m256i bits = _mm256_castps_si256(shifted.v);
  const __m256i entries = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
  const __m256i fraction = _mm256_permutevar8x32_epi32(entries, bits);
  return {_mm256_castsi256_ps(_mm256_add_epi32(fraction, _mm256_slli_epi32(bits, 20)))};
}
inline F64 power(F64 shifted) {
  return {_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted.v), 52))};
}
inline F32 keep(F32 x, Mask32 mask) { return {_mm256_and_ps(x.v, mask.m)}; }
inline F64 keep(F64 x, Mask64 mask) { return {_mm256_and_pd(x.v, mask.m)}; }

// A subnormal is brought into the normal range first. log(0) = -inf, log(+inf) = +inf.
inline F64 exponent_of(F64 x) {
  const Mask64 tiny = x < broadcast(0x1p-1022);
  const F64 normal = select(tiny, x * broadcast(0x1p54), x);
  const __m256i field = _mm256_srli_epi64(_mm256_castpd_si256(normal.v), 52);
  const F64 biased = {_mm256_or_pd(_mm256_castsi256_pd(field), _mm256_set1_pd(0x1p52))};
  const F64 bias = select(tiny, broadcast(0x1p52 + 1023.0 + 54.0), broadcast(0x1p52 + 1023.0));
  const F64 infinity = broadcast(__builtin_inf());
  const F64 above_zero = select(x < infinity, biased - bias, x);
  return select(x == broadcast(0.0), broadcast(0.0) - infinity, above_zero);
}
inline F64 mantissa_of(F64 x) {
  const F64 normal = select(x < broadcast(0x1p-1022), x * broadcast(0x1p54), x);
  const __m256d mantissa = _mm256_castsi256_pd(_mm256_set1_epi64x(0x000fffffffffffff));
  const __m256d one = _mm256_set1_pd(1.0);
  const F64 in_1_to_2 = {_mm256_or_pd(_mm256_and_pd(normal.v, mantissa), one)};
  const Mask64 has_log = {_mm256_cmp_pd(x.v, _mm256_setzero_pd(), _CMP_GE_OQ)};
  return select(has_log, in_1_to_2, broadcast(__builtin_nan("")));
}

}  // namespace
}  // namespace gce

#include "exponent_bits.inc.h"
