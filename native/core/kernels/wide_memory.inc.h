// Numbers of any dtype and stride to doubles and back, and the cap on them: for wide_rows.inc.h and binary.inc.h.
// Included by ../kernels.inc.h.

namespace gce {
namespace {

// n numbers of any dtype and stride as doubles.
template <class Storage>
void load_contiguous(const char* from, int64_t n, double* to) {
  using Vector = typename ComputeOf<Storage>::Vector;
  const Storage* p = reinterpret_cast<const Storage*>(from);
  int64_t v = 0;
  for (; v + Vector::kLanes <= n; v += Vector::kLanes) store_as_double(to + v, load(p + v));
  for (; v < n; ++v)
    to[v] = static_cast<double>(to_scalar(read<Storage>(from + v * int64_t{sizeof(Storage)})));
}
inline void load_strided(const char* from, int32_t dtype, int64_t stride, int64_t n, double* to) {
  if (stride != size_of(dtype)) {
    for (int64_t v = 0; v < n; ++v) to[v] = read_real(from + v * stride, dtype);
  } else if (dtype == GCE_FLOAT16) {
    load_contiguous<Float16>(from, n, to);
  } else if (dtype == GCE_BFLOAT16) {
    load_contiguous<BFloat16>(from, n, to);
  } else if (dtype == GCE_FLOAT32) {
    load_contiguous<float>(from, n, to);
  } else {
    load_contiguous<double>(from, n, to);
  }
}
// And `fill` up to a whole vector.
inline void load_row(const char* from, int32_t dtype, int64_t stride, int64_t n, double fill,
                     double* to) {
  load_strided(from, dtype, stride, n, to);
  for (int64_t v = n; v % F64::kLanes != 0; ++v) to[v] = fill;
}

// The reverse.
template <class Storage>
void store_row(const double* from, int32_t dtype, int64_t n, char* to, int64_t stride) {
  using Vector = typename ComputeOf<Storage>::Vector;
  int64_t v = 0;
  if (stride == int64_t{sizeof(Storage)}) {
    typename Vector::Scalar narrowed[Vector::kLanes];
    for (; v + Vector::kLanes <= n; v += Vector::kLanes) {
      store_narrowed(narrowed, from + v);
      store(reinterpret_cast<Storage*>(to) + v, load(narrowed));
    }
  }
  for (; v < n; ++v) write_real(to + v * stride, dtype, from[v]);
}

inline void store_strided(const double* from, int32_t dtype, int64_t n, char* to, int64_t stride) {
  switch (dtype) {
    case GCE_FLOAT16:
      return store_row<Float16>(from, dtype, n, to, stride);
    case GCE_BFLOAT16:
      return store_row<BFloat16>(from, dtype, n, to, stride);
    case GCE_FLOAT32:
      return store_row<float>(from, dtype, n, to, stride);
    default:
      return store_row<double>(from, dtype, n, to, stride);
  }
}

// e^d for d <= 0; 0 for -inf.
inline F64 exp_of(F64 d) {
  const Exponential e = exponential_of(d);
  return scale_by_integer(e.mantissa, e.exponent);
}

// kappa tanh(z / kappa) in place, and its slope.
inline void cap_row(double kappa, int64_t padded, double* x, double* slope) {
  const F64 zero = broadcast(0.0);
  const F64 one = broadcast(1.0);
  const F64 size = broadcast(kappa);
  for (int64_t v = 0; v < padded; v += F64::kLanes) {
    const F64 z = load(x + v);
    // tanh |u| = (1 - E) / (1 + E), E = e^(-2 |u|), and 1 - tanh^2 = 4 E / (1 + E)^2.
    const F64 l = (zero - (magnitude_of(z) + magnitude_of(z))) / size;
    const TargetProb e = target_prob_of(l, exponential_of(l));
    const F64 inverse = one / (one + e.p);
    const F64 capped = size * (e.one_minus_p * inverse);
    store(x + v, select(z < zero, zero - capped, capped));
    store(slope + v, broadcast(4.0) * e.p * (inverse * inverse));
  }
}

}  // namespace
}  // namespace gce
