// The two passes over L neighbouring rows at a time: lanes run along the rows. The same additions in the
// same order as rows.inc.h. Included by ../kernels.inc.h.
//
// Up to kMostStagedClasses classes of L rows are first brought into a block (staging.inc.h); the pass makes its logits
// exponentials. More classes are read from the panel, whose rows are then neighbours, and kept if there is scratch for
// V vectors; else the second pass computes them anew. The gradient's panel may be the logits'.

namespace gce {
namespace {

// L rows' logits in a block; or shifted. What PanelRows is where they are not staged.
template <class Storage>
struct BlockRows {
  using Vector = typename ComputeOf<Storage>::Vector;

  const typename Vector::Scalar* block;

  template <bool kShifted>
  [[gnu::always_inline]] Vector logits(int64_t v, Vector shift) const {
    return load_shifted<kShifted>(block + v * Vector::kLanes, shift);
  }
};

template <class Rows, class Vector = typename Rows::Vector>
[[gnu::always_inline]] inline Vector column_max(const Rows& rows, int64_t classes) {
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  Vector maximum = minus_infinity<Vector>();
  for (int64_t v = 0; v < classes; ++v) {
    maximum = max(rows.template logits<false>(v, zero), maximum);
  }
  return maximum;
}

// The first pass; see row_pass. Returns the largest x + kMagic of each row. kept may be the block of the rows.
template <bool kShifted, bool kKeep, class Rows, class Vector = typename Rows::Vector>
[[gnu::always_inline]] inline Vector column_pass(const Rows& rows, int64_t classes, Vector shift,
                                                 Vector reference, typename Vector::Scalar* kept,
                                                 ColumnTotal<Vector>* total) {
  const Exponent<Vector> exponent(reference);
  Vector largest = broadcast(ExponentRange<Vector>::kMagic);
  GroupOfTerms<Vector> group;
  *total = sum_of_columns<Vector>(classes, [&](int64_t v, int64_t count) {
    auto* const terms = kKeep ? kept + v * Vector::kLanes : group.terms;
    for (int64_t i = 0; i < count; ++i) {
      const Vector z = rows.template logits<kShifted>(v + i, shift);
      store(terms + i * Vector::kLanes, exponential(z, exponent, &largest));
    }
    return terms;
  });
  return largest;
}

// A block's logits become exponentials.
template <class Vector>
[[gnu::always_inline]] inline void block_exponentials(int64_t classes, Vector reference,
                                                      typename Vector::Scalar* block) {
  constexpr int L = Vector::kLanes;
  const Exponent<Vector> exponent(reference);
  Vector any_size = broadcast(ExponentRange<Vector>::kMagic);
  int64_t v = 0;
  for (; v + kGroup <= classes; v += kGroup) {
    Vector e[kGroup];
    for (int u = 0; u < kGroup; ++u) e[u] = load(block + (v + u) * L);
    exponentials<kGroup>(e, exponent, &any_size, e);
    for (int u = 0; u < kGroup; ++u) store(block + (v + u) * L, e[u]);
  }
  for (; v < classes; ++v) {
    store(block + v * L, exponential(load(block + v * L), exponent, &any_size));
  }
}

// 1 where the maximum is usual, else 0.
template <class Vector>
inline Vector usual_maxima(Vector maximum) {
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  const Vector one = broadcast(static_cast<typename Vector::Scalar>(1));
  const Vector limit = broadcast(ExponentRange<Vector>::kLargestLogit);
  return select(limit < maximum, zero, select(maximum < zero - limit, zero, one));
}

// The reference of a maximum that is usual, else of 0.
template <class Vector>
inline Vector usual_reference(Vector maximum, Vector usual) {
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  return reference_exponent(select(usual == zero, zero, maximum));
}

// What the first pass finds of a tile whose blocks are staged; see row_sum. Step by step for all blocks, so that a CPU
// that waits for one has the others at hand.
template <class Storage>
void blocks_sums(const Panel<Storage>& z, int64_t classes, typename Tile<Storage>::Scalar* kept,
                 Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  constexpr int64_t L = Vector::kLanes;
  const Vector zero = broadcast(static_cast<typename Tile<Storage>::Scalar>(0));
  bool all_usual = true;
  for (int64_t r = 0; r < tile->rows; r += L) {
    const Vector maximum = column_max(BlockRows<Storage>{kept + r * classes}, classes);
    const Vector usual = usual_maxima(maximum);
    all_usual = all_usual && !any(usual == zero);
    store(tile->shift + r, select(usual == zero, maximum, zero));
    store(tile->reference + r, usual_reference(maximum, usual));
  }
  for (int64_t r = 0; r < tile->rows; r += L) {
    block_exponentials(classes, load(tile->reference + r), kept + r * classes);
  }
  const bool summed = sum_few(kept, tile->rows, classes, tile->sum_high, tile->sum_low);
  for (int64_t r = 0; r < tile->rows && !summed; r += L) {
    const auto* block = kept + r * classes;
    const auto terms_of = [&](int64_t v, int64_t) { return block + v * L; };
    sum_of_columns<Vector>(classes, terms_of).save(tile->sum_high + r, tile->sum_low + r);
  }
  for (int64_t r = 0; r < tile->rows && !all_usual; r += L) {
    const int64_t n = tile->rows - r < L ? tile->rows - r : L;
    auto* block = kept + r * classes;
    ColumnTotal<Vector> total;
    stage(z, r, n, classes, block);
    column_pass<true, true>(BlockRows<Storage>{block}, classes, load(tile->shift + r),
                            load(tile->reference + r), block, &total);
    total.save(tile->sum_high + r, tile->sum_low + r);
  }
}

// What it finds of rows r to r + L - 1, of which n exist, with more classes, not staged.
template <bool kKeep, class Storage>
void column_sums(const Panel<Storage>& z, int64_t r, int64_t n, int64_t classes,
                 typename Tile<Storage>::Scalar* kept, Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  const PanelRows<Storage> rows(z, r, n);
  const Vector zero = broadcast(static_cast<typename Tile<Storage>::Scalar>(0));
  ColumnTotal<Vector> total;
  Vector shift = zero;
  const Vector probe = column_max(rows, kProbe);
  const Vector usual = usual_maxima(probe);
  Vector reference = usual_reference(probe, usual);
  const Vector largest = column_pass<false, kKeep>(rows, classes, zero, reference, kept, &total);
  if (any(too_large(largest)) || any(usual == zero)) {
    const Vector stays = select(too_large(largest), zero, usual);
    const Vector maximum = column_max(rows, classes);
    const Vector usual_now = usual_maxima(maximum);
    reference = select(stays == zero, usual_reference(maximum, usual_now), reference);
    shift = select(stays == zero, select(usual_now == zero, maximum, zero), zero);
    column_pass<true, kKeep>(rows, classes, shift, reference, kept, &total);
  }
  store(tile->shift + r, shift);
  store(tile->reference + r, reference);
  total.save(tile->sum_high + r, tile->sum_low + r);
}

// The first largest logit of each row, or its first NaN. V < 2^24: indices are exact in float.
template <class Rows, class Vector = typename Rows::Vector>
Vector column_argmax(const Rows& rows, int64_t classes) {
  using Scalar = typename Vector::Scalar;
  const Vector none = broadcast(static_cast<Scalar>(-1));
  Vector best = minus_infinity<Vector>();
  Vector best_at = broadcast(static_cast<Scalar>(0));
  Vector nan_at = none;
  for (int64_t v = classes - 1; v >= 0; --v) {  // downwards: the first of equals is seen last
    const Vector x = rows.template logits<false>(v, best);
    const Vector here = broadcast(static_cast<Scalar>(v));
    best_at = select(x < best, best_at, here);
    best = max(x, best);
    nan_at = select(x == x, nan_at, here);
  }
  return select(nan_at == none, best_at, nan_at);
}

// row_spread_in of each row.
template <class Unit, class Rows, class Vector = typename Rows::Vector>
ColumnTotal<Vector> column_spread_in(const Rows& rows, int64_t classes,
                                     const typename Vector::Scalar* weights, Vector maximum) {
  GroupOfTerms<Vector> group;
  return sum_of_columns<Vector>(classes, [&](int64_t v, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const Vector z = rows.template logits<false>(v + i, maximum);
      const Vector term = spread_of<Unit>(z, maximum, broadcast(weights[v + i]));
      store(group.terms + i * Vector::kLanes, term);
    }
    return group.terms;
  });
}

// row_spread of each row.
template <class Storage, class Rows, class Vector>
void column_spreads(const Rows& rows, int64_t r, int64_t classes,
                    const typename Vector::Scalar* weights, Vector maximum, Tile<Storage>* tile) {
  double* const high = tile->spread_high + r;
  double* const low = tile->spread_low + r;
  column_spread_in<OfOne>(rows, classes, weights, maximum).save(high, low);
  if (!kSpreadMayOverflow<Vector>) return;
  const F64 zero = broadcast(0.0);
  F64 finite = broadcast(1.0);
  for (int i = 0; i < Vector::kLanes; i += F64::kLanes) {
    const F64 some = load(high + i);
    finite = select(some - some == zero, finite, zero);
  }
  if (!any(finite == zero)) return;
  double huge_high[Vector::kLanes];
  double huge_low[Vector::kLanes];
  column_spread_in<OfHuge>(rows, classes, weights, maximum).save(huge_high, huge_low);
  for (int i = 0; i < Vector::kLanes; ++i) {
    if (is_finite(high[i])) continue;
    high[i] = huge_high[i] / OfHuge::kUnit;
    low[i] = huge_low[i] / OfHuge::kUnit;
  }
}

// What label smoothing and statistics need beside the sum. weights: those of label smoothing, or null.
template <class Storage, class Rows>
void column_extras(const Rows& rows, int64_t r, int64_t classes,
                   const typename Tile<Storage>::Scalar* weights, bool want_argmax,
                   Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  if (weights == nullptr && !want_argmax) return;
  const Vector maximum = column_max(rows, classes);
  store(tile->maximum + r, maximum);
  if (weights != nullptr) column_spreads(rows, r, classes, weights, maximum, tile);
  if (!want_argmax) return;
  typename Tile<Storage>::Scalar at[Vector::kLanes];
  store(at, column_argmax(rows, classes));
  for (int64_t i = 0; i < Vector::kLanes; ++i) tile->argmax[r + i] = static_cast<int64_t>(at[i]);
}

// First pass over a tile that is staged. weights: those of label smoothing, or null.
template <class Storage>
void staged_stats(const Panel<Storage>& z, int64_t classes,
                  const typename Tile<Storage>::Scalar* weights, bool want_argmax,
                  typename Tile<Storage>::Scalar* blocks, Tile<Storage>* tile) {
  constexpr int64_t L = Tile<Storage>::Vector::kLanes;
  stage_tile(z, tile->rows, classes, blocks);
  for (int64_t r = 0; r < tile->rows; r += L) {
    const auto* block = blocks + r * classes;
    for (int64_t i = 0; i < L; ++i) {  // those past the last row are -1
      const int64_t target = tile->target[r + i];
      tile->target_logit[r + i] = block[(target < 0 ? 0 : target) * L + i];
    }
  }
  for (int64_t r = 0; r < tile->rows; r += L) {
    column_extras(BlockRows<Storage>{blocks + r * classes}, r, classes, weights, want_argmax, tile);
  }
  blocks_sums(z, classes, blocks, tile);
}

// First pass over a tile of neighbouring rows. kept: V vectors for every L rows, or null.
template <class Storage>
void column_stats(const Panel<Storage>& z, int64_t classes,
                  const typename Tile<Storage>::Scalar* weights, bool want_argmax,
                  typename Tile<Storage>::Scalar* kept, Tile<Storage>* tile) {
  constexpr int L = Tile<Storage>::Vector::kLanes;
  for (int64_t r = 0; r < tile->rows; r += L) {
    const int64_t n = tile->rows - r < L ? tile->rows - r : L;
    column_extras(PanelRows<Storage>(z, r, n), r, classes, weights, want_argmax, tile);
    if (kept != nullptr) {
      column_sums<true>(z, r, n, classes, kept + r * classes, tile);
    } else {
      column_sums<false>(z, r, n, classes, kept, tile);
    }
  }
}

// The second pass over rows r to r + L - 1 gives put(v, gradient); see RowFinish. Where the class is the target it is
// the target's. exponential_of(v): what the first pass kept.
template <class Storage, class ExponentialOf, class Put>
[[gnu::always_inline]] inline void column_grad_of_rows(
    int64_t r, int64_t classes, const typename Tile<Storage>::Scalar* weights,
    const Tile<Storage>& tile, ExponentialOf exponential_of, Put put) {
  using Vector = typename Tile<Storage>::Vector;
  using Scalar = typename Tile<Storage>::Scalar;
  const Vector factor = load(tile.grad_factor + r);
  const Vector floor = load(tile.grad_floor + r);
  const Vector scale = load(tile.grad_scale + r);
  const Vector offset = load(tile.grad_offset + r);
  const Vector target = load(tile.target_class + r);
  const Vector at_target = load(tile.target_grad_wide + r);
  const Vector one = broadcast(Scalar(1));
  const bool is_scaled = !all(scale == one);
  Vector here = broadcast(Scalar(0));
  for (int64_t v = 0; v < classes; ++v) {
    const Vector e = exponential_of(v);
    Vector g = keep((is_scaled ? e * scale : e) * factor, not_less(e, floor));
    if (weights != nullptr) g = mul_add(offset, broadcast(weights[v]), g);
    put(v, select(target == here, at_target, g));
    here = here + one;
  }
}

// Calls fill(r, gradient) for rows whose gradient is the same throughout: those that are NaN, or ignored and NaN but for
// that; see finish_special_row.
template <class Storage, class Fill>
void for_nan_rows(const Tile<Storage>& tile, Fill fill) {
  constexpr int64_t L = F64::kLanes;
  for (int64_t begin = 0; begin < tile.rows; begin += L) {
    const F64 nan_if_either_is =
        load(tile.sum_high + begin) + load_as_double(tile.grad_factor + begin);
    if (all(nan_if_either_is == nan_if_either_is)) continue;
    const int64_t end = begin + L < tile.rows ? begin + L : tile.rows;
    for (int64_t r = begin; r < end; ++r) {
      if (tile.sum_high[r] == tile.sum_high[r] && !tile.is_nan(r)) continue;
      fill(r, tile.ignored(r) ? typename Tile<Storage>::Scalar(0) : tile.target_grad_wide[r]);
    }
  }
}

// Second pass over a tile whose exponentials are in blocks.
template <class Storage>
void kept_grad(const Panel<Storage>& out, int64_t classes, bool stream, SharedLine<Storage>* lines,
               const typename Tile<Storage>::Scalar* weights,
               typename Tile<Storage>::Scalar* blocks, const Tile<Storage>& tile) {
  using Vector = typename Tile<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  for (int64_t r = 0; r < tile.rows; r += L) {
    auto* const block = blocks + r * classes;
    column_grad_of_rows(
        r, classes, weights, tile, [&](int64_t v) { return load(block + v * L); },
        [&](int64_t v, Vector g) { store(block + v * L, g); });
  }
  for_nan_rows(tile, [&](int64_t r, typename Vector::Scalar value) {
    auto* const of_row = blocks + r / L * L * classes + r % L;
    for (int64_t v = 0; v < classes; ++v) of_row[v * L] = value;
  });
  unstage_tile(blocks, tile.rows, classes, stream, lines, out);
}

// Second pass over a tile of neighbouring rows of which nothing is kept: the logits are read again.
template <class Storage>
void column_grad(const Panel<Storage>& z, const Panel<Storage>& out, int64_t classes,
                 bool may_stream, const typename Tile<Storage>::Scalar* weights,
                 const Tile<Storage>& tile) {
  using Vector = typename Tile<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  for (int64_t r = 0; r < tile.rows; r += L) {
    const int64_t n = tile.rows - r < L ? tile.rows - r : L;
    const bool streams = may_stream && n == L && may_stream_rows(out);
    const PanelRows<Storage> rows(z, r, n);
    const Exponent<Vector> exponent(load(tile.reference + r));
    const Vector shift = load(tile.shift + r);
    Vector any_size = broadcast(ExponentRange<Vector>::kMagic);
    column_grad_of_rows(
        r, classes, weights, tile,
        [&](int64_t v) {
          return exponential(rows.template logits<true>(v, shift), exponent, &any_size);
        },
        [&](int64_t v, Vector g) {
          if (streams) return stream(out.at(v, r), g);
          store_first_or_all(out.at(v, r), g, n);
        });
  }
  for_nan_rows(tile, [&](int64_t r, typename Vector::Scalar value) {
    for (int64_t v = 0; v < classes; ++v) store_first(out.at(v, r), broadcast(value), 1);
  });
}

}  // namespace
}  // namespace gce
