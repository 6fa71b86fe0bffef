// What one core can stream, for the benchmarks to compare with: passes over n floats that do as little as can be done.
// Included by ../kernels.inc.h.
//
//   read   the largest float (-inf of none; no promise about NaN)
//   copy   to[i] = from[i]; the arrays do not overlap
//   scale  to[i] = factor to[i]
//
// Pointers are aligned to a float. Each step is a few vectors, whose operations do not wait for each other. Of arrays in
// memory, as much is fetched a page ahead, where the hardware's own prefetching stops; a tenth to a quarter is gained for read
// and copy, which lose as much in the caches; scaling only loses.

namespace gce {
namespace {

constexpr int kLimitVectors = 4;  // a step
constexpr int64_t kLimitStep = int64_t{kLimitVectors} * F32::kLanes;
constexpr int64_t kLimitAhead = 4096;  // bytes

// Of a step's worth of floats, some way ahead; past the end it is harmless.
inline void prefetch_step(const float* p) {
  constexpr int64_t kBytes = kLimitStep * static_cast<int64_t>(sizeof(float));
  const char* ahead = reinterpret_cast<const char*>(p) + kLimitAhead;
  for (int64_t line = 0; line < kBytes; line += 64) prefetch(ahead + line);
}

template <bool from_memory>
float limit_read(const float* p, int64_t n) {
  const F32 least = broadcast(-__builtin_inff());
  F32 most[kLimitVectors];
  for (F32& m : most) m = least;
  int64_t i = 0;
  for (; i + kLimitStep <= n; i += kLimitStep) {
    if (from_memory) prefetch_step(p + i);
    for (int k = 0; k < kLimitVectors; ++k) most[k] = max(most[k], load(p + i + k * F32::kLanes));
  }
  for (; i + F32::kLanes <= n; i += F32::kLanes) most[0] = max(most[0], load(p + i));
  if (i < n) most[0] = max(most[0], load_first(p + i, n - i, least));
  for (const F32& m : most) most[0] = max(most[0], m);
  return max_of_lanes(most[0]);
}

// to[i] = change(from[i]), by put(p, vector) for whole steps; to may be from.
template <bool from_memory, class Change, class Put>
inline void limit_map(float* to, const float* from, int64_t n, Change change, Put put) {
  int64_t i = 0;
  for (; i + kLimitStep <= n; i += kLimitStep) {
    if (from_memory) prefetch_step(from + i);
    F32 x[kLimitVectors];
    for (int k = 0; k < kLimitVectors; ++k) x[k] = change(load(from + i + k * F32::kLanes));
    for (int k = 0; k < kLimitVectors; ++k) put(to + i + k * F32::kLanes, x[k]);
  }
  for (; i + F32::kLanes <= n; i += F32::kLanes) store(to + i, change(load(from + i)));
  if (i < n) store_first(to + i, change(load_first(from + i, n - i, broadcast(0.0f))), n - i);
}

inline F32 unchanged(F32 x) { return x; }
inline void store_vector(float* p, F32 x) { store(p, x); }
inline void stream_vector(float* p, F32 x) { stream(p, x); }

// As far as the first vector of `to` that can be streamed by ordinary stores.
void limit_copy_past_caches(float* to, const float* from, int64_t n) {
  constexpr uintptr_t kBytes = F32::kLanes * sizeof(float);
  const uintptr_t past = reinterpret_cast<uintptr_t>(to) % kBytes;
  int64_t head = past == 0 ? 0 : static_cast<int64_t>((kBytes - past) / sizeof(float));
  if (n < head) head = n;
  limit_map<false>(to, from, head, unchanged, store_vector);
  limit_map<true>(to + head, from + head, n - head, unchanged, stream_vector);
  stream_fence();
}

float limit(gce_limit_op op, float* to, const float* from, int64_t n, float factor) {
  switch (op) {
    case GCE_LIMIT_READ:
      return limit_read<true>(from, n);
    case GCE_LIMIT_READ_CACHED:
      return limit_read<false>(from, n);
    case GCE_LIMIT_COPY:
      limit_copy_past_caches(to, from, n);
      return 0.0f;
    case GCE_LIMIT_COPY_CACHED:
      limit_map<false>(to, from, n, unchanged, store_vector);
      return 0.0f;
    default: {
      const F32 by = broadcast(factor);
      limit_map<false>(to, to, n, [by](F32 x) { return by * x; }, store_vector);
      return 0.0f;
    }
  }
}

}  // namespace
}  // namespace gce
