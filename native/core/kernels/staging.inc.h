// Bringing rows into blocks of scratch, V vectors whose lanes are L rows, and blocks to where the gradient is.
// Included by ../kernels.inc.h.
//
// A panel is how logits or gradients of a tile lie in memory: class v of its row r at rows[r] + v class_stride. Rows of
// contiguous classes are transposed in registers on the way; neighbouring rows are copied.

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
        // For the next tile: few CPUs follow as many streams as there are classes.
        prefetch(first + r + rows);
        store(blocks + r * classes + v * L, load(first + r));
      }
    }
  }
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
        store_first(panel.at(v, r + i), broadcast(block[v * L + i]), 1);
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
      put<kStream>(first + r, load(blocks + r * classes + v * L));
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
// Streams neighbouring rows though not all of their classes begin at a line: of each class, the line in which one
// tile ends is written when the next tile has the rest of it.
template <class Storage, class Scalar>
void unstage_by_lines(const Scalar* blocks, int64_t rows, int64_t classes,
                      const Panel<Storage>& panel, SharedLine<Storage>* lines) {
  constexpr int64_t L = ComputeOf<Storage>::Vector::kLanes;
  constexpr int64_t kSize = Panel<Storage>::kSize;
  constexpr int64_t kScalars = SharedLine<Storage>::kScalars;
  alignas(64) Storage of_class[kMaxTileRows + kScalars];
  for (int64_t v = 0; v < classes; ++v) {
    Storage* const first = panel.at(v, 0);
    for (int64_t r = 0; r < rows; r += L) {
      store(of_class + r, load(blocks + r * classes + v * L));
    }
    const int64_t to_line = scalars_to_line<Storage>(first);
    const int64_t lead = to_line < rows ? to_line : rows;
    const bool goes_on = lead == to_line && lines[v].goes_on_at(first);
    if (lead > 0) {
      memcpy(goes_on ? lines[v].rest() : first, of_class, static_cast<size_t>(lead * kSize));
    }
    if (goes_on) lines[v].stream_whole();
    const int64_t end = rows - (rows - lead) % kScalars;
    for (int64_t i = lead; i < end; i += L) stream(first + i, load(of_class + i));
    if (end == rows) continue;
    Storage* const to = lines[v].end_with(first + rows, rows - end);
    memcpy(to, of_class + end, static_cast<size_t>((rows - end) * kSize));
  }
}
// stream: past the caches; lines: one for each class if it shall be done whatever their alignment, else null.
template <class Storage, class Scalar>
void unstage_tile(Scalar* blocks, int64_t rows, int64_t classes, bool stream,
                  SharedLine<Storage>* lines, const Panel<Storage>& panel) {
  constexpr int64_t L = ComputeOf<Storage>::Vector::kLanes;
  int64_t whole = 0;
  if (panel.rows_are_neighbours()) {
    if (lines != nullptr && is_aligned<Storage>(panel.rows[0])) {
      return unstage_by_lines(blocks, rows, classes, panel, lines);
    }
    whole = rows / L * L;
    if (stream && may_stream_rows(panel)) {
      unstage_neighbours<true>(blocks, whole, classes, panel);
    } else {
      unstage_neighbours<false>(blocks, whole, classes, panel);
    }
  }
  for (int64_t r = whole; r < rows; r += L) {
    unstage(blocks + r * classes, r, rows - r < L ? rows - r : L, classes, panel);
  }
}

}  // namespace
}  // namespace gce
