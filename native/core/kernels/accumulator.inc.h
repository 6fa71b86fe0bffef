// The one order in which a row's exponentials are added. Included by ../kernels.inc.h.
//
// A row is cut into blocks of kBlock classes, a block into groups of 4 L. Within a group the four
// exponentials at distance L are added in their own precision, (e0 + e1) + (e2 + e3); the L results
// are added to L sums of twice the precision; those are added pairwise at the end of the row.
// So a sum's relative error is that of two additions and of the exponentials, whatever V is.
//
// Missing classes of the last group count as +0, which changes no sum.

namespace gce {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int kGroup = 4;  // vectors

// A double-precision sum for each lane of an F32, or a pair high + low for each lane of an F64.
template <class Vector>
struct WideSum;

template <>
struct WideSum<F32> {
  F64 low_half = broadcast(0.0);
  F64 high_half = broadcast(0.0);

  void add(F32 x) {
    low_half = low_half + widen_low(x);
    high_half = high_half + widen_high(x);
  }
  void merge(const WideSum& other) {
    low_half = low_half + other.low_half;
    high_half = high_half + other.high_half;
  }
  void scale_by(F32 factor) {
    low_half = low_half * widen_low(factor);
    high_half = high_half * widen_high(factor);
  }
  void save(double* high, double* low) const {
    store(high, low_half);
    store(high + F64::kLanes, high_half);
    store(low, broadcast(0.0));
    store(low + F64::kLanes, broadcast(0.0));
  }
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
  void scale_by(F64 factor) {
    high = high * factor;
    low = low * factor;
  }
  void save(double* high_out, double* low_out) const {
    store(high_out, high);
    store(low_out, low);
  }
};

// The pairwise end of a row: lane i takes in lane i + L/2, then i + L/4, ... (merge of WideSum, lane
// by lane).
inline PairSum sum_of_lanes(const WideSum<F32>& sums) {
  double lanes[F64::kLanes];
  store(lanes, sums.low_half + sums.high_half);
  for (int width = F64::kLanes / 2; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return {lanes[0], 0.0};
}
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

// The reference exponent K of a row with this maximum, and the range of maxima in which x = z log2(e) - K
// is computed exactly enough in one fused operation. Rows outside it (huge, all -inf, or holding +inf)
// are first shifted by their maximum: there z - max is exact wherever exp does not vanish.
constexpr double kLargestUnshifted = 1048576.0;  // 2^20
constexpr double kNoReference = -2097152.0;      // -2^21: below any K in range

template <class Scalar>
inline bool is_unshifted_range(Scalar maximum) {
  return maximum >= static_cast<Scalar>(-kLargestUnshifted) &&
         maximum <= static_cast<Scalar>(kLargestUnshifted);
}

template <class Vector>
inline Vector reference_exponent(Vector maximum) {
  using Scalar = typename Vector::Scalar;
  const Vector limit = broadcast(static_cast<Scalar>(kLargestUnshifted));
  const Vector bounded = select(limit < maximum, limit, maximum);
  return max(ceil(max(bounded, broadcast(static_cast<Scalar>(-kLargestUnshifted))) *
                  broadcast(Log2E<Vector>::kValue)),
             broadcast(static_cast<Scalar>(kNoReference)));
}

}  // namespace
}  // namespace gce
