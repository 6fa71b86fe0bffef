// The one order in which a row's exponentials are added. Included by ../kernels.inc.h.
//
// A row is cut into segments of kSegment classes, a segment into groups of 4 L. Within a group the four
// exponentials at distance L are added in their own precision, (e0 + e1) + (e2 + e3). The L results are
// added to sums of twice the precision: for double to L of them, for float to L/2, after the results at distance
// L/2 have been added as floats. Those sums are added pairwise at the end of the segment, and the segments in
// order. So a sum's relative error is that of three additions and of the exponentials, whatever V is.
//
// Missing classes of the last group count as +0, which changes no sum.

namespace gce {
namespace {

constexpr int kGroup = 4;  // vectors

// The sums of twice the precision: doubles for F32, for F64 pairs high + low.
template <class Vector>
struct WideSum;

template <>
struct WideSum<F32> {
  F64 sum = broadcast(0.0);

  void add(F32 x) { sum = sum + widen_folded(x); }
};

template <>
struct WideSum<F64> {
  F64 high = broadcast(0.0);
  F64 low = broadcast(0.0);

  // add_exactly for each lane
  void add(F64 x) {
    const F64 sum = high + x;
    const F64 back = sum - high;
    low = low + ((high - (sum - back)) + (x - back));
    high = sum;
  }
  void merge(const WideSum& other) {
    add(other.high);
    low = low + other.low;
  }
  void save(double* high_out, double* low_out) const {
    store(high_out, high);
    store(low_out, low);
  }
};

// The pairwise end of a segment: lane i takes in lane i + L/2, then i + L/4, ... (merge of ColumnSum, lane by
// lane).
inline double sum_of_lanes(F64 sum) {
  double lanes[F64::kLanes];
  store(lanes, sum);
  for (int width = F64::kLanes / 2; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
inline PairSum sum_of_lanes(const WideSum<F32>& sums) { return {sum_of_lanes(sums.sum), 0.0}; }
inline PairSum sum_of_lanes(const WideSum<F64>& sums) {
  double high[F64::kLanes];
  double low[F64::kLanes];
  sums.save(high, low);
  for (int width = F64::kLanes / 2; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) {
      PairSum pair = {high[i], low[i]};
      add_exactly(&pair, high[i + width]);
      high[i] = pair.high;
      low[i] = pair.low + low[i + width];
    }
  }
  return {high[0], low[0]};
}

// The four exponentials at distance L of each lane of a group.
template <class Vector>
[[gnu::always_inline]] inline Vector sum_of_group(const Vector* e) {
  return (e[0] + e[1]) + (e[2] + e[3]);
}

inline void add_pair(PairSum* total, const PairSum& sum) {
  add_exactly(total, sum.high);
  total->low += sum.low;
}

// A row's first sum uses the reference K of its first classes' maximum. Rows that hold much larger logits are
// summed again with the K of their true maximum; and where that is huge, or -inf or +inf, first shifted by it: there
// z - max is exact wherever exp does not vanish. The same K for the same row, whatever the layout.
constexpr int64_t kProbe = 64;

template <class Vector>
inline bool is_usual_maximum(typename Vector::Scalar maximum) {
  return maximum >= -ExponentRange<Vector>::kLargestLogit &&
         maximum <= ExponentRange<Vector>::kLargestLogit;
}

// Even: where an ISA rounds products, x may be half way between two integers, and which is nearest then depends on
// whether K is odd.
template <class Vector>
inline Vector reference_exponent(Vector maximum) {
  const Vector half = ceil(maximum * broadcast(Log2E<Vector>::kValue / 2));
  return half + half;
}

// Where some x was too large for its K; given what `exponential` found.
template <class Vector>
inline auto too_large(Vector largest) {
  return broadcast(ExponentRange<Vector>::kMagic + ExponentRange<Vector>::kMost) < largest;
}

}  // namespace
}  // namespace gce
