// The two passes over L neighbouring rows at a time: lanes run along the rows. The same additions in the
// same order as rows.inc.h, one WideSum here for each lane there. Included by ../kernels.inc.h.
//
// A panel holds the logits of a tile: class v of row r at base + v class_stride + r sizeof(Storage).
// It is the caller's array itself where neighbouring rows are contiguous (class axis in the middle), else
// scratch. out may be the panel.

namespace gce {
namespace {

template <class Storage>
struct Panel {
  char* base;
  int64_t class_stride;  // bytes
  Storage* at(int64_t v, int64_t r) const {
    return reinterpret_cast<Storage*>(base + v * class_stride) + r;
  }
};

// n of the L rows exist.
template <bool kShifted, class Storage, class Vector>
inline Vector load_rows(const Storage* p, int64_t n, Vector shift) {
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  return n == Vector::kLanes ? load_shifted<kShifted>(p, shift)
                             : load_first_shifted<kShifted>(p, n, zero, shift);
}

// Adds term(v) of classes [begin, end) into sums[lane of the class], as add_classes does.
template <class Vector, class Term>
[[gnu::always_inline]] inline void add_column_classes(int64_t begin, int64_t end, Term term,
                                                      WideSum<Vector>* sums) {
  constexpr int L = Vector::kLanes;
  for (int64_t group = begin; group < end; group += kGroup * L) {
    const int64_t lanes = end - group < L ? end - group : L;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t v = group + lane;
      if (v + 3 * L < end) {
        sums[lane].add((term(v) + term(v + L)) + (term(v + 2 * L) + term(v + 3 * L)));
        continue;
      }
      Vector sum = term(v);
      if (v + L < end) sum = sum + term(v + L);
      if (v + 2 * L < end) sum = sum + term(v + 2 * L);
      sums[lane].add(sum);
    }
  }
}

// The end of sum_of_lanes: the result is sums[0].
template <class Vector>
inline void merge_lanes(int used, WideSum<Vector>* sums) {
  for (int width = Vector::kLanes / 2; width >= 1; width /= 2) {
    for (int lane = 0; lane + width < used && lane < width; ++lane) {
      sums[lane].merge(sums[lane + width]);
    }
  }
}

template <class Vector>
struct ColumnSum {
  Vector maximum;
  Vector reference;
  WideSum<Vector> sum;
};

template <bool kShifted, class Storage, class Vector = typename ComputeOf<Storage>::Vector>
ColumnSum<Vector> column_sum_exp(const Panel<Storage>& z, int64_t r, int64_t n, int64_t classes,
                                 Vector shift) {
  using Scalar = typename Vector::Scalar;
  constexpr int L = Vector::kLanes;
  const int used = classes < L ? static_cast<int>(classes) : L;
  const Vector log2e = broadcast(Log2E<Vector>::kValue);
  WideSum<Vector> sums[L];
  Vector maximum = minus_infinity<Vector>();
  Vector reference = broadcast(static_cast<Scalar>(kNoReference));
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t end = classes - begin < kBlock ? classes : begin + kBlock;
    for (int64_t v = begin; v < end; ++v) {
      maximum = max(load_rows<kShifted>(z.at(v, r), n, shift), maximum);
    }
    const Vector larger = reference_exponent(maximum);
    if (begin > 0) {
      const Vector factor = exp2(reference - larger);
      for (int lane = 0; lane < used; ++lane) sums[lane].scale_by(factor);
    }
    reference = larger;
    add_column_classes(
        begin, end,
        [&](int64_t v) {
          return exp2(fused_mul_sub(load_rows<kShifted>(z.at(v, r), n, shift), log2e, reference));
        },
        sums);
  }
  merge_lanes(used, sums);
  return {maximum, reference, sums[0]};
}

template <class Storage, class Vector = typename ComputeOf<Storage>::Vector>
WideSum<Vector> column_spread(const Panel<Storage>& z, int64_t r, int64_t n, int64_t classes,
                              const typename Vector::Scalar* weights, Vector maximum) {
  constexpr int L = Vector::kLanes;
  WideSum<Vector> sums[L];
  add_column_classes(
      0, classes,
      [&](int64_t v) {
        return spread_of(load_rows<false>(z.at(v, r), n, maximum), maximum, broadcast(weights[v]));
      },
      sums);
  merge_lanes(classes < L ? static_cast<int>(classes) : L, sums);
  return sums[0];
}

// The first largest logit of each row, or its first NaN. V < 2^24: indices are exact in float.
template <class Storage, class Vector = typename ComputeOf<Storage>::Vector>
Vector column_argmax(const Panel<Storage>& z, int64_t r, int64_t n, int64_t classes) {
  using Scalar = typename Vector::Scalar;
  const Vector none = broadcast(static_cast<Scalar>(-1));
  Vector best = minus_infinity<Vector>();
  Vector best_at = broadcast(static_cast<Scalar>(0));
  Vector nan_at = none;
  for (int64_t v = classes - 1; v >= 0; --v) {  // downwards: the first of equals is seen last
    const Vector x = load_rows<false>(z.at(v, r), n, best);
    const Vector here = broadcast(static_cast<Scalar>(v));
    best_at = select(x < best, best_at, here);
    best = max(x, best);
    nan_at = select(x == x, nan_at, here);
  }
  return select(nan_at == none, best_at, nan_at);
}

// First pass over the tile. weights: those of label smoothing, or null.
template <class Storage>
void column_stats(const Panel<Storage>& z, int64_t classes,
                  const typename Tile<Storage>::Scalar* weights, bool want_argmax,
                  Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  using Scalar = typename Tile<Storage>::Scalar;
  constexpr int L = Vector::kLanes;
  for (int64_t r = 0; r < tile->rows; r += L) {
    const int64_t n = tile->rows - r < L ? tile->rows - r : L;
    const Vector zero = broadcast(static_cast<Scalar>(0));
    const Vector limit = broadcast(static_cast<Scalar>(kLargestUnshifted));
    ColumnSum<Vector> column = column_sum_exp<false>(z, r, n, classes, zero);
    Vector shift = select(column.maximum < zero - limit, column.maximum, zero);
    shift = select(limit < column.maximum, column.maximum, shift);
    const Vector maximum = column.maximum;
    if (!all(shift == zero)) column = column_sum_exp<true>(z, r, n, classes, shift);
    store(tile->maximum + r, maximum);
    store(tile->shift + r, shift);
    store(tile->reference + r, column.reference);
    column.sum.save(tile->sum_high + r, tile->sum_low + r);
    if (weights != nullptr) {
      column_spread(z, r, n, classes, weights, maximum)
          .save(tile->spread_high + r, tile->spread_low + r);
    }
    if (want_argmax) {
      Scalar at[L];
      store(at, column_argmax(z, r, n, classes));
      for (int64_t i = 0; i < n; ++i) tile->argmax[r + i] = static_cast<int64_t>(at[i]);
    }
  }
}

template <bool kShifted, class Storage, class Vector>
void column_grad_of_rows(const Panel<Storage>& z, int64_t r, int64_t n, int64_t classes,
                         const typename Vector::Scalar* weights, const GradTerms<Vector>& terms,
                         const Panel<Storage>& out) {
  for (int64_t v = 0; v < classes; ++v) {
    Vector g = grad_of(load_rows<kShifted>(z.at(v, r), n, terms.shift), terms);
    if (weights != nullptr) g = mul_add(terms.offset, broadcast(weights[v]), g);
    if (n == Vector::kLanes) {
      store(out.at(v, r), g);
    } else {
      store_first(out.at(v, r), g, n);
    }
  }
}

template <class Storage>
void fill_column(const Panel<Storage>& out, int64_t classes, int64_t r, Storage value) {
  for (int64_t v = 0; v < classes; ++v) write(reinterpret_cast<char*>(out.at(v, r)), value);
}

// Second pass over the tile. weights: those of label smoothing, or null.
template <class Storage>
void column_grad(const Panel<Storage>& z, int64_t classes,
                 const typename Tile<Storage>::Scalar* weights, const Tile<Storage>& tile,
                 const Panel<Storage>& out) {
  using Vector = typename Tile<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  for (int64_t r = 0; r < tile.rows; r += L) {
    const int64_t n = tile.rows - r < L ? tile.rows - r : L;
    const GradTerms<Vector> terms = {load(tile.shift + r), load(tile.reference + r),
                                     load(tile.grad_factor + r), load(tile.grad_floor + r),
                                     load(tile.grad_offset + r)};
    if (all(terms.shift == terms.shift - terms.shift)) {  // all 0
      column_grad_of_rows<false>(z, r, n, classes, weights, terms, out);
    } else {
      column_grad_of_rows<true>(z, r, n, classes, weights, terms, out);
    }
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const Storage zero = {};
    if (tile.ignored(r)) {
      fill_column(out, classes, r, zero);
    } else if (tile.is_nan(r)) {
      fill_column(out, classes, r, tile.target_grad[r]);
    } else {
      write(reinterpret_cast<char*>(out.at(tile.target[r], r)), tile.target_grad[r]);
    }
  }
}

}  // namespace
}  // namespace gce
