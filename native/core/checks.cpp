#include "checks.h"

#include <cmath>

#include "error.h"
#include "overlap.h"
#include "row_runs.h"
#include "storage.h"

namespace gce {
namespace {

constexpr const char* kDtypeNames[] = {"float16", "bfloat16", "float32", "float64",
                                       "int8",    "int16",    "int32",   "int64",
                                       "uint8",   "uint16",   "uint32",  "uint64"};

// Two such spans have a sum that an int64 can hold.
constexpr int64_t kMostBytes = int64_t{1} << 61;

bool spans_too_much(const gce_array& a) {
  int64_t span = 0;
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (a.shape[d] <= 1) continue;
    int64_t reach = 0;
    if (__builtin_mul_overflow(a.strides[d], a.shape[d] - 1, &reach)) return true;
    if (reach > kMostBytes || reach < -kMostBytes) return true;
    span += reach < 0 ? -reach : reach;
    if (span > kMostBytes) return true;
  }
  return false;
}

bool is_too_large(const gce_array& a) {
  int64_t size = 1;
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (a.shape[d] == 0) continue;
    if (a.shape[d] > kMostElements / size) return true;
    size *= a.shape[d];
  }
  return false;
}

}  // namespace

const char* name_of(int32_t dtype) {
  const bool known = dtype >= GCE_FLOAT16 && dtype <= GCE_UINT64;
  return known ? kDtypeNames[dtype] : "an unknown dtype";
}

std::string shape_text(const gce_array& a, int32_t without) {
  std::string text = "(";
  int32_t printed = 0;
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (d == without) continue;
    text += printed++ == 0 ? "" : ", ";
    text += std::to_string(a.shape[d]);
  }
  return text + (printed == 1 ? ",)" : ")");
}

std::string index_text(const gce_array& like, int64_t i, int64_t shift) {
  if (like.ndim == 0) return "";
  std::string text;
  for (int32_t d = like.ndim - 1; d >= 0; --d) {
    const int64_t index = i % like.shape[d] + (d == like.ndim - 1 ? shift : 0);
    text = std::to_string(index) + (text.empty() ? "" : ", ") + text;
    i /= like.shape[d];
  }
  return "[" + text + "]";
}

void require_sound(const char* name, const gce_array& a, int32_t fewest_axes) {
  if (a.ndim < fewest_axes || a.ndim > GCE_MAX_NDIM) {
    fail(GCE_VALUE_ERROR, name, " has ", a.ndim, " dimensions, expected ", fewest_axes, " to ",
         GCE_MAX_NDIM);
  }
  if (a.ndim > 0 && (a.shape == nullptr || a.strides == nullptr)) {
    fail(GCE_VALUE_ERROR, name, " has ", a.ndim, " dimensions and no ",
         a.shape == nullptr ? "shape" : "strides", ", expected one number for each");
  }
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (a.shape[d] >= 0) continue;
    fail(GCE_VALUE_ERROR, name, " has shape ", shape_text(a), ", expected no negative length");
  }
  if (spans_too_much(a)) {
    fail(GCE_VALUE_ERROR, name, " has shape ", shape_text(a),
         " and strides that span more than 2^61 bytes, expected elements that memory can hold");
  }
}

void require_given(const char* name, const gce_array& a) {
  if (is_given(a) || is_empty(a)) return;
  fail(GCE_VALUE_ERROR, name, " is missing, expected an array of shape ", shape_text(a));
}

void require_enum(const char* name, const char* type, int32_t value, int32_t last) {
  if (value >= 0 && value <= last) return;
  fail(GCE_VALUE_ERROR, name, " = ", value, ", expected a ", type);
}

void require_reduction_and_value(int32_t reduction, int32_t value) {
  require_enum("reduction", "gce_reduction", reduction, GCE_REDUCTION_SUM);
  require_enum("value", "gce_value", value, GCE_VALUE_SURROGATE);
}

bool same_shape(const gce_array& a, const gce_array& b) {
  if (a.ndim != b.ndim) return false;
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != b.shape[d]) return false;
  }
  return true;
}

void require_float(const char* name, const gce_array& a) {
  if (is_float(a.dtype)) return;
  fail(GCE_TYPE_ERROR, name, " has dtype ", name_of(a.dtype),
       ", expected float16, bfloat16, float32 or float64");
}

void require_few_elements(const gce_array& logits) {
  if (is_too_large(logits)) {
    fail(GCE_VALUE_ERROR, "logits has shape ", shape_text(logits),
         ", expected at most 2^58 elements");
  }
}

void require_unit_range(const char* name, const std::string& index, const char* one, double x) {
  if (x >= 0.0 && x <= 1.0) return;
  const double shown = std::isnan(x) ? NAN : x;  // without the sign that some NaNs have
  fail(GCE_VALUE_ERROR, name, index, " = ", shown, ", expected 0 <= ", one, " <= 1");
}

void require_unit_range(const char* name, const char* one, const gce_array& a,
                        const gce_array& like, int64_t shift, const RowProblem& rows, RowArrayId id,
                        const KernelTable& kernels) {
  if (!is_given(a)) return;
  if (a.ndim == 0) {  // checked even where there are no rows
    const double x = read_real(static_cast<const char*>(a.data), a.dtype);
    return require_unit_range(name, "", one, x);
  }
  const RowArray& array = rows.arrays[id];
  const int64_t stride = array.strides[rows.ndim - 1];
  const auto check = [&](int64_t row, int64_t n, const char* first) {
    const int64_t at = kernels.first_outside_unit(first, array.dtype, stride, n);
    if (at == n) return;
    const double x = read_real(first + at * stride, array.dtype);
    require_unit_range(name, index_text(like, row + at, shift), one, x);
  };
  if (is_one_run(rows, array)) return check(0, rows.rows, array.data);
  for_each_run(rows, [&](int64_t row, int64_t n, const int64_t* offsets) {
    check(row, n, array.data + offsets[id]);
  });
}

void require_scalar_unless_none(const gce_array& grad_output, int32_t reduction) {
  if (is_given(grad_output) && grad_output.ndim > 0 && reduction != GCE_REDUCTION_NONE) {
    fail(GCE_VALUE_ERROR, "grad_output has shape ", shape_text(grad_output),
         ", expected a scalar unless reduction is \"none\"");
  }
}

void require_normalizer(int32_t reduction, double normalizer) {
  if (reduction != GCE_REDUCTION_MEAN) {
    fail(GCE_VALUE_ERROR, "normalizer = ", normalizer,
         ", expected none unless reduction is \"mean\"");
  }
  if (!(normalizer > 0.0) || std::isinf(normalizer)) {
    fail(GCE_VALUE_ERROR, "normalizer = ", normalizer, ", expected a finite number > 0");
  }
}

void require_output(const char* name, const gce_array& a, int32_t dtype, const char* like) {
  if (a.dtype != dtype) {
    fail(GCE_TYPE_ERROR, name, " has dtype ", name_of(a.dtype), ", expected ", name_of(dtype),
         like);
  }
  if (a.readonly) fail(GCE_VALUE_ERROR, name, " is read-only, expected a writeable array");
  if (overlaps_itself(a)) {
    fail(GCE_VALUE_ERROR, name,
         " has elements that may share memory, expected each to have its own");
  }
}

void require_apart(const char* out_name, const gce_array& out, const char* name,
                   const gce_array& other) {
  if (arrays_overlap(out, other)) {
    fail(GCE_VALUE_ERROR, out_name, " overlaps ", name, ", expected memory of its own");
  }
}

void require_grad(const gce_array& grad, const gce_array& logits) {
  if (!same_shape(grad, logits)) {
    fail(GCE_VALUE_ERROR, "out has shape ", shape_text(grad), ", expected ", shape_text(logits),
         ", the shape of logits");
  }
  require_output("out", grad, logits.dtype, ", the dtype of logits");
  if (!same_view(grad, logits) && arrays_overlap(grad, logits)) {
    fail(GCE_VALUE_ERROR,
         "out overlaps logits in part, expected either logits itself or memory of its own");
  }
}

void require_row_output(const char* name, const gce_array& a, int32_t dtype, const gce_array& rows,
                        const char* said, const char* like) {
  if (!same_shape(a, rows)) {
    fail(GCE_VALUE_ERROR, name, " has shape ", shape_text(a), ", expected ", shape_text(rows),
         said);
  }
  require_output(name, a, dtype, like);
}

// A loss of 16-bit logits may be of their dtype too.
void require_loss(const gce_array& loss, int32_t reduction, const gce_array& logits,
                  const gce_array& rows, const char* said) {
  const int32_t wide_dtype = logits.dtype == GCE_FLOAT64 ? GCE_FLOAT64 : GCE_FLOAT32;
  const int32_t dtype = loss.dtype == logits.dtype ? loss.dtype : wide_dtype;
  const char* like = logits.dtype == wide_dtype ? "" : ", or the dtype of logits";
  if (reduction == GCE_REDUCTION_NONE) {
    require_row_output("loss", loss, dtype, rows, said, like);
  } else {
    if (loss.ndim != 0) {
      fail(GCE_VALUE_ERROR, "loss has shape ", shape_text(loss),
           ", expected a scalar unless reduction is \"none\"");
    }
    require_output("loss", loss, dtype, like);
  }
  require_apart("loss", loss, "logits", logits);
}

}  // namespace gce
