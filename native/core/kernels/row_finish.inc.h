// The second pass over a row whose classes are contiguous, or over a segment of one: from the exponentials that the
// first pass kept to the gradient. Included by ../kernels.inc.h.
//
//   g_v = factor e_v where e_v >= floor, else 0; plus offset c_v, for label smoothing alone; target_grad at the target

namespace gce {
namespace {

// The gradient's additions of one row: none, or label smoothing's.
struct NoOffset {
  static constexpr bool kMayBeNan = false;
  template <class Vector>
  Vector add(Vector grad, int64_t, Vector) const {
    return grad;
  }
  template <class Vector>
  Vector add_first(Vector grad, int64_t, int64_t, Vector) const {
    return grad;
  }
};
template <class Scalar>
struct WeightedOffset {
  static constexpr bool kMayBeNan = true;  // weights are the caller's
  const Scalar* weights;
  template <class Vector>
  Vector add(Vector grad, int64_t v, Vector offset) const {
    return mul_add(offset, load(weights + v), grad);
  }
  template <class Vector>
  Vector add_first(Vector grad, int64_t v, int64_t n, Vector offset) const {
    return mul_add(offset, load_first(weights + v, n, offset), grad);
  }
};

// What the second pass needs of a row, or of a segment of one: there `target` may lie outside.
template <class Storage>
struct RowGrad {
  using Scalar = typename Tile<Storage>::Scalar;

  Storage* out;
  int64_t classes;
  int64_t target;
  Scalar factor;
  Scalar scale;
  Scalar floor;
  Scalar offset;
  Storage target_grad;

  static RowGrad of(const Tile<Storage>& tile, int64_t r, int64_t classes) {
    return {reinterpret_cast<Storage*>(tile.grad[r]),
            classes,
            tile.target[r],
            tile.grad_factor[r],
            tile.grad_scale[r],
            tile.grad_floor[r],
            tile.grad_offset[r],
            tile.target_grad[r]};
  }
  bool has_target() const { return target >= 0 && target < classes; }
};

template <bool kStream, class Storage, class Vector>
[[gnu::always_inline]] inline void put(Storage* p, Vector x) {
  if constexpr (kStream) {
    stream(p, x);
  } else {
    store(p, x);
  }
}
// Two vectors at p; those of bfloat16 are one.
template <bool kStream, class Storage, class Vector>
[[gnu::always_inline]] inline void put_numbers(Storage* p, Vector a, Vector b) {
  put<kStream>(p, a);
  put<kStream>(p + Vector::kLanes, b);
}
template <bool kStream>
[[gnu::always_inline]] inline void put_numbers(BFloat16* p, F32 a, F32 b) {
  if constexpr (kStream) {
    stream_numbers(p, a, b);
  } else {
    store_numbers(p, a, b);
  }
}

constexpr int64_t kLineBytes = 64;  // of a cache line

template <class Storage>
inline bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Storage) == 0;
}
// From p, which is aligned, to the next cache line; 0 if one begins there.
template <class Storage>
inline int64_t scalars_to_line(const void* p) {
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % kLineBytes);
  return (kLineBytes - past) % kLineBytes / static_cast<int64_t>(sizeof(Storage));
}

// The cache line in which a streamed row ends. If the next one begins in it, it is streamed whole: a line that is
// written by ordinary stores among streaming ones is fetched first, which took more time than the rest of 100 classes.
template <class Storage>
class SharedLine {
 public:
  static constexpr int64_t kScalars = kLineBytes / static_cast<int64_t>(sizeof(Storage));

  // Where the row goes to that ends here; n scalars of it are in the line, from its beginning.
  Storage* end_with(Storage* next, int64_t n) {
    flush();
    next_ = next;
    filled_ = n;
    return scalars_;
  }
  bool goes_on_at(const Storage* p) const { return filled_ > 0 && next_ == p; }
  // Room for the rest of the line, to be streamed when it is filled.
  Storage* rest() { return scalars_ + filled_; }
  void stream_whole() {
    constexpr int L = ComputeOf<Storage>::Vector::kLanes;
    for (int i = 0; i < kScalars; i += L) stream(next_ - filled_ + i, load(scalars_ + i));
    filled_ = 0;
  }
  // To be called before what is in it is read or fenced.
  void flush() {
    const size_t bytes = static_cast<size_t>(filled_) * sizeof(Storage);
    if (bytes > 0) memcpy(next_ - filled_, scalars_, bytes);
    filled_ = 0;
  }

 private:
  alignas(64) Storage scalars_[kScalars];
  Storage* next_ = nullptr;
  int64_t filled_ = 0;
};

// The second pass of one row, piecewise: from the exponentials that its first pass kept to its gradient. Where it
// streams, group(v) and whole(v) start at the first cache line, `lead` classes into the row, and end with its last; and
// the target's gradient is streamed with the vector that it is in, once more: an ordinary store would first read its
// line back.
template <bool kStream, class Storage, class Offset>
class RowFinish {
 public:
  using Vector = typename ComputeOf<Storage>::Vector;
  using Scalar = typename Vector::Scalar;

  RowFinish(const Scalar* kept, const Offset& offset, const RowGrad<Storage>& grad_of,
            SharedLine<Storage>* line)
      : kept_(kept),
        line_(line),
        out_(grad_of.out),
        classes_(grad_of.classes),
        factor_(broadcast(grad_of.factor)),
        floor_(broadcast(grad_of.floor)),
        offset_of_row_(broadcast(grad_of.offset)),
        offset_(offset),
        target_(grad_of.target),
        target_grad_(grad_of.target_grad) {
    end_ = classes_;
    if (!kStream) return;
    lead_ = scalars_to_line<Storage>(out_);
    if (lead_ > classes_) lead_ = classes_;
    end_ = (classes_ - lead_) / Line::kScalars * Line::kScalars;
    if (target_is_streamed()) store(target_vector_, grad(load(kept_ + start_of_target())));
  }

  void begin() const {
    if (lead_ == 0) return;
    const bool goes_on = line_->goes_on_at(out_);
    part(0, lead_, goes_on ? line_->rest() : out_);
    if (goes_on) line_->stream_whole();
  }
  // How far a loop may call group(v), for classes v to v + 4 L - 1 after `lead`.
  int64_t end() const { return end_; }
  [[gnu::always_inline]] void group(int64_t v) const {
    for (int u = 0; u < kGroup; u += 2) {
      const int64_t at = lead_ + v + u * L;
      const Vector a = offset_.add(grad(load(kept_ + at)), at, offset_of_row_);
      const Vector b = offset_.add(grad(load(kept_ + at + L)), at + L, offset_of_row_);
      if (Offset::kMayBeNan) {
        store(out_ + at, a);
        store(out_ + at + L, b);
      } else {
        put_numbers<kStream>(out_ + at, a, b);
      }
    }
  }
  [[gnu::always_inline]] void whole(int64_t v) const {
    const Vector g = offset_.add(grad(load(kept_ + lead_ + v)), lead_ + v, offset_of_row_);
    put<kStream>(out_ + lead_ + v, g);
  }
  void rest(int64_t v) const {
    for (; v + L <= end_; v += L) whole(v);
    const int64_t at = lead_ + v;
    if (at == classes_) return;
    part(at, classes_ - at, kStream ? line_->end_with(out_ + classes_, classes_ - at) : out_ + at);
  }
  // After all the rest.
  void put_target() {
    if (!kStream) {
      write(reinterpret_cast<char*>(out_ + target_), target_grad_);
    } else if (target_is_streamed()) {
      target_vector_[target_ - start_of_target()] = target_grad_;
      stream(out_ + start_of_target(), load(target_vector_));  // exact in the vector's precision
    }
  }

 private:
  using Line = SharedLine<Storage>;
  static constexpr int L = Vector::kLanes;

  int64_t start_of_target() const { return lead_ + (target_ - lead_) / L * L; }
  bool target_is_streamed() const { return target_ >= lead_ && target_ < lead_ + end_; }

  Vector grad(Vector e) const { return keep(e * factor_, not_less(e, floor_)); }
  // Classes `at` to at + n - 1; where it streams, the target's too.
  void part(int64_t at, int64_t n, Storage* to) const {
    int64_t v = 0;
    for (; v + L <= n; v += L) {
      store(to + v, offset_.add(grad(load(kept_ + at + v)), at + v, offset_of_row_));
    }
    if (v < n) {
      const Vector e = load_first(kept_ + at + v, n - v, broadcast(static_cast<Scalar>(0)));
      store_first(to + v, offset_.add_first(grad(e), at + v, n - v, offset_of_row_), n - v);
    }
    if (kStream && target_ >= at && target_ < at + n) to[target_ - at] = target_grad_;
  }

  const Scalar* kept_;
  Line* line_;  // where it streams
  Storage* out_;
  int64_t classes_;
  Vector factor_;
  Vector floor_;
  Vector offset_of_row_;
  Offset offset_;
  int64_t target_;
  Storage target_grad_;
  int64_t lead_ = 0;
  int64_t end_;
  alignas(64) Storage target_vector_[L];  // of the gradient, if it is streamed
};

// The gradient of a row that is ignored or NaN; false for any other.
template <class Storage>
bool finish_special_row(int64_t classes, int64_t r, const Tile<Storage>& tile) {
  if (tile.ignored(r)) {
    memset(tile.grad[r], 0, static_cast<size_t>(classes) * sizeof(Storage));
    return true;
  }
  if (!tile.is_nan(r)) return false;
  const int64_t size = static_cast<int64_t>(sizeof(Storage));
  for (int64_t v = 0; v < classes; ++v) write(tile.grad[r] + v * size, tile.target_grad[r]);
  return true;
}

// Brings the exponentials of a row whose sum is huge down by its scale, so that its factor is no subnormal.
template <class Storage>
void scale_kept(typename Tile<Storage>::Scalar* kept, RowGrad<Storage>* grad) {
  using Vector = typename Tile<Storage>::Vector;
  const Vector scale = broadcast(grad->scale);
  const Vector floor = broadcast(grad->floor);
  // `kept` has room for whole vectors.
  for (int64_t v = 0; v < grad->classes; v += Vector::kLanes) {
    const Vector e = load(kept + v);
    store(kept + v, keep(e * scale, not_less(e, floor)));
  }
  grad->floor *= grad->scale;
}

// Gives action the second pass, as a RowFinish, and puts the target's gradient after it. weights: those of label
// smoothing, or null. line: if the gradient is to be streamed, else null.
template <class Storage, class Action>
void with_finish(RowGrad<Storage> grad, const typename Tile<Storage>::Scalar* weights,
                 SharedLine<Storage>* line, typename Tile<Storage>::Scalar* kept, Action action) {
  using Scalar = typename Tile<Storage>::Scalar;
  if (grad.scale != 1) scale_kept(kept, &grad);
  const auto finish_with = [&](auto&& finish) {
    action(finish);
    if (grad.has_target()) finish.put_target();
  };
  if (weights != nullptr) {
    finish_with(RowFinish<false, Storage, WeightedOffset<Scalar>>(kept, {weights}, grad, nullptr));
  } else if (line != nullptr && is_aligned<Storage>(grad.out)) {
    finish_with(RowFinish<true, Storage, NoOffset>(kept, {}, grad, line));
  } else {
    finish_with(RowFinish<false, Storage, NoOffset>(kept, {}, grad, nullptr));
  }
}
template <class Storage>
void finish_at_once(const RowGrad<Storage>& grad, const typename Tile<Storage>::Scalar* weights,
                    SharedLine<Storage>* line, typename Tile<Storage>::Scalar* kept) {
  with_finish(grad, weights, line, kept, [](const auto& finish) {
    finish.begin();
    finish.rest(0);
  });
}

}  // namespace
}  // namespace gce
