// The sums of L rows at a time, in the lanes, by the order of accumulator.inc.h. Included by ../kernels.inc.h.

namespace gce {
namespace {

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

// The sum of the terms at distance L from class v on, of a group of `count`, vectors in memory.
template <class Vector>
[[gnu::always_inline]] inline Vector sum_at_distance(const typename Vector::Scalar* terms,
                                                     int64_t v, int64_t count) {
  constexpr int L = Vector::kLanes;
  const auto term = [&](int64_t at) __attribute__((always_inline)) { return load(terms + at * L); };
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
#pragma GCC unroll 8
  for (int lane = 0; lane < kSums; ++lane) {
    if (lane >= count) continue;
    Vector sum = sum_at_distance<Vector>(terms, lane, count);
    if (kSums < L && lane + kSums < count) {
      sum = sum + sum_at_distance<Vector>(terms, lane + kSums, count);
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

// The sums of a tile's blocks of V <= kMostSumsOfFew float vectors, V known to the compiler: those of
// sum_of_columns, less what adds +0.
template <int V>
void sums_of_few(const float* blocks, int64_t rows, double* high, double* low) {
  constexpr int L = F32::kLanes;
  constexpr int kSums = ColumnSum<F32>::kLanes;
  const F64 zero = broadcast(0.0);
  for (int64_t r = 0; r < rows; r += L) {
    const float* block = blocks + r * V;
    F64 sums[2][kSums];  // of the lower rows, of the higher ones
#pragma GCC unroll 8
    for (int lane = 0; lane < kSums; ++lane) {
      if (lane >= V) continue;
      F32 sum = sum_at_distance<F32>(block, lane, V);
      if (lane + kSums < V) sum = sum + sum_at_distance<F32>(block, lane + kSums, V);
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
      store(high + r + half * F64::kLanes, lanes[0]);
      store(low + r + half * F64::kLanes, zero);
    }
  }
}

// Calls sums_of_few with V = classes, or returns false.
template <int V = kMostSumsOfFew>
bool sum_few(const float* blocks, int64_t rows, int64_t classes, double* high, double* low) {
  if constexpr (V < 2) {
    return false;
  } else {
    if (classes != V) return sum_few<V - 1>(blocks, rows, classes, high, low);
    sums_of_few<V>(blocks, rows, high, low);
    return true;
  }
}
inline bool sum_few(const double*, int64_t, int64_t, double*, double*) { return false; }

// Room for the terms of a group.
template <class Vector>
struct GroupOfTerms {
  alignas(64) typename Vector::Scalar terms[kGroup * Vector::kLanes * Vector::kLanes];
};

}  // namespace
}  // namespace gce
