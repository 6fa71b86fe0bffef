// Loads and stores of vectors of four floats or two doubles, through memcpy, which tolerates any alignment.
// Included at the end of a header that has defined F32 and F64 over FloatX4 and DoubleX2, UInt16X4 (four
// 16-bit floats in memory), to_float(bits, element type) and from_float, and first_of_4(n), the mask of the
// first n lanes.

namespace gce {
namespace {

template <class Bits>
inline Bits load_bits(const void* p) {
  Bits bits;
  memcpy(&bits, p, sizeof(bits));
  return bits;
}
inline F32 load(const float* p) { return {load_bits<FloatX4>(p)}; }
inline F64 load(const double* p) { return {load_bits<DoubleX2>(p)}; }
inline F32 load(const Float16* p) { return to_float(load_bits<UInt16X4>(p), p); }
inline F32 load(const BFloat16* p) { return to_float(load_bits<UInt16X4>(p), p); }
inline F32 pick(const float* p, const int32_t* index) {
  const float picked[4] = {p[index[0]], p[index[1]], p[index[2]], p[index[3]]};
  return load(picked);
}

// n < 4 elements, without a call of memcpy.
template <class Element>
inline void copy_first(Element* to, const Element* from, int64_t n) {
  const int64_t past_2 = n & 2;
  if (n & 2) memcpy(to, from, 2 * sizeof(Element));
  if (n & 1) memcpy(to + past_2, from + past_2, sizeof(Element));
}
template <class Element>
inline F32 load_first_of_4(const Element* p, int64_t n, F32 fill) {
  Element buffer[4] = {};
  copy_first(buffer, p, n);
  return select(first_of_4(n), load(buffer), fill);
}
inline F32 load_first(const float* p, int64_t n, F32 fill) { return load_first_of_4(p, n, fill); }
inline F32 load_first(const Float16* p, int64_t n, F32 fill) { return load_first_of_4(p, n, fill); }
inline F32 load_first(const BFloat16* p, int64_t n, F32 fill) {
  return load_first_of_4(p, n, fill);
}
inline F64 load_first(const double* p, int64_t n, F64 fill) {
  if (n > 0) memcpy(&fill.v, p, sizeof(double));
  return fill;
}

inline F32 keep_first(F32 x, int64_t n) { return keep(x, first_of_4(n)); }
inline F64 keep_first(F64 x, int64_t n) {
  F64 kept = broadcast(0.0);
  if (n > 0) memcpy(&kept.v, &x.v, sizeof(double));
  return kept;
}

inline void store(float* p, F32 x) { memcpy(static_cast<void*>(p), &x.v, sizeof(x.v)); }
inline void store(double* p, F64 x) { memcpy(static_cast<void*>(p), &x.v, sizeof(x.v)); }
inline void store(Float16* p, F32 x) {
  const UInt16X4 bits = from_float(x, p);
  memcpy(static_cast<void*>(p), &bits, sizeof(bits));
}
inline void store(BFloat16* p, F32 x) {
  const UInt16X4 bits = from_float(x, p);
  memcpy(static_cast<void*>(p), &bits, sizeof(bits));
}
template <class Element>
inline void store_first(Element* p, F32 x, int64_t n) {
  Element buffer[4];
  store(buffer, x);
  copy_first(p, buffer, n);
}
inline void store_first(double* p, F64 x, int64_t n) {
  if (n > 0) memcpy(p, &x.v, sizeof(double));
}
[[gnu::always_inline]] inline void transpose(F32* rows) {
  float lanes[4][4];
  for (int i = 0; i < 4; ++i) store(lanes[i], rows[i]);
  for (int i = 0; i < 4; ++i) {
    const float column[4] = {lanes[0][i], lanes[1][i], lanes[2][i], lanes[3][i]};
    rows[i] = load(column);
  }
}
[[gnu::always_inline]] inline void transpose(F64* rows) {
  double lanes[2][2];
  for (int i = 0; i < 2; ++i) store(lanes[i], rows[i]);
  for (int i = 0; i < 2; ++i) {
    const double column[2] = {lanes[0][i], lanes[1][i]};
    rows[i] = load(column);
  }
}
// Plain stores: the compilers offer no portable way past the caches, and none for AArch64's STNP.
template <class Element, class Vector>
inline void stream(Element* p, Vector x) {
  store(p, x);
}
inline void stream_fence() {}
inline void store_numbers(BFloat16* p, F32 a, F32 b) {
  store(p, a);
  store(p + F32::kLanes, b);
}
inline void stream_numbers(BFloat16* p, F32 a, F32 b) { store_numbers(p, a, b); }
inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace
}  // namespace gce
