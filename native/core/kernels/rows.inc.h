// The first pass over a row whose classes are contiguous: lanes run along the classes.
// Included by ../kernels.inc.h.
//
//   row_sum      K and sum_v e_v, e_v = 2^(z_v log2(e) - K), reading each logit once from memory; and keeps e
//   row_spread   sum_v c_v (max z - z_v), for label smoothing: no term is negative, so none cancels
//
// z: V scalars of Storage, any alignment. The second pass of another row (whose kept exponentials make room,
// row_finish.inc.h) runs in the same loop: one waits for memory, the other for the ALUs.
// Accuracy: math.inc.h and accumulator.inc.h.

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

template <class Storage, class Vector = typename ComputeOf<Storage>::Vector>
typename Vector::Scalar row_max(const Storage* z, int64_t n) {
  constexpr int L = Vector::kLanes;
  Vector m[kGroup];
  for (Vector& lane_max : m) lane_max = minus_infinity<Vector>();
  int64_t v = 0;
  for (; v + kGroup * L <= n; v += kGroup * L) {
    for (int u = 0; u < kGroup; ++u) m[u] = max(load(z + v + u * L), m[u]);  // a NaN is passed over
  }
  for (; v + L <= n; v += L) m[0] = max(load(z + v), m[0]);
  if (v < n) m[1] = max(load_first(z + v, n - v, minus_infinity<Vector>()), m[1]);
  return max_of_lanes(max(max(m[0], m[1]), max(m[2], m[3])));
}

// The sum of the last group of a segment, of n < 4 L classes: whole(v) gives the terms of classes v to v + L - 1,
// part(v, k) those of the last k < L, with +0 in the other lanes.
template <class Vector, class Whole, class Part>
[[gnu::always_inline]] inline Vector sum_of_last_group(int64_t v, int64_t n, Whole whole,
                                                       Part part) {
  Vector e[kGroup];
  for (Vector& terms : e) {
    terms = n >= Vector::kLanes ? whole(v)
            : n > 0             ? part(v, n)
                                : broadcast(static_cast<typename Vector::Scalar>(0));
    v += Vector::kLanes;
    n -= Vector::kLanes;
  }
  return sum_of_group(e);
}

// c (max - z) kUnit; a class of no weight has none, however far away it is.
template <class Unit, class Vector>
inline Vector spread_of(Vector z, Vector maximum, Vector weight) {
  using Scalar = typename Vector::Scalar;
  const Vector zero = broadcast(static_cast<Scalar>(0));
  const Vector unit = broadcast(static_cast<Scalar>(Unit::kUnit));
  const Vector distance = Unit::kUnit == 1.0 ? maximum - z : maximum * unit - z * unit;
  return select(weight == zero, zero, weight * distance);
}

// Finite floats can be farther apart than any float: rows in which that gave a sum that is not finite are added once
// more, in the other unit, in which what is lost is nothing beside that.
struct OfOne {
  static constexpr double kUnit = 1.0;
};
struct OfHuge {
  static constexpr double kUnit = 0x1p-64;
};
template <class Vector>
constexpr bool kSpreadMayOverflow = sizeof(typename Vector::Scalar) == sizeof(float);

inline bool is_finite(double x) { return x - x == 0.0; }

template <class Unit, class Storage, class Vector>
PairSum row_spread_in(const Storage* z, int64_t classes, const typename Vector::Scalar* weights,
                      Vector maximum) {
  constexpr int L = Vector::kLanes;
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  const auto whole = [&](int64_t v) {
    return spread_of<Unit>(load(z + v), maximum, load(weights + v));
  };
  const auto part = [&](int64_t v, int64_t k) {
    return spread_of<Unit>(load_first(z + v, k, zero), maximum, load_first(weights + v, k, zero));
  };
  PairSum total = {0.0, 0.0};
  for (int64_t v = 0; v < classes;) {
    WideSum<Vector> sums;
    const int64_t end = v + kSegment < classes ? v + kSegment : classes;
    for (; v + kGroup * L <= end; v += kGroup * L) {
      const Vector terms[kGroup] = {whole(v), whole(v + L), whole(v + 2 * L), whole(v + 3 * L)};
      sums.add(sum_of_group(terms));
    }
    if (v < end) sums.add(sum_of_last_group<Vector>(v, end - v, whole, part));
    v = end;
    add_pair(&total, sum_of_lanes(sums));
  }
  return total;
}

template <class Storage, class Vector = typename ComputeOf<Storage>::Vector>
PairSum row_spread(const Storage* z, int64_t classes, const typename Vector::Scalar* weights,
                   Vector maximum) {
  const PairSum spread = row_spread_in<OfOne>(z, classes, weights, maximum);
  if (!kSpreadMayOverflow<Vector> || is_finite(spread.high)) return spread;
  const PairSum huge = row_spread_in<OfHuge>(z, classes, weights, maximum);
  return {huge.high / OfHuge::kUnit, huge.low / OfHuge::kUnit};
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
  const auto has_none = [](Vector x) { return all(x == x); };
  int64_t v = 0;
  while (v + Vector::kLanes <= n && has_none(load(z + v))) v += Vector::kLanes;
  for (; v < n; ++v) {
    const auto zero = broadcast(static_cast<typename Vector::Scalar>(0));
    if (!has_none(load_first(z + v, 1, zero))) return v;
  }
  return -1;
}

struct NothingToFinish {
  void begin() const {}
  int64_t end() const { return INT64_MAX; }
  void group(int64_t) const {}
  void rest(int64_t) const {}
};

constexpr int64_t kPrefetchBytes = 4096;

// The first pass over a row; its loops' state stays in registers. The exponentials go to `kept`, or if kKeep is not
// set nowhere.
template <bool kShifted, bool kKeep, class Storage>
class RowPass {
 public:
  using Vector = typename ComputeOf<Storage>::Vector;
  using Scalar = typename Vector::Scalar;
  static constexpr int L = Vector::kLanes;

  [[gnu::always_inline]] RowPass(const Storage* z, Vector shift, Vector reference, Scalar* kept)
      : z_(z), kept_(kept), shift_(shift), exponent_(reference) {}

  // Classes v to v + 4 L - 1. `finish` reads from `kept` before that is overwritten.
  template <class Finish>
  [[gnu::always_inline]] void group(int64_t v, const Finish& finish) {
    Vector e[kGroup];
    for (int u = 0; u < kGroup; ++u) {
      prefetch(reinterpret_cast<const char*>(z_ + v + u * L) + kPrefetchBytes);
      e[u] = load_shifted<kShifted>(z_ + v + u * L, shift_);
    }
    exponentials<kGroup>(e, exponent_, &largest_, e);
    finish.group(v);
    for (int u = 0; u < kGroup && kKeep; ++u) store(kept_ + v + u * L, e[u]);
    sums_.add(group_);  // the one before: this one's is not ready yet
    group_ = sum_of_group(e);
  }
  // The last group of a segment, of n < 4 L classes.
  [[gnu::always_inline]] void part_of_group(int64_t v, int64_t n) {
    add_pending();
    sums_.add(sum_of_last_group<Vector>(
        v, n, [this](int64_t at) __attribute__((always_inline)) { return whole(at); },
        [this](int64_t at, int64_t k) __attribute__((always_inline)) { return part(at, k); }));
  }
  [[gnu::always_inline]] void end_segment() {
    add_pending();
    add_pair(&total_, sum_of_lanes(sums_));
    sums_ = WideSum<Vector>();
  }

  const PairSum& total() const { return total_; }
  bool exceeds() const { return any(too_large(largest_)); }

 private:
  [[gnu::always_inline]] void add_pending() {
    sums_.add(group_);
    group_ = broadcast(Scalar(0));
  }
  [[gnu::always_inline]] Vector whole(int64_t v) {
    const Vector e = exponential(load_shifted<kShifted>(z_ + v, shift_), exponent_, &largest_);
    if (kKeep) store(kept_ + v, e);
    return e;
  }
  [[gnu::always_inline]] Vector part(int64_t v, int64_t n) {
    const Vector z = load_first_shifted<kShifted>(z_ + v, n, minus_infinity<Vector>(), shift_);
    const Vector e = exponential(z, exponent_, &largest_);
    if (kKeep) store_first(kept_ + v, e, n);
    return keep_first(e, n);
  }

  const Storage* z_;
  Scalar* kept_;
  Vector shift_;
  Exponent<Vector> exponent_;
  Vector largest_ = broadcast(ExponentRange<Vector>::kMagic);
  WideSum<Vector> sums_;
  Vector group_ = broadcast(Scalar(0));  // to be added
  PairSum total_ = {0.0, 0.0};
};

// Whether a logit was too large for the reference; else the sum of the row's exponentials. `finish` is another row's.
template <bool kShifted, bool kKeep, class Storage, class Vector, class Finish>
[[gnu::always_inline]] inline bool row_pass(const Storage* z, int64_t classes, Vector shift,
                                            Vector reference, typename Vector::Scalar* kept,
                                            const Finish& finish_of, PairSum* total) {
  constexpr int kClasses = kGroup * Vector::kLanes;  // of a group
  const Finish finish = finish_of;                   // a copy of its own stays in registers
  RowPass<kShifted, kKeep, Storage> pass(z, shift, reference, kept);
  finish.begin();
  bool finished = false;
  for (int64_t v = 0; v < classes;) {
    const int64_t end = v + kSegment < classes ? v + kSegment : classes;
    const int64_t both = finished ? 0 : finish.end() < end ? finish.end() : end;
    for (; v + kClasses <= both; v += kClasses) pass.group(v, finish);
    if (v < end && !finished) {
      finish.rest(v);
      finished = true;
    }
    for (; v + kClasses <= end; v += kClasses) pass.group(v, NothingToFinish());
    if (v < end) pass.part_of_group(v, end - v);
    v = end;
    pass.end_segment();
  }
  if (!finished) finish.rest(classes);
  *total = pass.total();
  return pass.exceeds();
}

// What the first pass found of row r; `kept` as in row_pass.
template <bool kKeep, class Storage, class Finish>
void row_sum(const Storage* z, int64_t classes, int64_t r, typename Tile<Storage>::Scalar* kept,
             const Finish& finish, Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  using Scalar = typename Tile<Storage>::Scalar;
  const NothingToFinish nothing;
  const Vector zero = broadcast(Scalar(0));
  PairSum sum;
  Scalar shift = 0;
  Vector reference = zero;
  const Scalar probe = row_max(z, classes < kProbe ? classes : kProbe);
  bool again = !is_usual_maximum<Vector>(probe);
  if (again) {
    finish.begin();
    finish.rest(0);
  } else {
    reference = reference_exponent(broadcast(probe));
    again = row_pass<false, kKeep>(z, classes, zero, reference, kept, finish, &sum);
  }
  if (again) {
    const Scalar maximum = row_max(z, classes);
    if (is_usual_maximum<Vector>(maximum)) {
      reference = reference_exponent(broadcast(maximum));
      row_pass<false, kKeep>(z, classes, zero, reference, kept, nothing, &sum);
    } else {
      shift = maximum;
      reference = zero;
      row_pass<true, kKeep>(z, classes, broadcast(shift), reference, kept, nothing, &sum);
    }
  }
  tile->shift[r] = shift;
  tile->reference[r] = first_lane(reference);
  tile->sum_high[r] = sum.high;
  tile->sum_low[r] = sum.low;
}

// The index of the row's first maximum, or of the first NaN.
template <class Storage, class Scalar>
int64_t row_argmax(const Storage* z, int64_t classes, Scalar maximum, bool may_have_nan) {
  const int64_t nan = may_have_nan ? first_nan(z, classes) : -1;
  return nan >= 0 ? nan : first_equal(z, classes, broadcast(maximum));
}

// The row's maximum and its argmax.
template <class Storage>
void row_extremes(const Storage* z, int64_t classes, int64_t r, Tile<Storage>* tile) {
  tile->maximum[r] = row_max(z, classes);
  const bool may_have_nan = tile->sum_high[r] != tile->sum_high[r];
  tile->argmax[r] = row_argmax(z, classes, tile->maximum[r], may_have_nan);
}

// What the statistics and label smoothing need of row r beside its sum.
template <class Storage>
void row_extras(const Storage* z, const RowProblem& problem, int64_t r, Tile<Storage>* tile) {
  using Scalar = typename Tile<Storage>::Scalar;
  const auto* weights = reinterpret_cast<const Scalar*>(problem.smooth_weights);
  if (weights == nullptr && problem.arrays[kArgmax].data == nullptr) return;
  row_extremes(z, problem.classes, r, tile);
  if (weights == nullptr) return;
  const PairSum spread = row_spread(z, problem.classes, weights, broadcast(tile->maximum[r]));
  tile->spread_high[r] = spread.high;
  tile->spread_low[r] = spread.low;
}

}  // namespace
}  // namespace gce
