#include "overlap.h"

#include <algorithm>
#include <cstdint>

#include "storage.h"

namespace gce {
namespace {

// Bytes [low, high) that an array reaches.
struct Extent {
  int64_t low;
  int64_t high;
};

Extent extent_of(const gce_array& a) {
  const int64_t base = static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.data));
  Extent extent = {base, base + size_of(a.dtype)};
  for (int32_t d = 0; d < a.ndim; ++d) {
    const int64_t reach = a.strides[d] * (a.shape[d] - 1);
    (reach < 0 ? extent.low : extent.high) += reach;
  }
  return extent;
}

// step * x with 0 <= x <= most.
struct Term {
  int64_t step;
  int64_t most;
};

// Of two arrays at most.
class Terms {
 public:
  void add(const gce_array& a) {
    for (int32_t d = 0; d < a.ndim; ++d) {
      if (a.shape[d] > 1 && a.strides[d] != 0) {
        terms_[count_++] = {std::abs(a.strides[d]), a.shape[d] - 1};
      }
    }
  }
  void sort_by_step() {
    std::sort(terms_, terms_ + count_, [](Term a, Term b) { return a.step > b.step; });
  }
  size_t size() const { return count_; }
  const Term& operator[](size_t i) const { return terms_[i]; }

 private:
  Term terms_[2 * GCE_MAX_NDIM];
  size_t count_ = 0;
};

// Is there a sum of terms in [low, high]? Depth-first over the terms, largest step first: what the
// smaller ones can still add bounds each x, so that nested strides leave one or two choices.
class SumSearch {
 public:
  explicit SumSearch(const Terms& terms) : terms_(terms) {
    reach_[terms_.size()] = 0;
    for (size_t i = terms_.size(); i-- > 0;) {
      reach_[i] = reach_[i + 1] + terms_[i].step * terms_[i].most;
    }
  }

  bool hits(int64_t low, int64_t high, size_t i = 0) {
    if (high < 0 || low > reach_[i]) return false;
    if (low <= 0 || i == terms_.size()) return low <= 0;
    if (--budget_ < 0) return true;
    const Term& term = terms_[i];
    const int64_t needed = low - reach_[i + 1];
    const int64_t first = needed <= 0 ? 0 : (needed + term.step - 1) / term.step;
    const int64_t last = std::min(term.most, high / term.step);
    for (int64_t x = last; x >= first; --x) {
      if (hits(low - x * term.step, high - x * term.step, i + 1)) return true;
    }
    return false;
  }

 private:
  const Terms& terms_;
  int64_t reach_[2 * GCE_MAX_NDIM + 1];
  int64_t budget_ = 100000;
};

}  // namespace

bool is_empty(const gce_array& a) {
  return std::any_of(a.shape, a.shape + a.ndim, [](int64_t n) { return n == 0; });
}

bool arrays_overlap(const gce_array& a, const gce_array& b) {
  if (a.data == nullptr || b.data == nullptr || is_empty(a) || is_empty(b)) return false;
  const Extent of_a = extent_of(a);
  const Extent of_b = extent_of(b);
  if (of_a.high <= of_b.low || of_b.high <= of_a.low) return false;
  // An element of a starts at of_a.low + (terms of a); one of b at the start of its last element minus
  // (terms of b). They share a byte if the distance is in (-size of a, size of b).
  Terms terms;
  terms.add(a);
  terms.add(b);
  terms.sort_by_step();
  const int64_t last_of_b = of_b.high - size_of(b.dtype);
  const int64_t distance = last_of_b - of_a.low;
  return SumSearch(terms).hits(distance - (size_of(a.dtype) - 1),
                               distance + (size_of(b.dtype) - 1));
}

bool overlaps_itself(const gce_array& a) {
  if (is_empty(a)) return false;
  int64_t reached = size_of(a.dtype);
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (a.shape[d] > 1 && a.strides[d] == 0) return true;
  }
  Terms terms;
  terms.add(a);
  terms.sort_by_step();
  for (size_t i = terms.size(); i-- > 0;) {
    if (terms[i].step < reached) return true;
    reached += terms[i].step * terms[i].most;
  }
  return false;
}

bool same_view(const gce_array& a, const gce_array& b) {
  if (a.data != b.data || a.dtype != b.dtype || a.ndim != b.ndim) return false;
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != b.shape[d]) return false;
    if (a.shape[d] > 1 && a.strides[d] != b.strides[d]) return false;
  }
  return true;
}

}  // namespace gce
