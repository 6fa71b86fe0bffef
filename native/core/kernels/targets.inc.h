// Checking targets and fractions, in loops that the compiler vectorises. Included by ../kernels.inc.h.

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

// The first of n floats that is not wanted; n if all are. all_wanted(vector) says whether all lanes are.
template <class Storage, class AllWanted>
int64_t first_unwanted_as(const char* p, int64_t stride, int64_t n, AllWanted all_wanted) {
  using Vector = typename ComputeOf<Storage>::Vector;
  int64_t i = 0;
  if (stride == int64_t{sizeof(Storage)}) {
    const Storage* x = reinterpret_cast<const Storage*>(p);
    while (i + Vector::kLanes <= n && all_wanted(load(x + i))) i += Vector::kLanes;
  }
  while (i < n && all_wanted(broadcast(to_scalar(read<Storage>(p + i * stride))))) ++i;
  return i;
}
template <class AllWanted>
int64_t first_unwanted(const char* p, int32_t dtype, int64_t stride, int64_t n,
                       AllWanted all_wanted) {
  switch (dtype) {
    case GCE_FLOAT16:
      return first_unwanted_as<Float16>(p, stride, n, all_wanted);
    case GCE_BFLOAT16:
      return first_unwanted_as<BFloat16>(p, stride, n, all_wanted);
    case GCE_FLOAT32:
      return first_unwanted_as<float>(p, stride, n, all_wanted);
    default:
      return first_unwanted_as<double>(p, stride, n, all_wanted);
  }
}

int64_t check_probabilities(const char* row, int32_t dtype, int64_t stride, int64_t n) {
  return first_unwanted(row, dtype, stride, n, [](auto t) {
    const auto zero = t - t;  // NaN where t is infinite
    return all(zero == zero) && !any(t < zero);
  });
}

int64_t first_outside_unit(const char* p, int32_t dtype, int64_t stride, int64_t n) {
  return first_unwanted(p, dtype, stride, n, [](auto x) {
    using Scalar = typename decltype(x)::Scalar;
    return all(x == x) && !any(x < broadcast(Scalar(0))) && !any(broadcast(Scalar(1)) < x);
  });
}

}  // namespace
}  // namespace gce
