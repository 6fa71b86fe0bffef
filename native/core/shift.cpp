#include "shift.h"

#include <algorithm>
#include <cstring>

#include "overlap.h"
#include "row_options.h"
#include "storage.h"
#include "validate.h"

namespace gce {
namespace {

// The last axis of the logits that is not the class axis, and of what has one number per row.
int32_t axis_of_logits(const gce_problem& p) {
  return p.logits.ndim - (class_axis(p) == p.logits.ndim - 1 ? 2 : 1);
}
int32_t axis_of_rows(const gce_problem& p) { return p.logits.ndim - 2; }

void write_number(char* to, int32_t dtype, int32_t value) {
  if (dtype == GCE_INT64) return write(to, static_cast<int64_t>(value));
  write_real(to, dtype, value);
}

// Sets the elements with index begin to end - 1 along `axis`.
void fill(const gce_array& array, int32_t axis, int64_t begin, int64_t end, int32_t value, char* at,
          int32_t d = 0) {
  if (d == array.ndim) return write_number(at, array.dtype, value);
  const int64_t first = d == axis ? begin : 0;
  const int64_t last = d == axis ? end : array.shape[d];
  at += first * array.strides[d];
  if (d == array.ndim - 1 && value == 0 && array.strides[d] == size_of(array.dtype)) {
    std::memset(at, 0, static_cast<size_t>(std::max<int64_t>(0, last - first) * array.strides[d]));
    return;
  }
  for (int64_t i = first; i < last; ++i, at += array.strides[d]) {
    fill(array, axis, begin, end, value, at, d + 1);
  }
}

}  // namespace

ShiftedProblem::ShiftedProblem(const gce_problem& whole) : whole_(whole), views_(whole) {
  const int32_t of_logits = axis_of_logits(whole);
  const int32_t of_rows = axis_of_rows(whole);
  const auto add = [&](gce_array gce_problem::* array, int32_t axis, bool leaves_out_first) {
    whole_.*array = copy(whole.*array);
    views_.*array = view(whole_.*array, axis, leaves_out_first);
  };
  for (const auto array : {&gce_problem::logits, &gce_problem::grad, &gce_problem::vector}) {
    add(array, of_logits, false);
  }
  add(&gce_problem::targets, are_probabilities(whole) ? of_logits : of_rows, true);
  for (const RowOption& option : kRowOptions) add(option.array, of_rows, true);
  for (const auto array :
       {&gce_problem::shard_stats, &gce_problem::loss, &gce_problem::gamma_grad}) {
    add(array, of_rows, true);
  }
  for (const RowOutput& output : kRowOutputs) add(output.array, of_rows, true);
}

int64_t* ShiftedProblem::keep(const int64_t* numbers, int32_t n) {
  int64_t* const kept = numbers_.emplace_back().data();
  std::copy_n(numbers, n, kept);
  return kept;
}

gce_array ShiftedProblem::copy(const gce_array& array) {
  if (array.data == nullptr || array.ndim == 0) return array;
  gce_array copy = array;
  copy.shape = keep(array.shape, array.ndim);
  copy.strides = keep(array.strides, array.ndim);
  return copy;
}

// Absent arrays and numbers stay as they are.
gce_array ShiftedProblem::view(const gce_array& array, int32_t axis, bool leaves_out_first) {
  if (array.data == nullptr || array.ndim == 0) return array;
  const int64_t left_out = std::min<int64_t>(whole_.shift, array.shape[axis]);
  int64_t* const shape = keep(array.shape, array.ndim);
  shape[axis] -= left_out;
  gce_array view = array;
  view.shape = shape;
  if (leaves_out_first) {
    view.data = static_cast<char*>(array.data) + left_out * array.strides[axis];
  }
  return view;
}

void ShiftedProblem::fill_rest() const {
  const int64_t length = whole_.logits.shape[axis_of_logits(whole_)];
  const int64_t left_out = std::min<int64_t>(whole_.shift, length);
  const auto fill_first = [&](const gce_array& array, int32_t value) {
    if (array.data == nullptr || array.ndim == 0 || is_empty(array)) return;
    fill(array, axis_of_rows(whole_), 0, left_out, value, static_cast<char*>(array.data));
  };
  fill_first(whole_.loss, 0);
  if (whole_.shard == GCE_SHARD_PARTIAL) fill_first(whole_.shard_stats, 0);
  fill_first(whole_.gamma_grad, 0);
  for (const RowOutput& output : kRowOutputs) {
    fill_first(whole_.*output.array, output.id == kArgmax ? -1 : 0);
  }
  if (whole_.grad.data != nullptr && !is_empty(whole_.grad)) {
    fill(whole_.grad, axis_of_logits(whole_), length - left_out, length, 0,
         static_cast<char*>(whole_.grad.data));
  }
}

}  // namespace gce
