// What the checks of both kinds of problem share (validate.cpp, validate_binary.cpp). They throw Error.
#ifndef GCE_CORE_CHECKS_H_
#define GCE_CORE_CHECKS_H_

#include <cstdint>
#include <string>

#include "gce/gce.h"
#include "kernel_table.h"

namespace gce {

const char* name_of(int32_t dtype);
inline bool is_float(int32_t dtype) { return dtype >= GCE_FLOAT16 && dtype <= GCE_FLOAT64; }
inline bool is_integer(int32_t dtype) { return dtype >= GCE_INT8 && dtype <= GCE_UINT64; }
inline bool is_given(const gce_array& a) { return a.data != nullptr; }

// (3, 4), with Python's comma for one dimension; `without` is left out.
std::string shape_text(const gce_array& a, int32_t without = -1);
// [7] or [1, 3] for the i'th element of an array of this shape, of which the last axis may be a view that begins with
// index `shift`; nothing where the shape is ().
std::string index_text(const gce_array& like, int64_t i, int64_t shift = 0);

// That shape and strides can be worked with: comes before every other check of an array.
void require_sound(const char* name, const gce_array& a, int32_t fewest_axes = 0);
inline void require_sound_if_given(const char* name, const gce_array& a) {
  if (is_given(a)) require_sound(name, a);
}
// Of an argument that the problem must have. Without elements there is nothing to be missing.
void require_given(const char* name, const gce_array& a);
void require_enum(const char* name, const char* type, int32_t value, int32_t last);
void require_reduction_and_value(int32_t reduction, int32_t value);

bool same_shape(const gce_array& a, const gce_array& b);
void require_float(const char* name, const gce_array& a);
// So that no size in bytes overflows, not even of an array with no rows.
constexpr int64_t kMostElements = int64_t{1} << 58;
void require_few_elements(const gce_array& logits);

// index: "" or what index_text gives; one: what one of them is called.
void require_unit_range(const char* name, const std::string& index, const char* one, double x);
inline void require_unit_range(const char* name, double x) {
  require_unit_range(name, "", name, x);
}
// Of every element of an array of the shape of `like`, or a scalar; `id` is its place in `rows`.
void require_unit_range(const char* name, const char* one, const gce_array& a,
                        const gce_array& like, int64_t shift, const RowProblem& rows, RowArrayId id,
                        const KernelTable& kernels);

void require_scalar_unless_none(const gce_array& grad_output, int32_t reduction);
void require_normalizer(int32_t reduction, double normalizer);

void require_output(const char* name, const gce_array& a, int32_t dtype, const char* like);
void require_apart(const char* out_name, const gce_array& out, const char* name,
                   const gce_array& other);
// All but what they may not overlap. `said` is what an output of this shape is said to have the shape of.
void require_grad(const gce_array& grad, const gce_array& logits);
void require_loss(const gce_array& loss, int32_t reduction, const gce_array& logits,
                  const gce_array& rows, const char* said);
void require_row_output(const char* name, const gce_array& a, int32_t dtype, const gce_array& rows,
                        const char* said, const char* like = "");

}  // namespace gce

#endif  // GCE_CORE_CHECKS_H_
