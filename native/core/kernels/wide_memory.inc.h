// Numbers of any dtype and stride to doubles and back: for wide_rows.inc.h and binary.inc.h. Included by ../kernels.inc.h.

namespace gce {
namespace {

// n numbers of any dtype and stride as doubles; after the last of them `to` has room for kRoom more.
constexpr int64_t kRoom = F32::kLanes;
template <class Storage>
void load_contiguous(const char* from, int64_t n, double* to) {
  using Vector = typename ComputeOf<Storage>::Vector;
  const Storage* p = reinterpret_cast<const Storage*>(from);
  int64_t v = 0;
  for (; v + Vector::kLanes <= n; v += Vector::kLanes) store_as_double(to + v, load(p + v));
  if (v == n) return;
  const Vector zero = broadcast(static_cast<typename Vector::Scalar>(0));
  store_as_double(to + v, load_first(p + v, n - v, zero));
}
inline void load_strided(const char* from, int32_t dtype, int64_t stride, int64_t n, double* to) {
  if (stride != size_of(dtype)) {
    for (int64_t v = 0; v < n; ++v) to[v] = read_real(from + v * stride, dtype);
  } else if (dtype == GCE_FLOAT16) {
    load_contiguous<Float16>(from, n, to);
  } else if (dtype == GCE_BFLOAT16) {
    load_contiguous<BFloat16>(from, n, to);
  } else if (dtype == GCE_FLOAT32) {
    load_contiguous<float>(from, n, to);
  } else {
    load_contiguous<double>(from, n, to);
  }
}

// The reverse; `from` has as much room.
template <class Storage>
void store_contiguous(const double* from, int64_t n, char* to) {
  using Vector = typename ComputeOf<Storage>::Vector;
  Storage* p = reinterpret_cast<Storage*>(to);
  typename Vector::Scalar narrowed[Vector::kLanes];
  int64_t v = 0;
  for (; v + Vector::kLanes <= n; v += Vector::kLanes) {
    store_narrowed(narrowed, from + v);
    store(p + v, load(narrowed));
  }
  if (v == n) return;
  store_narrowed(narrowed, from + v);
  store_first(p + v, load(narrowed), n - v);
}
inline void store_strided(const double* from, int32_t dtype, int64_t n, char* to, int64_t stride) {
  if (stride != size_of(dtype)) {
    for (int64_t v = 0; v < n; ++v) write_real(to + v * stride, dtype, from[v]);
  } else if (dtype == GCE_FLOAT16) {
    store_contiguous<Float16>(from, n, to);
  } else if (dtype == GCE_BFLOAT16) {
    store_contiguous<BFloat16>(from, n, to);
  } else if (dtype == GCE_FLOAT32) {
    store_contiguous<float>(from, n, to);
  } else {
    store_contiguous<double>(from, n, to);
  }
}

// A group of rows in scratch, as V vectors of doubles whose lanes are F64::kLanes rows; or one row, as vectors of its
// classes, padded to whole ones.
template <bool kRowsInLanes>
struct Group {
  static constexpr int64_t kLanes = F64::kLanes;
  static constexpr int64_t kRows = kRowsInLanes ? kLanes : 1;

  static int64_t padded(int64_t classes) { return (classes + kLanes - 1) / kLanes * kLanes; }
  // Of a buffer.
  static int64_t size(int64_t classes) { return kRowsInLanes ? classes * kLanes : padded(classes); }
  // Of what load_group and store_group need beside it.
  static int64_t aside(int64_t classes) { return kRowsInLanes ? kLanes * padded(classes) : 0; }
  // Where class v of row r is.
  static int64_t at(int64_t v, int64_t r) { return kRowsInLanes ? v * kLanes + r : v; }

  // A quantity of which there is one per row: of kRows of them.
  static F64 of_rows(const double* p) { return kRowsInLanes ? load(p) : broadcast(*p); }
  static void put_rows(double* p, F64 x) {
    if (kRowsInLanes) return store(p, x);
    *p = first_lane(x);
  }
  // One per class: of the class, or the classes, at index i of a buffer.
  static F64 of_classes(const double* p, int64_t i) {
    return kRowsInLanes ? broadcast(p[i / kLanes]) : load(p + i);
  }
};

// Rows of an array, at most F64::kLanes: row r's class v is at row[r] + v class_stride.
struct RowsInMemory {
  char* const* row;
  int64_t rows;
  int64_t class_stride;
  int32_t dtype;

  // So that what is at one class is contiguous.
  bool are_neighbours() const {
    for (int64_t r = 1; r < rows; ++r) {
      if (row[r] - row[r - 1] != size_of(dtype)) return false;
    }
    return rows > 1 && class_stride != size_of(dtype);
  }
};

// Classes [begin, end) of one row, with `fill` up to a whole vector; begin is a multiple of one.
inline void load_classes(const RowsInMemory& from, int64_t begin, int64_t end, double fill,
                         double* to) {
  load_strided(from.row[0] + begin * from.class_stride, from.dtype, from.class_stride, end - begin,
               to + begin);
  for (int64_t v = end; v % F64::kLanes != 0; ++v) to[v] = fill;
}

// All classes of a group of rows, 0 in the lanes past the last.
inline void load_group(const RowsInMemory& from, int64_t classes, double* aside, double* to) {
  constexpr int64_t kLanes = F64::kLanes;
  if (from.are_neighbours()) {
    for (int64_t v = 0; v < classes; ++v) {
      load_strided(from.row[0] + v * from.class_stride, from.dtype, size_of(from.dtype), from.rows,
                   to + v * kLanes);
      for (int64_t r = from.rows; r < kLanes; ++r) to[v * kLanes + r] = 0.0;
    }
    return;
  }
  const int64_t padded = Group<true>::padded(classes);
  for (int64_t r = 0; r < from.rows; ++r) {
    load_strided(from.row[r], from.dtype, from.class_stride, classes, aside + r * padded);
  }
  for (int64_t begin = 0; begin < classes; begin += kLanes) {
    F64 rows[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      rows[r] = r < from.rows ? load(aside + r * padded + begin) : broadcast(0.0);
    }
    transpose(rows);
    for (int64_t i = 0; i < kLanes; ++i) {
      if (begin + i < classes) store(to + (begin + i) * kLanes, rows[i]);
    }
  }
}

// The reverse.
inline void store_group(const double* from, int64_t classes, double* aside,
                        const RowsInMemory& to) {
  constexpr int64_t kLanes = F64::kLanes;
  if (to.are_neighbours()) {
    for (int64_t v = 0; v < classes; ++v) {
      store_strided(from + v * kLanes, to.dtype, to.rows, to.row[0] + v * to.class_stride,
                    size_of(to.dtype));
    }
    return;
  }
  const int64_t padded = Group<true>::padded(classes);
  for (int64_t begin = 0; begin < classes; begin += kLanes) {
    F64 rows[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      rows[i] = begin + i < classes ? load(from + (begin + i) * kLanes) : broadcast(0.0);
    }
    transpose(rows);
    for (int64_t r = 0; r < to.rows; ++r) store(aside + r * padded + begin, rows[r]);
  }
  for (int64_t r = 0; r < to.rows; ++r) {
    store_strided(aside + r * padded, to.dtype, classes, to.row[r], to.class_stride);
  }
}

}  // namespace
}  // namespace gce
