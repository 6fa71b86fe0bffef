// Numbers as they lie in memory: the two 16-bit float formats, and unaligned scalar access to any dtype.
// Everything is `static`: this header is compiled into ISA objects too (see kernel_table.h).
#ifndef GCE_CORE_STORAGE_H_
#define GCE_CORE_STORAGE_H_

#include <stdint.h>
#include <string.h>

#include "gce/gce.h"

namespace gce {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
static inline T read(const char* p) {
  T value;
  memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
static inline void write(char* p, T value) {
  memcpy(p, &value, sizeof(T));
}

static inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

static inline float to_float(BFloat16 x) {
  return float_from_bits(static_cast<uint32_t>(x.bits) << 16);
}

// Exact: a half's exponent and mantissa moved to their places, then 2^112 to correct the bias, which
// also makes subnormal halves normal floats. Infinity and NaN keep an exponent of all ones.
static inline float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const float magnitude =
      rest >= 0x0f800000u ? float_from_bits(rest | 0x7f800000u) : float_from_bits(rest) * 0x1p112f;
  return float_from_bits(bits_from_float(magnitude) | sign);
}

// An element of an option array (float dtypes only).
static inline double read_real(const char* p, int32_t dtype) {
  switch (dtype) {
    case GCE_FLOAT16:
      return static_cast<double>(to_float(read<Float16>(p)));
    case GCE_BFLOAT16:
      return static_cast<double>(to_float(read<BFloat16>(p)));
    case GCE_FLOAT32:
      return static_cast<double>(read<float>(p));
    default:
      return read<double>(p);
  }
}

// Round to nearest even in integers; NaN stays a quiet NaN.
static inline BFloat16 to_bfloat16(float x) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t rounded = x != x ? bits | 0x00400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>(rounded >> 16)};
}

static inline Float16 to_float16(float x) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const float magnitude = float_from_bits(bits & 0x7fffffffu);
  uint32_t half;
  if (x != x) {
    half = 0x7e00u;
  } else if (magnitude < 0x1p-14f) {
    // Subnormal halves are multiples of 2^-24: adding 2^-1, whose last bit that is, rounds to them.
    half = bits_from_float(magnitude + 0.5f) - bits_from_float(0.5f);
  } else if (magnitude >= 65520.0f) {
    half = 0x7c00u;
  } else {
    const uint32_t rest = bits & 0x7fffffffu;
    half = (rest + 0xfffu + ((rest >> 13) & 1u) - (112u << 23)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

// The reverse. To 16 bits by way of float: what a float32 result is, rounded once more.
static inline void write_real(char* p, int32_t dtype, double value) {
  switch (dtype) {
    case GCE_FLOAT16:
      return write(p, to_float16(static_cast<float>(value)));
    case GCE_BFLOAT16:
      return write(p, to_bfloat16(static_cast<float>(value)));
    case GCE_FLOAT32:
      return write(p, static_cast<float>(value));
    default:
      return write(p, value);
  }
}

// A target. A uint64 above INT64_MAX comes out as INT64_MAX: either is past every class.
static inline int64_t read_target(const char* p, int32_t dtype) {
  switch (dtype) {
    case GCE_INT8:
      return read<int8_t>(p);
    case GCE_INT16:
      return read<int16_t>(p);
    case GCE_INT32:
      return read<int32_t>(p);
    case GCE_UINT8:
      return read<uint8_t>(p);
    case GCE_UINT16:
      return read<uint16_t>(p);
    case GCE_UINT32:
      return read<uint32_t>(p);
    case GCE_UINT64: {
      const uint64_t value = read<uint64_t>(p);
      return value > static_cast<uint64_t>(INT64_MAX) ? INT64_MAX : static_cast<int64_t>(value);
    }
    default:
      return read<int64_t>(p);
  }
}

static inline int64_t size_of(int32_t dtype) {
  switch (dtype) {
    case GCE_INT8:
    case GCE_UINT8:
      return 1;
    case GCE_FLOAT16:
    case GCE_BFLOAT16:
    case GCE_INT16:
    case GCE_UINT16:
      return 2;
    case GCE_FLOAT32:
    case GCE_INT32:
    case GCE_UINT32:
      return 4;
    default:
      return 8;
  }
}

}  // namespace gce

#endif  // GCE_CORE_STORAGE_H_
