// The two passes over a row whose classes are contiguous: lanes run along the classes.
// Included by ../kernels.inc.h.
//
//   row_sum_exp   (K, sum_v 2^(z_v log2(e) - K)), reading each logit once from memory
//   row_spread    sum_v c_v (max z - z_v), for label smoothing: no term is negative, so none cancels
//   row_grad      g_v = factor 2^(z_v log2(e) - K) + offset c_v, the offset for label smoothing alone
//
// z: V scalars of Storage, any alignment. out may be z. Accuracy: math.inc.h and accumulator.inc.h.

namespace gce {
namespace {

template <bool kShifted, class Storage, class Vector>
inline Vector load_shifted(const Storage* p, Vector shift) {
  return kShifted ? load(p) - shift : load(p);
}
template <bool kShifted, class Storage, class Vector>
inline Vector load_first_shifted(const Storage* p, int64_t n, Vector fill, Vector shift) {
  return kShifted ? load_first(p, n, fill) - shift : load_first(p, n, fill);
}

template <class Vector>
inline Vector minus_infinity() {
  return broadcast(-static_cast<typename Vector::Scalar>(__builtin_inf()));
}

template <class Vector>
struct RowSum {
  typename Vector::Scalar maximum;
  typename Vector::Scalar reference;
  PairSum sum;
};

template <bool kShifted, class Storage, class Vector>
Vector block_max(const Storage* z, int64_t n, Vector shift) {
  constexpr int L = Vector::kLanes;
  Vector m[kGroup];
  for (Vector& lane_max : m) lane_max = minus_infinity<Vector>();
  int64_t v = 0;
  for (; v + kGroup * L <= n; v += kGroup * L) {
    for (int u = 0; u < kGroup; ++u) {
      m[u] = max(load_shifted<kShifted>(z + v + u * L, shift), m[u]);  // a NaN is passed over
    }
  }
  for (; v + L <= n; v += L) m[0] = max(load_shifted<kShifted>(z + v, shift), m[0]);
  if (v < n) {
    m[1] = max(load_first_shifted<kShifted>(z + v, n - v, minus_infinity<Vector>(), shift), m[1]);
  }
  return max(max(m[0], m[1]), max(m[2], m[3]));
}

// Adds the terms of n classes in the order of accumulator.inc.h: whole(v) gives those of classes v to
// v + L - 1, part(v, k) those of the last k < L, with +0 in the other lanes.
template <class Vector, class Whole, class Part>
[[gnu::always_inline]] inline void add_classes(int64_t n, Whole whole, Part part,
                                               WideSum<Vector>* sums) {
  constexpr int L = Vector::kLanes;
  int64_t v = 0;
  for (; v + kGroup * L <= n; v += kGroup * L) {
    Vector e[kGroup];
    for (int u = 0; u < kGroup; ++u) e[u] = whole(v + u * L);
    sums->add((e[0] + e[1]) + (e[2] + e[3]));
  }
  if (v == n) return;
  Vector e[kGroup];
  for (int u = 0; u < kGroup; ++u, v += L) {
    e[u] = v >= n       ? broadcast(static_cast<typename Vector::Scalar>(0))
           : v + L <= n ? whole(v)
                        : part(v, n - v);
  }
  sums->add((e[0] + e[1]) + (e[2] + e[3]));
}

template <bool kShifted, class Storage, class Vector>
void block_sum_exp(const Storage* z, int64_t n, Vector shift, Vector reference,
                   WideSum<Vector>* sums) {
  const auto exponential = [&](Vector x) {
    return exp2(fused_mul_sub(x, broadcast(Log2E<Vector>::kValue), reference));
  };
  add_classes<Vector>(
      n,
      [&](int64_t v) {
        prefetch(z + v + kBlock);  // the next block, while this one keeps the ALUs busy
        return exponential(load_shifted<kShifted>(z + v, shift));
      },
      [&](int64_t v, int64_t k) {
        return exponential(load_first_shifted<kShifted>(z + v, k, minus_infinity<Vector>(), shift));
      },
      sums);
}

// c (max - z); a class of no weight has none, however far away it is.
template <class Vector>
inline Vector spread_of(Vector z, Vector maximum, Vector weight) {
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  return select(weight == zero, zero, weight * (maximum - z));
}

template <class Storage, class Vector = typename ComputeOf<Storage>::Vector>
PairSum row_spread(const Storage* z, int64_t classes, const typename Vector::Scalar* weights,
                   Vector maximum) {
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  WideSum<Vector> sums;
  add_classes<Vector>(
      classes, [&](int64_t v) { return spread_of(load(z + v), maximum, load(weights + v)); },
      [&](int64_t v, int64_t k) {
        return spread_of(load_first(z + v, k, zero), maximum, load_first(weights + v, k, zero));
      },
      &sums);
  return sum_of_lanes(sums);
}

// The index of the first element of z that equals `value`, which is in it.
template <class Storage, class Vector>
int64_t first_equal(const Storage* z, int64_t n, Vector value) {
  constexpr int L = Vector::kLanes;
  for (int64_t v = 0; v < n; v += L) {
    const Vector x = v + L <= n ? load(z + v) : load_first(z + v, n - v, minus_infinity<Vector>());
    if (any(x == value)) {
      typename Vector::Scalar lanes[L];
      typename Vector::Scalar wanted[L];
      store(lanes, x);
      store(wanted, value);
      for (int i = 0; i < L; ++i) {
        if (lanes[i] == wanted[0]) return v + i;
      }
    }
  }
  return 0;
}

// The index of the first NaN, or -1.
template <class Storage>
int64_t first_nan(const Storage* z, int64_t n) {
  using Vector = typename ComputeOf<Storage>::Vector;
  for (int64_t v = 0; v < n; ++v) {
    const Vector x = load_first(z + v, 1, broadcast(static_cast<typename Vector::Scalar>(0)));
    if (!all(x == x)) return v;
  }
  return -1;
}

template <bool kShifted, class Storage, class Vector = typename ComputeOf<Storage>::Vector>
RowSum<Vector> row_sum_exp(const Storage* z, int64_t classes, typename Vector::Scalar shift_by,
                           int64_t* argmax) {
  using Scalar = typename Vector::Scalar;
  const Vector shift = broadcast(shift_by);
  WideSum<Vector> sums;
  Scalar maximum = -static_cast<Scalar>(__builtin_inf());
  Vector reference = broadcast(static_cast<Scalar>(kNoReference));
  for (int64_t start = 0; start < classes; start += kBlock) {
    const int64_t n = classes - start < kBlock ? classes - start : kBlock;
    const Scalar of_block = max_of_lanes(block_max<kShifted>(z + start, n, shift));
    if (of_block > maximum || start == 0) {
      if (argmax != nullptr && of_block > maximum) {
        *argmax = start + first_equal(z + start, n, broadcast(of_block));
      }
      maximum = of_block > maximum ? of_block : maximum;
      const Vector larger = reference_exponent(broadcast(maximum));
      if (start > 0) sums.scale_by(exp2(reference - larger));
      reference = larger;
    }
    block_sum_exp<kShifted>(z + start, n, shift, reference, &sums);
  }
  return {maximum, first_lane(reference), sum_of_lanes(sums)};
}

// First pass over one row of the tile; a row with an unusual maximum is read again, shifted by it.
template <class Storage>
void row_stats(const Storage* z, int64_t classes, bool want_argmax, int64_t r,
               Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  using Scalar = typename Tile<Storage>::Scalar;
  tile->argmax[r] = 0;
  tile->shift[r] = 0;
  RowSum<Vector> row =
      row_sum_exp<false>(z, classes, Scalar(0), want_argmax ? &tile->argmax[r] : nullptr);
  if (!is_unshifted_range(row.maximum)) {
    tile->shift[r] = row.maximum;
    row = row_sum_exp<true>(z, classes, row.maximum, nullptr);
  }
  tile->maximum[r] = tile->shift[r] != 0 ? tile->shift[r] : row.maximum;
  tile->reference[r] = row.reference;
  tile->sum_high[r] = row.sum.high;
  tile->sum_low[r] = row.sum.low;
  if (want_argmax && row.sum.high != row.sum.high) {
    const int64_t nan = first_nan(z, classes);
    if (nan >= 0) tile->argmax[r] = nan;
  }
}

template <class Vector>
struct GradTerms {
  Vector shift;
  Vector reference;
  Vector factor;
  Vector floor;
  Vector offset;
};

template <class Vector>
[[gnu::always_inline]] inline Vector grad_of(Vector z, const GradTerms<Vector>& terms) {
  const Vector x = fused_mul_sub(z, broadcast(Log2E<Vector>::kValue), terms.reference);
  return exp2(x, terms.floor) * terms.factor;
}

// The gradient's additions of one row: none, or label smoothing's.
struct NoOffset {
  template <class Vector>
  Vector add(Vector grad, int64_t, Vector) const {
    return grad;
  }
  template <class Vector>
  Vector add_first(Vector grad, int64_t, int64_t, Vector) const {
    return grad;
  }
};
template <class Scalar>
struct WeightedOffset {
  const Scalar* weights;
  template <class Vector>
  Vector add(Vector grad, int64_t v, Vector offset) const {
    return mul_add(offset, load(weights + v), grad);
  }
  template <class Vector>
  Vector add_first(Vector grad, int64_t v, int64_t n, Vector offset) const {
    return mul_add(offset, load_first(weights + v, n, offset), grad);
  }
};

template <bool kShifted, bool kStream, class Storage, class Vector, class Offset>
void row_grad(const Storage* z, int64_t classes, const GradTerms<Vector>& terms,
              const Offset& offset, Storage* out) {
  constexpr int L = Vector::kLanes;
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  const auto whole = [&](int64_t v) {
    return offset.add(grad_of(load_shifted<kShifted>(z + v, terms.shift), terms), v, terms.offset);
  };
  const auto first = [&](int64_t v, int64_t n) {
    const Vector x = load_first_shifted<kShifted>(z + v, n, zero, terms.shift);
    return offset.add_first(grad_of(x, terms), v, n, terms.offset);
  };
  int64_t v = 0;
  if (kStream) {  // up to the first whole vector of aligned memory
    const uintptr_t size = L * sizeof(Storage);
    const uintptr_t past = reinterpret_cast<uintptr_t>(out) % size;
    v = past == 0 ? 0 : static_cast<int64_t>((size - past) / sizeof(Storage));  // < L <= classes
    if (v > 0) store_first(out, first(0, v), v);
  }
  for (; v + kGroup * L <= classes; v += kGroup * L) {
    Vector g[kGroup];
    for (int u = 0; u < kGroup; ++u) g[u] = whole(v + u * L);
    for (int u = 0; u < kGroup; ++u) {
      if (kStream) {
        stream(out + v + u * L, g[u]);
      } else {
        store(out + v + u * L, g[u]);
      }
    }
  }
  for (; v + L <= classes; v += L) store(out + v, whole(v));
  if (v < classes) store_first(out + v, first(v, classes - v), classes - v);
}

template <class Storage, class Vector, class Offset>
void row_grad_at(const Storage* z, int64_t classes, bool is_shifted, bool may_stream,
                 const GradTerms<Vector>& terms, const Offset& offset, Storage* out) {
  const bool aligned = reinterpret_cast<uintptr_t>(out) % sizeof(Storage) == 0;
  if (is_shifted) {
    row_grad<true, false>(z, classes, terms, offset, out);
  } else if (may_stream && aligned && classes >= 2 * kBlock) {
    row_grad<false, true>(z, classes, terms, offset, out);
  } else {
    row_grad<false, false>(z, classes, terms, offset, out);
  }
}

// Second pass over one row of the tile. weights: those of label smoothing, or null.
template <class Storage>
void row_grad_of_tile(const Storage* z, int64_t classes,
                      const typename Tile<Storage>::Scalar* weights, bool may_stream, int64_t r,
                      const Tile<Storage>& tile, Storage* out) {
  using Vector = typename Tile<Storage>::Vector;
  using Scalar = typename Tile<Storage>::Scalar;
  char* const bytes = reinterpret_cast<char*>(out);
  if (tile.ignored(r)) {
    memset(bytes, 0, static_cast<size_t>(classes) * sizeof(Storage));
    return;
  }
  if (tile.is_nan(r)) {
    const int64_t size = static_cast<int64_t>(sizeof(Storage));
    for (int64_t v = 0; v < classes; ++v) write(bytes + v * size, tile.target_grad[r]);
    return;
  }
  const GradTerms<Vector> terms = {broadcast(tile.shift[r]), broadcast(tile.reference[r]),
                                   broadcast(tile.grad_factor[r]), broadcast(tile.grad_floor[r]),
                                   broadcast(tile.grad_offset[r])};
  const bool is_shifted = tile.shift[r] != 0;
  if (weights == nullptr) {
    row_grad_at(z, classes, is_shifted, may_stream, terms, NoOffset(), out);
  } else {
    row_grad_at(z, classes, is_shifted, may_stream, terms, WeightedOffset<Scalar>{weights}, out);
  }
  write(bytes + tile.target[r] * static_cast<int64_t>(sizeof(Storage)), tile.target_grad[r]);
}

}  // namespace
}  // namespace gce
