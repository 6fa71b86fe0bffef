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

// Two vectors at p; those of 16 bits are one.
template <bool kStream, class Storage, class Vector>
[[gnu::always_inline]] inline void put_numbers(Storage* p, Vector a, Vector b) {
  if constexpr (kStream) {
    stream(p, a);
    stream(p + Vector::kLanes, b);
  } else {
    store(p, a);
    store(p + Vector::kLanes, b);
  }
}
template <bool kStream>
[[gnu::always_inline]] inline void put_numbers(BFloat16* p, F32 a, F32 b) {
  if constexpr (kStream) {
    stream_numbers(p, a, b);
  } else {
    store_numbers(p, a, b);
  }
}

// The second pass of one row, piecewise: from the exponentials that its first pass kept to its gradient. Where it
// streams, group(v) and whole(v) start at the first cache line, `lead` classes into the row; and the target's
// gradient is streamed with the vector that it is in, once more: an ordinary store would first read its line back.
template <bool kStream, class Storage, class Offset>
class RowFinish {
 public:
  using Vector = typename ComputeOf<Storage>::Vector;
  using Scalar = typename Vector::Scalar;

  RowFinish(const Scalar* kept, const Offset& offset, const RowGrad<Storage>& grad_of)
      : kept_(kept),
        out_(grad_of.out),
        classes_(grad_of.classes),
        factor_(broadcast(grad_of.factor)),
        floor_(broadcast(grad_of.floor)),
        offset_of_row_(broadcast(grad_of.offset)),
        offset_(offset),
        target_(grad_of.target),
        target_grad_(grad_of.target_grad) {
    if (!kStream) return;
    const uintptr_t past = reinterpret_cast<uintptr_t>(out_) % kLine;
    lead_ = static_cast<int64_t>((kLine - past) % kLine / sizeof(Storage));
    if (lead_ > classes_) lead_ = classes_;
    prefetch_to_write(out_ + classes_ - 1);
    if (target_is_streamed()) store(target_vector_, grad(load(kept_ + start_of_target())));
  }

  void begin() const {
    for (int64_t v = 0; v < lead_; v += L) part(v, lead_ - v < L ? lead_ - v : L);
  }
  // How far a loop may call group(v), for classes v to v + 4 L - 1 after `lead`.
  int64_t end() const { return classes_ - lead_; }
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
    if (kStream) {
      stream(out_ + lead_ + v, g);
    } else {
      store(out_ + v, g);
    }
  }
  void rest(int64_t v) const {
    for (; v + L <= end(); v += L) whole(v);
    if (v < end()) part(lead_ + v, end() - v);
  }
  // After all the rest.
  void put_target() {
    if (!target_is_streamed()) {
      write(reinterpret_cast<char*>(out_ + target_), target_grad_);
      return;
    }
    target_vector_[target_ - start_of_target()] = target_grad_;
    stream(out_ + start_of_target(), load(target_vector_));  // exact in the vector's precision
  }

 private:
  static constexpr int L = Vector::kLanes;
  static constexpr uintptr_t kLine = 64;  // bytes

  int64_t start_of_target() const { return lead_ + (target_ - lead_) / L * L; }
  bool target_is_streamed() const {
    return kStream && target_ >= lead_ && start_of_target() + L <= classes_;
  }

  Vector grad(Vector e) const { return keep(e * factor_, not_less(e, floor_)); }
  void part(int64_t v, int64_t n) const {
    if (n == L) return store(out_ + v, offset_.add(grad(load(kept_ + v)), v, offset_of_row_));
    const Vector e = load_first(kept_ + v, n, broadcast(static_cast<Scalar>(0)));
    store_first(out_ + v, offset_.add_first(grad(e), v, n, offset_of_row_), n);
  }

  const Scalar* kept_;
  Storage* out_;
  int64_t classes_;
  Vector factor_;
  Vector floor_;
  Vector offset_of_row_;
  Offset offset_;
  int64_t target_;
  Storage target_grad_;
  int64_t lead_ = 0;
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
  for (int64_t v = 0; v < grad->classes;
       v += Vector::kLanes) {  // `kept` has room for whole vectors
    const Vector e = load(kept + v);
    store(kept + v, keep(e * scale, not_less(e, floor)));
  }
  grad->floor *= grad->scale;
}

// Gives action the second pass, as a RowFinish, and puts the target's gradient after it. weights: those of label
// smoothing, or null.
template <class Storage, class Action>
void with_finish(RowGrad<Storage> grad, const typename Tile<Storage>::Scalar* weights, bool stream,
                 typename Tile<Storage>::Scalar* kept, Action action) {
  using Scalar = typename Tile<Storage>::Scalar;
  if (grad.scale != 1) scale_kept(kept, &grad);
  const bool aligned = reinterpret_cast<uintptr_t>(grad.out) % sizeof(Storage) == 0;
  const auto finish_with = [&](auto&& finish) {
    action(finish);
    if (grad.has_target()) finish.put_target();
  };
  if (weights != nullptr) {
    finish_with(RowFinish<false, Storage, WeightedOffset<Scalar>>(kept, {weights}, grad));
  } else if (stream && aligned) {
    finish_with(RowFinish<true, Storage, NoOffset>(kept, {}, grad));
  } else {
    finish_with(RowFinish<false, Storage, NoOffset>(kept, {}, grad));
  }
}
template <class Storage>
void finish_at_once(const RowGrad<Storage>& grad, const typename Tile<Storage>::Scalar* weights,
                    bool stream, typename Tile<Storage>::Scalar* kept) {
  with_finish(grad, weights, stream, kept, [](const auto& finish) {
    finish.begin();
    finish.rest(0);
  });
}

}  // namespace
}  // namespace gce
