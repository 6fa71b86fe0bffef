// Checking and counting targets, in loops that the compiler vectorises. Included by ../kernels.inc.h.

namespace gce {
namespace {

template <class Integer>
TargetCheck check_contiguous(const Integer* targets, int64_t n, int64_t classes,
                             bool has_ignore_index, int64_t ignore_index) {
  int64_t counted = 0;
  int64_t invalid = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t target = static_cast<int64_t>(targets[i]);
    const bool ignored = has_ignore_index & (target == ignore_index);
    const bool outside = static_cast<uint64_t>(target) >= static_cast<uint64_t>(classes);
    counted += !ignored;
    invalid += outside & !ignored;
  }
  return {invalid == 0 ? n : -1, counted};
}

inline TargetCheck check_each(const char* targets, int32_t dtype, int64_t stride, int64_t n,
                              int64_t classes, bool has_ignore_index, int64_t ignore_index) {
  int64_t counted = 0;
  for (int64_t i = 0; i < n; ++i) {
    const char* element = targets + i * stride;
    const int64_t target = read_target(element, dtype);
    const bool past_int64 =
        dtype == GCE_UINT64 && read<uint64_t>(element) > static_cast<uint64_t>(INT64_MAX);
    if (has_ignore_index && target == ignore_index && !past_int64) continue;
    if (target < 0 || target >= classes) return {i, counted};
    ++counted;
  }
  return {n, counted};
}

TargetCheck check_targets(const char* targets, int32_t dtype, int64_t stride, int64_t n,
                          int64_t classes, bool has_ignore_index, int64_t ignore_index) {
  TargetCheck check = {-1, 0};
  const int64_t size = size_of(dtype);
  if (stride == size && reinterpret_cast<uintptr_t>(targets) % static_cast<uintptr_t>(size) == 0) {
    if (dtype == GCE_INT64) {
      check = check_contiguous(reinterpret_cast<const int64_t*>(targets), n, classes,
                               has_ignore_index, ignore_index);
    } else if (dtype == GCE_INT32) {
      check = check_contiguous(reinterpret_cast<const int32_t*>(targets), n, classes,
                               has_ignore_index, ignore_index);
    }
  }
  if (check.first_invalid >= 0) return check;
  return check_each(targets, dtype, stride, n, classes, has_ignore_index, ignore_index);
}

// Whether a vector's worth are all finite and >= 0.
template <class Vector>
inline bool all_are_probabilities(Vector t) {
  const Vector zero = broadcast(typename Vector::Scalar(0));
  return all(t - t == zero) && !any(t < zero);
}

template <class Storage>
int64_t first_that_is_none(const char* row, int64_t stride, int64_t n) {
  using Vector = typename ComputeOf<Storage>::Vector;
  int64_t v = 0;
  if (stride == int64_t{sizeof(Storage)}) {
    const Storage* t = reinterpret_cast<const Storage*>(row);
    while (v + Vector::kLanes <= n && all_are_probabilities(load(t + v))) v += Vector::kLanes;
  }
  for (; v < n; ++v) {
    const auto one = to_scalar(read<Storage>(row + v * stride));
    if (!(one >= 0) || one - one != 0) return v;
  }
  return v;
}

int64_t check_probabilities(const char* row, int32_t dtype, int64_t stride, int64_t n) {
  switch (dtype) {
    case GCE_FLOAT16:
      return first_that_is_none<Float16>(row, stride, n);
    case GCE_BFLOAT16:
      return first_that_is_none<BFloat16>(row, stride, n);
    case GCE_FLOAT32:
      return first_that_is_none<float>(row, stride, n);
    default:
      return first_that_is_none<double>(row, stride, n);
  }
}

}  // namespace
}  // namespace gce
