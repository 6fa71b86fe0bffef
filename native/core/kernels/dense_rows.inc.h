// The two passes over a tile of rows of few classes that lie one after another, V known to the compiler. Lanes run over
// the scalars, whatever row they are of. Included by ../kernels.inc.h.
//
// One reference serves the whole tile, which changes no digit (kernels.inc.h). So exponentials and gradients are those of
// an array; only for the sums is it transposed, in registers. The additions are those of column_sums.inc.h. A tile
// whose rows differ too much for one reference is left to columns.inc.h.

namespace gce {
namespace {

constexpr int kMostDenseClasses = 16;

// Bounds within which one reference, that of the tile's largest logit, is as good as one for each row. Exponentials
// from 2^kLeastExact are exact, and their gradients are none that grad_floor makes 0 on account of its least values. Those
// below 2^kMostMasked, which are 2^-124, are beside a sum of 2^kLeastSum with any reference, and have no gradient; and
// all 15 together change no sum of exponentials from 2^kLeastBesideMasked. A tile with masked ones has none between.
constexpr float kLeastExact = -90.0f;
constexpr float kLeastBesideMasked = -66.0f;
constexpr float kMostMasked = -164.0f;
constexpr double kLeastSum = 0x1p-35;
// So no row's maximum is further than this below the tile's: if it is usual there, it is in all rows.
constexpr float kMostBelow = 64.0f;
// With exponentials and factors from here on no gradient is a subnormal number.
constexpr float kLeastUnfloored = -70.0f;
constexpr float kLeastPlainFactor = 0x1p-50f;
// A factor between these is neither a subnormal number nor infinite with any reference.
constexpr float kLeastFactor = 0x1p-80f;
constexpr float kMostFactor = 0x1p80f;

// All scalars, as whole vectors: of(i, n) for n = L scalars from i on, at the end for fewer.
template <class Of>
[[gnu::always_inline]] inline void for_vectors(int64_t scalars, Of of) {
  constexpr int64_t L = F32::kLanes;
  int64_t i = 0;
  for (; i + L <= scalars; i += L) of(i, L);
  if (i < scalars) of(i, scalars - i);
}

inline float min_of_lanes(F32 x) { return -max_of_lanes(broadcast(0.0f) - x); }

template <class Storage>
class DenseTile {
 public:
  // kept: room for the tile's scalars, rounded up to whole vectors of rows and more.
  DenseTile(const Storage* logits, int64_t rows, int64_t classes, float* kept)
      : logits_(logits), scalars_(rows * classes), kept_(kept) {}

  // The tile's reference; false if there is none for all rows.
  bool find_reference() {
    F32 highest[kGroup];
    F32 lowest[kGroup];
    for (int u = 0; u < kGroup; ++u) highest[u] = lowest[u] = any_logit();
    const auto take_in = [&](F32 z, int u) __attribute__((always_inline)) {
      highest[u] = max(z, highest[u]);
      lowest[u] = min(z, lowest[u]);
    };
    constexpr int L = F32::kLanes;
    int64_t i = 0;
    for (; i + kGroup * L <= scalars_; i += kGroup * L) {
      for (int u = 0; u < kGroup; ++u) take_in(load(logits_ + i + u * L), u);
    }
    for (; i < scalars_; i += L) {
      const int64_t n = scalars_ - i < L ? scalars_ - i : L;
      take_in(load_first_or_all(logits_ + i, n, lowest[0]), 0);
    }
    for (int u = 1; u < kGroup; ++u) {
      highest[0] = max(highest[0], highest[u]);
      lowest[0] = min(lowest[0], lowest[u]);
    }
    const float top = max_of_lanes(highest[0]);
    if (!is_usual_maximum<F32>(top) || !is_usual_maximum<F32>(top - kMostBelow)) return false;
    reference_ = reference_exponent(broadcast(top));
    least_ = min_of_lanes(lowest[0]) * Log2E<F32>::kValue - first_lane(reference_);
    return least_ >= kLeastExact || !has_some_between();
  }

  // Makes the logits exponentials. Of rows that do not exist they are 1.
  void exponentiate(int64_t padded_scalars) {
    constexpr int L = F32::kLanes;
    const Exponent<F32> exponent(reference_);
    F32 any_size = broadcast(ExponentRange<F32>::kMagic);
    int64_t i = 0;
    for (; i + kGroup * L <= scalars_; i += kGroup * L) {
      F32 e[kGroup];
      for (int u = 0; u < kGroup; ++u) prefetch(logits_ + i + scalars_ + u * L);  // the next tile
      for (int u = 0; u < kGroup; ++u) e[u] = load(logits_ + i + u * L);
      exponentials<kGroup>(e, exponent, &any_size, e);
      for (int u = 0; u < kGroup; ++u) store(kept_ + i + u * L, e[u]);
    }
    for (; i < scalars_; i += L) {
      const int64_t n = scalars_ - i < L ? scalars_ - i : L;
      const F32 z = load_first_or_all(logits_ + i, n, broadcast(0.0f));
      store_first_or_all(kept_ + i, exponential(z, exponent, &any_size), n);
    }
    for (i = scalars_; i < padded_scalars; ++i) kept_[i] = 1.0f;
  }

  F32 reference() const { return reference_; }
  bool may_have_subnormal_gradients() const { return least_ < kLeastUnfloored; }

 private:
  // To begin with: the first that is not NaN, or 0.
  F32 any_logit() const {
    for (int64_t i = 0; i < scalars_; ++i) {
      const float z = to_scalar(read<Storage>(reinterpret_cast<const char*>(logits_ + i)));
      if (z == z) return broadcast(z);
    }
    return broadcast(0.0f);
  }
  bool has_some_between() const {
    bool found = false;
    for_vectors(scalars_, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      const F32 z = load_first_or_all(logits_ + i, n, minus_infinity<F32>());
      const F32 x = fused_mul_sub(z, broadcast(Log2E<F32>::kValue), reference_);
      const F32 small = select(x < broadcast(kLeastBesideMasked), x, minus_infinity<F32>());
      found = found || any(broadcast(kMostMasked) < small);
    });
    return found;
  }

  const Storage* logits_;
  int64_t scalars_;
  float* kept_;
  F32 reference_;
  float least_;  // exponent
};

// The sums of the rows of V exponentials each; false if one is too small, or NaN.
template <int V>
bool dense_sums(const float* e, int64_t rows, double* high, double* low) {
  constexpr int L = F32::kLanes;
  constexpr int kParts = (V + L - 1) / L;
  bool large = true;
  for (int64_t r = 0; r < rows; r += L) {
    F32 columns[kParts * L];
#pragma GCC unroll 8
    for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) columns[part * L + i] = load(e + (r + i) * V + part * L);
      transpose(columns + part * L);
    }
    sums_of_few<V>([&](int v) __attribute__((always_inline)) { return columns[v]; }, high + r,
                   low + r);
    for (int i = 0; i < L; i += F64::kLanes) {
      large = large && all(broadcast(kLeastSum) < load(high + r + i));
    }
  }
  return large;
}

// The first pass; false if columns.inc.h must do it.
template <class Storage>
bool dense_stats(const Storage* logits, int64_t classes, float* kept, Tile<Storage>* tile,
                 bool* may_have_subnormal_gradients) {
  constexpr int64_t L = F32::kLanes;
  const int64_t padded = (tile->rows + L - 1) / L * L;
  DenseTile<Storage> dense(logits, tile->rows, classes, kept);
  if (!dense.find_reference()) return false;
  dense.exponentiate(padded * classes);
  bool large = false;
  with_few_classes<kMostDenseClasses>(classes, [&](auto count) {
    large = dense_sums<count.kValue>(kept, tile->rows, tile->sum_high, tile->sum_low);
  });
  if (!large) return false;
  for (int64_t r = 0; r < padded; r += L) {
    store(tile->reference + r, dense.reference());
    store(tile->shift + r, broadcast(0.0f));
  }
  // What read_target_logit does, without a pointer for each row: 4 % of 50000x7 on AVX2.
  for (int64_t r = 0; r < tile->rows; ++r) {
    const int64_t target = tile->ignored(r) ? 0 : tile->target[r];
    const Storage* logit = logits + r * classes + target;
    tile->target_logit[r] = to_scalar(read<Storage>(reinterpret_cast<const char*>(logit)));
  }
  *may_have_subnormal_gradients = dense.may_have_subnormal_gradients();
  return true;
}

// Which of L rows of V classes the scalar i is of.
template <int V>
struct RowOfScalar {
  int32_t of[V * F32::kLanes];
  constexpr RowOfScalar() : of() {
    for (int i = 0; i < V * F32::kLanes; ++i) of[i] = i / V;
  }
};

// The gradient of L rows, of which n exist; floor: those of the rows, or null.
template <bool kFloored, int V, class Storage>
[[gnu::always_inline]] inline void dense_grad_of_rows(const float* e, const float* factor,
                                                      const float* floor, int64_t n, Storage* out) {
  constexpr int L = F32::kLanes;
  static constexpr RowOfScalar<V> kRow;
  const auto grad = [&](int64_t i) __attribute__((always_inline)) {
    const F32 here = load(e + i);
    const F32 g = here * pick(factor, kRow.of + i);
    return kFloored ? keep(g, not_less(here, pick(floor, kRow.of + i))) : g;
  };
  if (n == L) {
#pragma GCC unroll 16
    for (int k = 0; k < V; ++k) store(out + k * L, grad(k * L));
  } else {
    for_vectors(n * V, [&](int64_t i, int64_t of_them) __attribute__((always_inline)) {
      store_first_or_all(out + i, grad(i), of_them);
    });
  }
}

// Whether all factors are 0 or of a size from least to kMostFactor, and none is NaN.
inline bool have_sizes_from(float least, const float* factors, int64_t rows) {
  const F32 zero = broadcast(0.0f);
  bool found = true;
  for (int64_t r = 0; r < rows; r += F32::kLanes) {
    const F32 factor = load(factors + r);
    const F32 size = select(factor == zero, broadcast(1.0f), magnitude_of(factor));
    found = found && all(broadcast(least) < size) && all(size < broadcast(kMostFactor));
  }
  return found;
}

template <int V, class Storage>
void dense_grad_of(const float* kept, bool floored, const Tile<Storage>& tile, Storage* out) {
  constexpr int64_t L = F32::kLanes;
  for (int64_t r = 0; r < tile.rows; r += L) {
    const int64_t n = tile.rows - r < L ? tile.rows - r : L;
    const float* e = kept + r * V;
    const float* factor = tile.grad_factor + r;
    if (floored) {
      dense_grad_of_rows<true, V>(e, factor, tile.grad_floor + r, n, out + r * V);
    } else {
      dense_grad_of_rows<false, V>(e, factor, nullptr, n, out + r * V);
    }
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    if (tile.ignored(r)) continue;
    write(reinterpret_cast<char*>(out + r * V + tile.target[r]), tile.target_grad[r]);
  }
}

// The second pass; false, with nothing written, if columns.inc.h must do both.
template <class Storage>
bool dense_grad(int64_t classes, const float* kept, bool may_be_subnormal, Tile<Storage>* tile,
                Storage* out) {
  const float* factors = tile->grad_factor;
  if (!have_sizes_from(kLeastFactor, factors, tile->rows)) return false;
  const bool floored = may_be_subnormal || !have_sizes_from(kLeastPlainFactor, factors, tile->rows);
  if (floored) fill_grad_floors(tile);
  with_few_classes<kMostDenseClasses>(
      classes, [&](auto count) { dense_grad_of<count.kValue>(kept, floored, *tile, out); });
  return true;
}

}  // namespace
}  // namespace gce
