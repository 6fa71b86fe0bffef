// The two passes over L neighbouring rows at a time: lanes run along the rows. The same additions in the
// same order as rows.inc.h. Included by ../kernels.inc.h.
//
// A panel is how logits or gradients of a tile lie in memory: class v of its row r at rows[r] + v class_stride.
// Up to kMostStagedClasses classes of L rows are first brought into a block,
// V vectors in scratch that are transposed on the way if a row is contiguous; the pass makes them exponentials.
// More classes are read from the panel, whose rows are then neighbours, and kept if there is scratch for V vectors;
// else the second pass computes them anew. The gradient's panel may be the logits'.

namespace gce {
namespace {

template <class Storage>
struct Panel {
  static constexpr int64_t kSize = static_cast<int64_t>(sizeof(Storage));

  char* const* rows;
  int64_t class_stride;  // bytes
  int64_t row_stride;    // 0 if there is none

  Storage* at(int64_t v, int64_t r) const {
    return reinterpret_cast<Storage*>(rows[r] + v * class_stride);
  }
  bool rows_are_neighbours() const { return row_stride == kSize; }
  bool classes_are_neighbours() const { return class_stride == kSize; }
  bool rows_are_dense(int64_t classes) const {
    return classes_are_neighbours() && row_stride == classes * kSize;
  }
};

// n of the L rows exist.
template <bool kShifted, class Storage, class Vector>
inline Vector load_rows(const Storage* p, int64_t n, Vector shift) {
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  return n == Vector::kLanes ? load_shifted<kShifted>(p, shift)
                             : load_first_shifted<kShifted>(p, n, zero, shift);
}

// L neighbouring rows' logits where they lie, of which n exist; or shifted.
template <class Storage>
class PanelRows {
 public:
  using Vector = typename ComputeOf<Storage>::Vector;

  PanelRows(const Panel<Storage>& panel, int64_t r, int64_t n)
      : base_(panel.rows[r]), class_stride_(panel.class_stride), n_(n) {}

  template <bool kShifted>
  [[gnu::always_inline]] Vector logits(int64_t v, Vector shift) const {
    const Storage* first = reinterpret_cast<const Storage*>(base_ + v * class_stride_);
    return load_rows<kShifted>(first, n_, shift);
  }

 private:
  const char* base_;
  int64_t class_stride_;
  int64_t n_;
};

// Of 1 <= n <= L elements.
template <class Storage, class Vector>
inline Vector load_first_or_all(const Storage* p, int64_t n, Vector fill) {
  return n == Vector::kLanes ? load(p) : load_first(p, n, fill);
}
template <class Storage, class Vector>
inline void store_first_or_all(Storage* p, Vector x, int64_t n) {
  if (n == Vector::kLanes) return store(p, x);
  store_first(p, x, n);
}

// How many of n rows may be read or written as whole vectors: what lies past a row's V classes is the next rows',
// which are of the same block.
template <class Storage>
inline int64_t whole_rows(const Panel<Storage>& panel, int64_t classes, int64_t begin, int64_t n,
                          int64_t lanes) {
  if (panel.row_stride != classes * Panel<Storage>::kSize) return 0;
  const int64_t over = begin + lanes - classes;  // scalars past the end of a row
  const int64_t last = over <= 0 ? 0 : (over + classes - 1) / classes;
  return n > last ? n - last : 0;
}

// Brings L rows of contiguous classes into a block.
template <class Storage, class Scalar>
void stage_transposed(const Panel<Storage>& panel, int64_t r, int64_t n, int64_t classes,
                      Scalar* block) {
  using Vector = typename ComputeOf<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  const Vector zero = broadcast(static_cast<Scalar>(0));
  for (int64_t begin = 0; begin < classes; begin += L) {
    const int64_t count = classes - begin < L ? classes - begin : L;
    const int64_t whole = count == L ? n : whole_rows(panel, classes, begin, n, L);
    Vector rows[L];
    if (whole + 1 >= n && n == L) {
#pragma GCC unroll 16
      for (int i = 0; i < L - 1; ++i) rows[i] = load(panel.at(begin, r + i));
      const Storage* last = panel.at(begin, r + L - 1);
      rows[L - 1] = whole == n ? load(last) : load_first(last, count, zero);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        rows[i] = i < n ? load_first_or_all(panel.at(begin, r + i), count, zero) : zero;
      }
    }
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (i < count) store(block + (begin + i) * L, rows[i]);
    }
  }
}

// Brings L rows into a block, n of which exist.
template <class Storage, class Scalar>
void stage(const Panel<Storage>& panel, int64_t r, int64_t n, int64_t classes, Scalar* block) {
  using Vector = typename ComputeOf<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  const Vector zero = broadcast(static_cast<Scalar>(0));
  if (panel.rows_are_neighbours()) {
    const PanelRows<Storage> rows(panel, r, n);
    for (int64_t v = 0; v < classes; ++v) {
      store(block + v * L, rows.template logits<false>(v, zero));
    }
  } else if (panel.classes_are_neighbours()) {
    stage_transposed(panel, r, n, classes, block);
  } else {
    for (int64_t v = 0; v < classes; ++v) {
      for (int64_t i = 0; i < L; ++i) {
        const Storage* element = panel.at(v, r + (i < n ? i : 0));
        store_first(block + v * L + i, load_first(element, 1, zero), 1);
      }
    }
  }
}

// Blocks of rows that lie one after another, of V classes, V known to the compiler: loops without branches. What a
// whole vector takes past its row is the next rows'; only at_end it must not be taken past the block.
constexpr int kMostFewClasses = 16;

template <int V, class Storage, class Scalar>
void stage_block_of_few(const Storage* rows, bool at_end, Scalar* block) {
  using Vector = typename ComputeOf<Storage>::Vector;
  constexpr int L = Vector::kLanes;
#pragma GCC unroll 8
  for (int begin = 0; begin < V; begin += L) {
    const int count = V - begin < L ? V - begin : L;
    Vector part[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const Storage* from = rows + i * V + begin;
      part[i] = i * V + begin + L > L * V && at_end ? load_first(from, count, broadcast(Scalar(0)))
                                                    : load(from);
    }
    transpose(part);
#pragma GCC unroll 16
    for (int v = 0; v < count; ++v) store(block + (begin + v) * L, part[v]);
  }
}
template <int V, class Storage, class Scalar>
void unstage_block_of_few(const Scalar* block, bool at_end, Storage* rows) {
  using Vector = typename ComputeOf<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  constexpr int kParts = (V + L - 1) / L;
  Vector parts[kParts][L];
#pragma GCC unroll 8
  for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int v = part * L + i;
      parts[part][i] = load(block + (v < V ? v : part * L) * L);
    }
    transpose(parts[part]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
#pragma GCC unroll 8
    for (int part = 0; part < kParts; ++part) {
      Storage* to = rows + i * V + part * L;
      if (i * V + part * L + L > L * V && at_end) {
        store_first(to, parts[part][i], V - part * L);
      } else {
        store(to, parts[part][i]);  // what it spoils of the next rows is written after it
      }
    }
  }
}

// Stages or unstages the whole blocks among n rows by the two above; returns how many rows they have, 0 if V is
// larger.
template <bool kStage, class Storage, class Scalar, int V = kMostFewClasses>
int64_t move_few(Storage* rows, int64_t n, int64_t classes, Scalar* blocks) {
  constexpr int L = ComputeOf<Storage>::Vector::kLanes;
  if constexpr (V < 2) {
    return 0;
  } else {
    if (classes != V) return move_few<kStage, Storage, Scalar, V - 1>(rows, n, classes, blocks);
    int64_t r = 0;
    for (; r + L <= n; r += L) {
      const bool at_end = (n - r - L) * V < L;
      if constexpr (kStage) {
        stage_block_of_few<V>(rows + r * V, at_end, blocks + r * V);
      } else {
        unstage_block_of_few<V>(blocks + r * V, at_end, rows + r * V);
      }
    }
    return r;
  }
}

// Brings all rows of a tile into blocks.
template <class Storage, class Scalar>
void stage_tile(const Panel<Storage>& panel, int64_t rows, int64_t classes, Scalar* blocks) {
  using Vector = typename ComputeOf<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  int64_t whole = 0;
  if (panel.rows_are_neighbours()) {  // class by class: each is in a page of its own
    whole = rows / L * L;
    for (int64_t v = 0; v < classes; ++v) {
      const Storage* first = panel.at(v, 0);
      for (int64_t r = 0; r < whole; r += L) {
        prefetch(first + r +
                 rows);  // for the next tile: few CPUs follow as many streams as there are classes
        store(blocks + r * classes + v * L, load(first + r));
      }
    }
  }
  if (panel.rows_are_dense(classes)) whole = move_few<true>(panel.at(0, 0), rows, classes, blocks);
  for (int64_t r = whole; r < rows; r += L) {
    stage(panel, r, rows - r < L ? rows - r : L, classes, blocks + r * classes);
  }
}

template <class Storage, class Scalar>
void unstage_transposed(const Scalar* block, int64_t r, int64_t n, int64_t classes,
                        const Panel<Storage>& panel) {
  using Vector = typename ComputeOf<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  for (int64_t begin = 0; begin < classes; begin += L) {
    const int64_t count = classes - begin < L ? classes - begin : L;
    // What a whole vector spoils of the next row is written after it, unless that row's beginning was before.
    const int64_t whole = count == L         ? n
                          : classes == count ? whole_rows(panel, classes, begin, n, L)
                                             : 0;
    Vector rows[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) rows[i] = load(block + (begin + (i < count ? i : 0)) * L);
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (i < whole) {
        store(panel.at(begin, r + i), rows[i]);
      } else if (i < n) {
        store_first_or_all(panel.at(begin, r + i), rows[i], count);
      }
    }
  }
}

template <class Storage, class Scalar>
void unstage(const Scalar* block, int64_t r, int64_t n, int64_t classes,
             const Panel<Storage>& panel) {
  using Vector = typename ComputeOf<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  if (panel.rows_are_neighbours()) {
    for (int64_t v = 0; v < classes; ++v) {
      store_first_or_all(panel.at(v, r), load(block + v * L), n);
    }
  } else if (panel.classes_are_neighbours()) {
    unstage_transposed(block, r, n, classes, panel);
  } else {
    for (int64_t v = 0; v < classes; ++v) {
      for (int64_t i = 0; i < n; ++i) {
        store_first(panel.at(v, r + i), load(block + v * L + i), 1);
      }
    }
  }
}

// Brings the blocks of a tile where the panel is.
template <bool kStream, class Storage, class Scalar>
void unstage_neighbours(const Scalar* blocks, int64_t rows, int64_t classes,
                        const Panel<Storage>& panel) {
  constexpr int L = ComputeOf<Storage>::Vector::kLanes;
  for (int64_t v = 0; v < classes; ++v) {
    Storage* first = panel.at(v, 0);
    for (int64_t r = 0; r < rows; r += L) {
      if (kStream) {
        stream(first + r, load(blocks + r * classes + v * L));
      } else {
        store(first + r, load(blocks + r * classes + v * L));
      }
    }
  }
}
// Whether whole vectors of neighbouring rows may be written past the caches: where all are aligned.
template <class Storage>
inline bool may_stream_rows(const Panel<Storage>& panel) {
  constexpr uintptr_t kBytes = ComputeOf<Storage>::Vector::kLanes * sizeof(Storage);
  return reinterpret_cast<uintptr_t>(panel.rows[0]) % kBytes == 0 &&
         static_cast<uintptr_t>(panel.class_stride) % kBytes == 0;
}
template <class Storage, class Scalar>
void unstage_tile(Scalar* blocks, int64_t rows, int64_t classes, bool stream,
                  const Panel<Storage>& panel) {
  constexpr int64_t L = ComputeOf<Storage>::Vector::kLanes;
  int64_t whole = 0;
  if (panel.rows_are_neighbours()) {
    whole = rows / L * L;
    if (stream && may_stream_rows(panel)) {
      unstage_neighbours<true>(blocks, whole, classes, panel);
    } else {
      unstage_neighbours<false>(blocks, whole, classes, panel);
    }
  }
  if (panel.rows_are_dense(classes)) whole = move_few<false>(panel.at(0, 0), rows, classes, blocks);
  for (int64_t r = whole; r < rows; r += L) {
    unstage(blocks + r * classes, r, rows - r < L ? rows - r : L, classes, panel);
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

// Adds the terms of a group of `count` classes, vectors in memory, in the order of accumulator.inc.h.
template <class Vector>
[[gnu::always_inline]] inline void add_group(const typename Vector::Scalar* terms, int64_t count,
                                             ColumnSum<Vector>* sums) {
  constexpr int L = Vector::kLanes;
  constexpr int kSums = ColumnSum<Vector>::kLanes;
  const auto term = [&](int64_t v) { return load(terms + v * L); };
  const auto at_distance = [&](int64_t v) {
    Vector sum = term(v);
    if (v + L >= count) return sum;
    sum = sum + term(v + L);
    if (v + 3 * L < count) return sum + (term(v + 2 * L) + term(v + 3 * L));
    return v + 2 * L < count ? sum + term(v + 2 * L) : sum;
  };
#pragma GCC unroll 8
  for (int lane = 0; lane < kSums; ++lane) {
    if (lane >= count) continue;
    Vector sum = at_distance(lane);
    if (kSums < L && lane + kSums < count) sum = sum + at_distance(lane + kSums);
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

// The sums of a tile's blocks of V <= kMostFewClasses float vectors, V known to the compiler: those of
// sum_of_columns, less what adds +0.
template <int V>
void sums_of_few(const float* blocks, int64_t rows, double* high, double* low) {
  constexpr int L = F32::kLanes;
  constexpr int kSums = ColumnSum<F32>::kLanes;
  static_assert(kMostFewClasses <= kGroup * L, "one group");
  const F64 zero = broadcast(0.0);
  for (int64_t r = 0; r < rows; r += L) {
    const float* block = blocks + r * V;
    const auto at_distance = [&](int v) __attribute__((always_inline)) {
      F32 sum = load(block + v * L);
      if (v + L < V) sum = sum + load(block + (v + L) * L);
      if (v + 2 * L >= V) return sum;
      const F32 third = load(block + (v + 2 * L) * L);
      return sum + (v + 3 * L < V ? third + load(block + (v + 3 * L) * L) : third);
    };
    F64 sums[2][kSums];  // of the lower rows, of the higher ones
#pragma GCC unroll 8
    for (int lane = 0; lane < kSums; ++lane) {
      if (lane >= V) continue;
      F32 sum = at_distance(lane);
      if (lane + kSums < V) sum = sum + at_distance(lane + kSums);
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
template <int V = kMostFewClasses>
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

// What label smoothing and statistics need beside the sum. weights: those of label smoothing, or null.
template <class Storage, class Rows>
void column_extras(const Rows& rows, int64_t r, int64_t classes,
                   const typename Tile<Storage>::Scalar* weights, bool want_argmax,
                   Tile<Storage>* tile) {
  using Vector = typename Tile<Storage>::Vector;
  if (weights == nullptr && !want_argmax) return;
  const Vector maximum = column_max(rows, classes);
  store(tile->maximum + r, maximum);
  if (weights != nullptr) {  // see row_spread
    GroupOfTerms<Vector> group;
    const auto total = sum_of_columns<Vector>(classes, [&](int64_t v, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const Vector z = rows.template logits<false>(v + i, maximum);
        store(group.terms + i * Vector::kLanes, spread_of(z, maximum, broadcast(weights[v + i])));
      }
      return group.terms;
    });
    total.save(tile->spread_high + r, tile->spread_low + r);
  }
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

template <class Storage>
void fill_column(const Panel<Storage>& out, int64_t classes, int64_t r, Storage value) {
  for (int64_t v = 0; v < classes; ++v) write(reinterpret_cast<char*>(out.at(v, r)), value);
}

template <class Storage>
void fill_nan_columns(const Panel<Storage>& out, int64_t classes, const Tile<Storage>& tile) {
  for (int64_t r = 0; r < tile.rows && tile.has_nan; ++r) {
    if (tile.sum_high[r] == tile.sum_high[r]) continue;
    const Storage zero = {};
    fill_column(out, classes, r, tile.ignored(r) ? zero : tile.target_grad[r]);
  }
}

// Second pass over a tile that is staged.
template <class Storage>
void staged_grad(const Panel<Storage>& out, int64_t classes, bool stream,
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
  unstage_tile(blocks, tile.rows, classes, stream, out);
  fill_nan_columns(out, classes, tile);
}

// Second pass over a tile of neighbouring rows; without kept, the logits are read again.
template <class Storage>
void column_grad(const Panel<Storage>& z, const Panel<Storage>& out, int64_t classes,
                 bool may_stream, const typename Tile<Storage>::Scalar* weights,
                 const typename Tile<Storage>::Scalar* kept, const Tile<Storage>& tile) {
  using Vector = typename Tile<Storage>::Vector;
  constexpr int L = Vector::kLanes;
  for (int64_t r = 0; r < tile.rows; r += L) {
    const int64_t n = tile.rows - r < L ? tile.rows - r : L;
    const bool streams = may_stream && n == L && may_stream_rows(out);
    const auto put = [&](int64_t v, Vector g) {
      if (streams) return stream(out.at(v, r), g);
      store_first_or_all(out.at(v, r), g, n);
    };
    if (kept != nullptr) {
      const auto* const block = kept + r * classes;
      column_grad_of_rows(
          r, classes, weights, tile, [&](int64_t v) { return load(block + v * L); }, put);
      continue;
    }
    const PanelRows<Storage> rows(z, r, n);
    const Exponent<Vector> exponent(load(tile.reference + r));
    const Vector shift = load(tile.shift + r);
    Vector any_size = broadcast(ExponentRange<Vector>::kMagic);
    const auto anew = [&](int64_t v) {
      return exponential(rows.template logits<true>(v, shift), exponent, &any_size);
    };
    column_grad_of_rows(r, classes, weights, tile, anew, put);
  }
  fill_nan_columns(out, classes, tile);
}

}  // namespace
}  // namespace gce
