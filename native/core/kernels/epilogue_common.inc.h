// The epilogue of float rows in the common case: fewer divisions, and all of it in registers.
// Included by ../kernels.inc.h.
//
// In double, with S the sum of exponentials, e the target's, d = 1 - gamma, D = gamma S + d e and one division
// r = 1/(S D):   p = e/S = e D r,   w = e/D = e S r,   L = -log(gamma + d p)/d,   grad factor w/S.
// As accurate as the general one: the two differ in the last bits of doubles.

namespace gce {
namespace {

// A vector of floats as two of doubles: every operation is done for both, so that one need not wait for the other.
struct F64Pair {
  F64 of[2];
};
template <class Of>
[[gnu::always_inline]] inline F64Pair each(Of of) {
  return {{of(0), of(1)}};
}
inline F64Pair load_pair(const double* p) { return {{load(p), load(p + F64::kLanes)}}; }
inline void store_pair(double* p, const F64Pair& x) {
  store(p, x.of[0]);
  store(p + F64::kLanes, x.of[1]);
}
inline F64Pair widen(F32 x) { return {{widen_low(x), widen_high(x)}}; }
inline F32 narrow(const F64Pair& x) { return narrow(x.of[0], x.of[1]); }

// Fills the results of rows r to r + F32::kLanes - 1. Those of rows that are not common are the general
// epilogue's: rows with a threshold, or a gamma below kLeastCommonGamma, or p below 2^-100 of the reference, or
// a factor that cannot take the sum's size in, or a NaN.
template <class Storage>
class CommonEpilogue {
 public:
  CommonEpilogue(const EpilogueNeeds& needs, Tile<Storage>* tile) : needs_(needs), t_(*tile) {}

  [[gnu::always_inline]] void run(int64_t r) {
    const F64 zero = broadcast(0.0);
    const F64 one = broadcast(1.0);
    const F64 log2e = broadcast(static_cast<double>(Log2E<F32>::kValue));
    const F32 reference32 = load(t_.reference + r);
    const F32 logit32 = load(t_.target_logit + r) - load(t_.shift + r);
    const F64Pair reference = widen(reference32);
    const F64Pair logit = widen(logit32);
    const F64Pair high = load_pair(t_.sum_high + r);
    const F64Pair low = load_pair(t_.sum_low + r);
    const F64Pair gamma = load_pair(t_.gamma + r);
    const F64Pair sum = each([&](int u) { return high.of[u] + low.of[u]; });
    const F64Pair raised = each([&](int u) { return exponent_of(sum.of[u]); });
    const F64Pair x =
        each([&](int u) { return fused_mul_sub(logit.of[u], log2e, reference.of[u]); });
    const Mask64 ignored[2] = {negative(t_.target + r), negative(t_.target + r + F64::kLanes)};
    Mask64 common[2];
    for (int u = 0; u < 2; ++u) {
      common[u] = (broadcast(-100.0) < x.of[u]) & (raised.of[u] < broadcast(kMostByFactor));
      if (!t_.options_are_common) common[u] = common[u] & has_common_options(r + u * F64::kLanes);
      common[u] = common[u] | ignored[u];
    }
    const bool all_common = all(common[0]) && all(common[1]);
    if (!all_common) general(r);
    const auto put = [&](double* array, const F64Pair& value) {
      const F64Pair there = load_pair(array);
      store_pair(array, each([&](int u) {
                   return all_common ? value.of[u] : select(common[u], value.of[u], there.of[u]);
                 }));
    };
    const auto put_narrow = [&](float* array, const F64Pair& value) {
      const F64Pair there = widen(load(array));
      store(array, narrow(each([&](int u) {
              return all_common ? value.of[u] : select(common[u], value.of[u], there.of[u]);
            })));
    };

    // The target's exponential: see target_stats.
    F32 any_size = broadcast(ExponentRange<F32>::kMagic);
    const F64Pair as_summed = widen(exponential(logit32, Exponent<F32>(reference32), &any_size));
    const F64Pair shifted = each([&](int u) { return x.of[u] + broadcast(kPowerMagic64); });
    const F64Pair fraction = each([&](int u) {
      const F64 whole = reference.of[u] + (shifted.of[u] - broadcast(kPowerMagic64));
      return mul_add(x.of[u] - raised.of[u], broadcast(Log2E<F32>::kStretch),
                     fused_mul_sub(logit.of[u], log2e, whole));
    });
    const F64Pair e = each([&](int u) {
      const F64 anew = power(shifted.of[u]) * exp2_centered(fraction.of[u]);
      return select(x.of[u] < raised.of[u] - broadcast(2.0), anew, as_summed.of[u]);
    });

    const F64Pair delta = each([&](int u) { return one - gamma.of[u]; });
    const F64Pair d_sum =
        each([&](int u) { return mul_add(gamma.of[u], sum.of[u], delta.of[u] * e.of[u]); });
    const F64Pair inverse = each([&](int u) { return one / (sum.of[u] * d_sum.of[u]); });
    const F64Pair inverse_sum = each([&](int u) { return inverse.of[u] * d_sum.of[u]; });
    const F64Pair one_minus_p = each(
        [&](int u) { return max(zero, (high.of[u] - e.of[u]) + low.of[u]) * inverse_sum.of[u]; });
    const F64Pair row_weight = load_pair(t_.row_weight + r);
    if (needs_.grad) {
      const F64Pair upstream = load_pair(t_.upstream + r);
      const F64 inverse_divisor = broadcast(needs_.inverse_divisor);
      const F64Pair slope = each([&](int u) {
        const F64 weight = e.of[u] * (sum.of[u] * inverse.of[u]);
        return weight * ((row_weight.of[u] * inverse_divisor) * upstream.of[u]);
      });
      const F64Pair factor = each([&](int u) {
        return select(ignored[u], zero, one_nan(slope.of[u] * inverse_sum.of[u]));
      });
      put_narrow(t_.grad_factor + r, factor);
      put_narrow(t_.grad_scale + r, {{one, one}});
      put_narrow(t_.grad_floor + r,
                 each([&](int u) { return grad_floor<F32>(factor.of[u], raised.of[u]); }));
      put_narrow(t_.target_grad_wide + r,
                 each([&](int u) { return one_nan(zero - slope.of[u] * one_minus_p.of[u]); }));
      store(t_.target_grad + r, load(t_.target_grad_wide + r));
    }
    if (!needs_.loss) return;
    const F64Pair inverse_delta = load_pair(t_.inverse_delta + r);
    put(t_.loss + r, each([&](int u) {
          const F64 away = delta.of[u] * one_minus_p.of[u];
          const Mask64 near_one = away < broadcast(0.5);
          const F64 p = e.of[u] * inverse_sum.of[u];
          const F64 v = select(near_one, one - away, mul_add(delta.of[u], p, gamma.of[u]));
          const F64 lost = keep((one - v) - away, near_one);
          const F64 loss = (zero - (log(v) + lost)) * inverse_delta.of[u];
          const F64 of_row =
              select(delta.of[u] == zero, one_minus_p.of[u], loss) * row_weight.of[u];
          return select(ignored[u], zero, one_nan(of_row));
        }));
  }

 private:
  [[gnu::noinline]] void general(int64_t r) { GeneralEpilogue<Storage>(needs_, r, &t_).run(); }

  [[gnu::always_inline]] Mask64 has_common_options(int64_t r) const {
    const F64 zero = broadcast(0.0);
    const F64 gamma = load(t_.gamma + r);
    return not_less(gamma, broadcast(kLeastCommonGamma)) & (load(t_.threshold + r) == zero);
  }

  const EpilogueNeeds needs_;
  Tile<Storage>& t_;
};

// Fills the results of one tile.
template <class Storage>
void tile_epilogue(const EpilogueNeeds& needs, Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  tile->has_nan = false;
  for (int64_t r = 0; r < tile->rows; r += F64::kLanes) {
    const F64 sum = load(tile->sum_high + r);
    tile->has_nan = tile->has_nan || !all(sum == sum);
  }
  if constexpr (sizeof(typename Vector::Scalar) == sizeof(float)) {
    if (needs.may_be_common()) {
      CommonEpilogue<Storage> epilogue(needs, tile);
      for (int64_t r = 0; r < tile->rows; r += Vector::kLanes) epilogue.run(r);
      return;
    }
  }
  for (int64_t r = 0; r < tile->rows; r += Vector::kLanes) {
    GeneralEpilogue<Storage>(needs, r, tile).run();
  }
}

}  // namespace
}  // namespace gce
