// The SIMD layer for AVX-512 (F, BW, DQ, VL) with FMA and F16C. See simd/README.md for the contract
// that every header of this folder meets.
#include <immintrin.h>

#include "../kernel_table.h"
#include "../storage.h"

#define GCE_ISA avx512

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own _mm512_undefined_ps() trips this warning wherever it is inlined (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace gce {
namespace {

struct F32 {
  using Scalar = float;
  static constexpr int kLanes = 16;
  __m512 v;
};
struct F64 {
  using Scalar = double;
  static constexpr int kLanes = 8;
  __m512d v;
};
struct Mask32 {
  __mmask16 m;
};
struct Mask64 {
  __mmask8 m;
};

// --- constants, arithmetic -----------------------------------------------------------------------
inline F32 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline F64 broadcast(double x) { return {_mm512_set1_pd(x)}; }
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F64 operator+(F64 a, F64 b) { return {_mm512_add_pd(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F64 operator-(F64 a, F64 b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F64 operator*(F64 a, F64 b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline F64 operator/(F64 a, F64 b) { return {_mm512_div_pd(a.v, b.v)}; }
inline F32 mul_add(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F64 mul_add(F64 a, F64 b, F64 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline F32 fused_mul_sub(F32 a, F32 b, F32 c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
inline F64 fused_mul_sub(F64 a, F64 b, F64 c) { return {_mm512_fmsub_pd(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F64 max(F64 a, F64 b) { return {_mm512_max_pd(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
// Of positive numbers, whose order is that of their bits; integers have more ports.
inline F32 max_positive(F32 a, F32 b) {
  return {
      _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
inline F64 max_positive(F64 a, F64 b) {
  return {
      _mm512_castsi512_pd(_mm512_max_epi64(_mm512_castpd_si512(a.v), _mm512_castpd_si512(b.v)))};
}
inline F32 ceil(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_POS_INF | 8)}; }
inline F64 ceil(F64 a) { return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_POS_INF | 8)}; }

// --- comparison, selection -----------------------------------------------------------------------
inline Mask32 operator<(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask64 operator<(F64 a, F64 b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask32 operator==(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask64 operator==(F64 a, F64 b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask32 not_less(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ)}; }
inline Mask64 not_less(F64 a, F64 b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_NLT_UQ)}; }
inline F32 select(Mask32 m, F32 yes, F32 no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
inline F64 select(Mask64 m, F64 yes, F64 no) { return {_mm512_mask_blend_pd(m.m, no.v, yes.v)}; }
inline F32 keep(F32 x, Mask32 m) { return {_mm512_maskz_mov_ps(m.m, x.v)}; }
inline F64 keep(F64 x, Mask64 m) { return {_mm512_maskz_mov_pd(m.m, x.v)}; }
inline Mask64 operator&(Mask64 a, Mask64 b) { return {static_cast<__mmask8>(a.m & b.m)}; }
inline Mask64 operator|(Mask64 a, Mask64 b) { return {static_cast<__mmask8>(a.m | b.m)}; }
inline Mask64 negative(const int64_t* p) { return {_mm512_movepi64_mask(_mm512_loadu_si512(p))}; }
inline bool any(Mask32 m) { return m.m != 0; }
inline bool any(Mask64 m) { return m.m != 0; }
inline bool all(Mask32 m) { return m.m == 0xffff; }
inline bool all(Mask64 m) { return m.m == 0xff; }
inline float max_of_lanes(F32 a) { return _mm512_reduce_max_ps(a.v); }
inline double max_of_lanes(F64 a) { return _mm512_reduce_max_pd(a.v); }
inline float first_lane(F32 a) { return _mm512_cvtss_f32(a.v); }
inline double first_lane(F64 a) { return _mm512_cvtsd_f64(a.v); }

// --- memory --------------------------------------------------------------------------------------
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F64 load(const double* p) { return {_mm512_loadu_pd(p)}; }
inline F32 load(const Float16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32 bits_to_float(__m256i bfloat16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16))};
}
inline F32 load(const BFloat16* p) {
  return bits_to_float(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline F32 pick(const float* p, const int32_t* index) {
  return {_mm512_permutexvar_ps(_mm512_loadu_si512(index), _mm512_loadu_ps(p))};
}

inline __mmask16 first16(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline __mmask8 first8(int64_t n) { return static_cast<__mmask8>((1u << n) - 1u); }

inline F32 load_first(const float* p, int64_t n, F32 fill) {
  return {_mm512_mask_loadu_ps(fill.v, first16(n), p)};
}
inline F64 load_first(const double* p, int64_t n, F64 fill) {
  return {_mm512_mask_loadu_pd(fill.v, first8(n), p)};
}
inline F32 load_first(const Float16* p, int64_t n, F32 fill) {
  const __m512 all = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first16(n), p));
  return {_mm512_mask_blend_ps(first16(n), fill.v, all)};
}
inline F32 load_first(const BFloat16* p, int64_t n, F32 fill) {
  const F32 all = bits_to_float(_mm256_maskz_loadu_epi16(first16(n), p));
  return {_mm512_mask_blend_ps(first16(n), fill.v, all.v)};
}

inline F32 keep_first(F32 x, int64_t n) { return {_mm512_maskz_mov_ps(first16(n), x.v)}; }
inline F64 keep_first(F64 x, int64_t n) { return {_mm512_maskz_mov_pd(first8(n), x.v)}; }

inline __m256i to_float16(F32 x) {
  return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Round to nearest even in integers, so that every ISA gives the same bits; NaN stays a quiet NaN.
inline __m512i upper_halves(F32 x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}
inline __m512i bfloat16_bits(F32 x) {  // each in 32
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_or_epi32(upper_halves(x), nan, _mm512_castps_si512(x.v),
                                               _mm512_set1_epi32(0x00400000));
  return _mm512_srli_epi32(rounded, 16);
}
inline __m256i to_bfloat16(F32 x) { return _mm512_cvtepi32_epi16(bfloat16_bits(x)); }

inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
inline void store(double* p, F64 x) { _mm512_storeu_pd(p, x.v); }
inline void store(Float16* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_float16(x));
}
inline void store(BFloat16* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(x));
}
alignas(64) constexpr uint16_t kUpperHalves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                   23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                   45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
inline __m512i to_bfloat16(F32 a, F32 b) {
  return _mm512_permutex2var_epi16(upper_halves(a), _mm512_load_si512(kUpperHalves),
                                   upper_halves(b));
}
inline void store_numbers(BFloat16* p, F32 a, F32 b) { _mm512_storeu_si512(p, to_bfloat16(a, b)); }
inline void stream_numbers(BFloat16* p, F32 a, F32 b) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), to_bfloat16(a, b));
}
inline void store_first(float* p, F32 x, int64_t n) { _mm512_mask_storeu_ps(p, first16(n), x.v); }
inline void store_first(double* p, F64 x, int64_t n) { _mm512_mask_storeu_pd(p, first8(n), x.v); }
inline void store_first(Float16* p, F32 x, int64_t n) {
  _mm256_mask_storeu_epi16(p, first16(n), to_float16(x));
}
inline void store_first(BFloat16* p, F32 x, int64_t n) {
#ifdef __clang__  // of the other, where n is 1, Clang 22 makes a store of the element's 32 bits
  _mm512_mask_cvtepi32_storeu_epi16(p, first16(n), bfloat16_bits(x));
#else
  _mm256_mask_storeu_epi16(p, first16(n), to_bfloat16(x));
#endif
}
inline void stream(float* p, F32 x) { _mm512_stream_ps(p, x.v); }
inline void stream(double* p, F64 x) { _mm512_stream_pd(p, x.v); }
inline void stream(Float16* p, F32 x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_float16(x));
}
inline void stream(BFloat16* p, F32 x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(x));
}
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// --- conversion ----------------------------------------------------------------------------------
inline F64 widen_low(F32 x) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(x.v))}; }
inline F64 widen_high(F32 x) { return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1))}; }
inline F64 widen_folded(F32 x) {
  return {
      _mm512_cvtps_pd(_mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1)))};
}
inline F32 narrow(F64 low, F64 high) {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low.v)),
                             _mm512_cvtpd_ps(high.v), 1)};
}

// --- transposition -------------------------------------------------------------------------------
// Four vectors of four 128-bit parts.
[[gnu::always_inline]] inline void transpose_parts(__m512* a, __m512* b, __m512* c, __m512* d) {
  const __m512 even_low = _mm512_shuffle_f32x4(*a, *b, 0x88);
  const __m512 odd_low = _mm512_shuffle_f32x4(*a, *b, 0xdd);
  const __m512 even_high = _mm512_shuffle_f32x4(*c, *d, 0x88);
  const __m512 odd_high = _mm512_shuffle_f32x4(*c, *d, 0xdd);
  *a = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
  *b = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
  *c = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
  *d = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
}
// Neighbouring rows, then pairs of them, within each 128-bit part; then the parts.
[[gnu::always_inline]] inline void transpose(F32* rows) {
  __m512 a[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {  // rows[i + k]: column k of rows i to i + 3
    for (int k = 0; k < 2; ++k) {
      const __m512d low = _mm512_castps_pd(a[i + k]);
      const __m512d high = _mm512_castps_pd(a[i + 2 + k]);
      rows[i + 2 * k].v = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      rows[i + 2 * k + 1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int k = 0; k < 4; ++k) {
    transpose_parts(&rows[k].v, &rows[k + 4].v, &rows[k + 8].v, &rows[k + 12].v);
  }
}
[[gnu::always_inline]] inline void transpose(F64* rows) {
  __m512 a[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(rows[i].v, rows[i + 1].v));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(rows[i].v, rows[i + 1].v));
  }
  for (int k = 0; k < 2; ++k) transpose_parts(&a[k], &a[k + 2], &a[k + 4], &a[k + 6]);
  for (int i = 0; i < 8; ++i) rows[i].v = _mm512_castps_pd(a[i]);
}

// --- powers of two -------------------------------------------------------------------------------
constexpr int kExp2Bits = 5;
constexpr float kPowerMagic32 = 0x1.8p18f;
constexpr double kPowerMagic64 = 0x1.8p52 + 1023.0;
inline F32 power(F32 shifted, const uint32_t* table) {
  const __m512i bits = _mm512_castps_si512(shifted.v);
  const __m512i fraction =
      _mm512_permutex2var_epi32(_mm512_loadu_si512(table), bits, _mm512_loadu_si512(table + 16));
  return {_mm512_castsi512_ps(_mm512_add_epi32(fraction, _mm512_slli_epi32(bits, 18)))};
}
inline F64 power(F64 shifted) {
  return {_mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(shifted.v), 52))};
}

inline F64 scale_by_integer(F64 x, F64 n) { return {_mm512_scalef_pd(x.v, n.v)}; }
inline F64 exponent_of(F64 x) { return {_mm512_getexp_pd(x.v)}; }
inline F64 mantissa_of(F64 x) {
  return {_mm512_getmant_pd(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_nan)};
}

}  // namespace
}  // namespace gce
