// The sums of L rows at a time, in the lanes, by the order of accumulator.inc.h. Included by ../kernels.inc.h.

namespace gce {
namespace {

template <int N>
struct Constant {
  static constexpr int kValue = N;
};
// Calls of(Constant<V>()) for V = classes if that is from 2 to kMost; returns whether it is.
template <int kMost, class Of>
bool with_few_classes(int64_t classes, const Of& of) {
  if constexpr (kMost < 2) {
    return false;
  } else {
    if (classes != kMost) return with_few_classes<kMost - 1>(classes, of);
    of(Constant<kMost>());
    return true;
  }
}

// The sums of a segment, L rows at a time: sums of rows, in the lanes, where accumulator.inc.h has a sum.
template <class Vector>
struct ColumnSum;

template <>
struct ColumnSum<F32> {
  static constexpr int kLanes = F32::kLanes / 2;  // of accumulator.inc.h

  void add(F32 x) {
    low_rows = low_rows + widen_low(x);
    high_rows = high_rows + widen_high(x);
  }
  void merge(const ColumnSum& other) {
    low_rows = low_rows + other.low_rows;
    high_rows = high_rows + other.high_rows;
  }

  F64 low_rows = broadcast(0.0);
  F64 high_rows = broadcast(0.0);
};
template <>
struct ColumnSum<F64> : WideSum<F64> {
  static constexpr int kLanes = F64::kLanes;
};

// Pairs high + low of L rows: what add_pair is for one.
template <class Vector>
struct ColumnTotal;

template <>
struct ColumnTotal<F32> {
  WideSum<F64> low_rows;
  WideSum<F64> high_rows;

  void add(const ColumnSum<F32>& sum) {
    low_rows.add(sum.low_rows);
    high_rows.add(sum.high_rows);
  }
  void save(double* high, double* low) const {
    low_rows.save(high, low);
    high_rows.save(high + F64::kLanes, low + F64::kLanes);
  }
};
template <>
struct ColumnTotal<F64> {
  WideSum<F64> rows;

  void add(const ColumnSum<F64>& sum) { rows.merge(sum); }
  void save(double* high, double* low) const { rows.save(high, low); }
};

// The sum of term(v) and those at distance L after it, of a group of `count`.
template <class Vector, class Term>
[[gnu::always_inline]] inline Vector sum_at_distance(const Term& term, int64_t v, int64_t count) {
  constexpr int L = Vector::kLanes;
  Vector sum = term(v);
  if (v + L >= count) return sum;
  sum = sum + term(v + L);
  if (v + 3 * L < count) return sum + (term(v + 2 * L) + term(v + 3 * L));
  return v + 2 * L < count ? sum + term(v + 2 * L) : sum;
}

// Adds the terms of a group of `count` classes, vectors in memory, in the order of accumulator.inc.h.
template <class Vector>
[[gnu::always_inline]] inline void add_group(const typename Vector::Scalar* terms, int64_t count,
                                             ColumnSum<Vector>* sums) {
  constexpr int L = Vector::kLanes;
  constexpr int kSums = ColumnSum<Vector>::kLanes;
  const auto term = [&](int64_t v) __attribute__((always_inline)) { return load(terms + v * L); };
#pragma GCC unroll 8
  for (int lane = 0; lane < kSums; ++lane) {
    if (lane >= count) continue;
    Vector sum = sum_at_distance<Vector>(term, lane, count);
    if (kSums < L && lane + kSums < count) {
      sum = sum + sum_at_distance<Vector>(term, lane + kSums, count);
    }
    sums[lane].add(sum);
  }
}

// The sum of V terms of L rows. terms_of(v, count) gives where those of classes v to v + count - 1 are: vectors.
template <class Vector, class TermsOf>
[[gnu::always_inline]] inline ColumnTotal<Vector> sum_of_columns(int64_t classes,
                                                                 TermsOf terms_of) {
  constexpr int64_t kClasses = kGroup * Vector::kLanes;
  constexpr int kSums = ColumnSum<Vector>::kLanes;
  ColumnTotal<Vector> total;
  for (int64_t v = 0; v < classes;) {
    const int64_t end = v + kSegment < classes ? v + kSegment : classes;
    ColumnSum<Vector> sums[kSums];
    for (; v < end; v += kClasses) {
      const int64_t count = end - v < kClasses ? end - v : kClasses;
      add_group(terms_of(v, count), count, sums);
    }
    v = end;
#pragma GCC unroll 4
    for (int width = kSums / 2; width >= 1; width /= 2) {  // a lane without a class holds +0
#pragma GCC unroll 8
      for (int lane = 0; lane < width; ++lane) sums[lane].merge(sums[lane + width]);
    }
    total.add(sums[0]);
  }
  return total;
}

constexpr int kMostSumsOfFew = kGroup * F32::kLanes < 32 ? kGroup * F32::kLanes : 32;  // one group

// The sum of V <= kMostSumsOfFew float vectors term(v), V known to the compiler: that of sum_of_columns, less what adds
// +0.
template <int V, class Term>
[[gnu::always_inline]] inline void sums_of_few(const Term& term, double* high, double* low) {
  constexpr int kSums = ColumnSum<F32>::kLanes;
  F64 sums[2][kSums];  // of the lower rows, of the higher ones
#pragma GCC unroll 8
  for (int lane = 0; lane < kSums; ++lane) {
    if (lane >= V) continue;
    F32 sum = sum_at_distance<F32>(term, lane, V);
    if (lane + kSums < V) sum = sum + sum_at_distance<F32>(term, lane + kSums, V);
    sums[0][lane] = widen_low(sum);
    sums[1][lane] = widen_high(sum);
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    F64* lanes = sums[half];
#pragma GCC unroll 4
    for (int width = kSums / 2; width >= 1; width /= 2) {
#pragma GCC unroll 8
      for (int lane = 0; lane < width; ++lane) {
        if (lane + width < V) lanes[lane] = lanes[lane] + lanes[lane + width];
      }
    }
    store(high + half * F64::kLanes, lanes[0]);
    store(low + half * F64::kLanes, broadcast(0.0));
  }
}

// Those of a tile's blocks; false if there are more classes.
inline bool sum_few(const float* blocks, int64_t rows, int64_t classes, double* high, double* low) {
  return with_few_classes<kMostSumsOfFew>(classes, [&](auto count) {
    constexpr int V = count.kValue;
    for (int64_t r = 0; r < rows; r += F32::kLanes) {
      const auto term = [&](int v) __attribute__((always_inline)) {
        return load(blocks + r * V + v * F32::kLanes);
      };
      sums_of_few<V>(term, high + r, low + r);
    }
  });
}
inline bool sum_few(const double*, int64_t, int64_t, double*, double*) { return false; }

// Room for the terms of a group.
template <class Vector>
struct GroupOfTerms {
  alignas(64) typename Vector::Scalar terms[kGroup * Vector::kLanes * Vector::kLanes];
};

}  // namespace
}  // namespace gce
