#include "problems.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <type_traits>
#include <utility>

namespace fuzz {
namespace {

constexpr int64_t kMostWork = 1 << 21;  // elements of one call
constexpr int32_t kReals[] = {GCE_FLOAT32, GCE_FLOAT64, GCE_FLOAT16, GCE_BFLOAT16};

template <class Problem>
Case<Problem> empty_case(const Field<Problem>* fields, size_t count) {
  Case<Problem> made = {};
  made.fields = fields;
  made.arrays.resize(count);
  return made;
}

// Few elements mostly: most of what can go wrong does so with few, and more take longer.
std::vector<int64_t> take_shape(Bytes* bytes) {
  constexpr int64_t kLengths[] = {3,    1,    2,    4,    5,    7,     8,     9,     10,  13,
                                  15,   16,   17,   0,    24,   31,    32,    33,    40,  63,
                                  64,   65,   67,   100,  127,  128,   129,   257,   500, 1000,
                                  1025, 4096, 8191, 8192, 8193, 16500, 65536, 300000};
  // What is shared by workers takes as long as a hundred small calls, and rows in segments as ten thousand.
  const int size = bytes->byte();
  const int64_t most = size == 255 && bytes->rarely(128) ? kMostWork / 2
                       : size >= 252                     ? 70000
                       : size >= 224                     ? 9000
                                                         : 300;
  const int rank = bytes->byte();
  constexpr int kRanks[] = {2, 1, 3, 2, 4, 0, 2, 3};
  const int ndim = rank >= 252 ? 60 + bytes->below(8) : kRanks[rank % 8];
  std::vector<int64_t> shape;
  int64_t count = 1;
  for (int d = 0; d < ndim; ++d) {
    int64_t length = ndim > 8 && !bytes->rarely(16) ? 1 : bytes->one_of(kLengths);
    if (count * length > most) length = 1;
    count = std::max<int64_t>(1, count * length);
    shape.push_back(length);
  }
  return shape;
}

std::vector<int64_t> without(const std::vector<int64_t>& shape, size_t axis) {
  std::vector<int64_t> rest = shape;
  if (axis < rest.size()) rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(axis));
  return rest;
}

// A scalar, or one for each.
std::vector<int64_t> scalar_or(const std::vector<int64_t>& shape, Bytes* bytes) {
  return bytes->rarely(2) ? shape : std::vector<int64_t>();
}

int32_t loss_dtype_of(int32_t logits, Bytes* bytes) {
  return logits == GCE_FLOAT64 || bytes->rarely(4) ? logits : GCE_FLOAT32;
}

template <class Problem>
void take_scalars(Problem* problem, Bytes* bytes) {
  constexpr double kSmoothing[] = {0.0, 0.0, 0.1, 1.0, 1e-300, 0.999};
  problem->reduction = (GCE_REDUCTION_MEAN + bytes->below(3)) % 3;
  problem->value = bytes->below(2);
  problem->label_smoothing = bytes->one_of(kSmoothing);
  if (problem->reduction == GCE_REDUCTION_MEAN && bytes->rarely(4)) {
    problem->has_normalizer = 1;
    problem->normalizer = 7.0;
  }
}

// One change of what an array is. The memory is made afterwards, as the lengths and strides then are.
void edit_array(Array* array, Bytes* bytes) {
  const size_t axes = array->shape.size();
  const size_t axis = axes == 0 ? 0 : static_cast<size_t>(bytes->byte()) % axes;
  switch (bytes->below(10)) {
    case 0:
      array->given = !array->given;
      break;
    case 1:
      array->dtype = bytes->below(16) - 2;
      break;
    case 2:
      array->readonly = 1;
      break;
    case 3:
      array->ndim = static_cast<int32_t>(bytes->any_integer());
      if (array->ndim < 0 || array->ndim > GCE_MAX_NDIM) break;  // not a length is read
      array->shape.resize(static_cast<size_t>(array->ndim), 1);
      array->strides.resize(static_cast<size_t>(array->ndim), 4);
      break;
    case 4:  // one axis more or fewer, or very many
      array->shape.resize(bytes->rarely(4) ? 70 : axes + 1 - 2 * (bytes->byte() % 2 & (axes > 0)),
                          1);
      array->strides.resize(array->shape.size(), 4);
      array->ndim = static_cast<int32_t>(array->shape.size());
      break;
    case 5:
      if (axes > 0) array->shape[axis] = bytes->any_integer();
      break;
    case 6:
      if (axes > 0) array->strides[axis] = bytes->any_integer();
      break;
    case 7:
      array->lacks_shape = axes > 0;
      break;
    case 8:
      array->lacks_strides = axes > 0;
      break;
    default:
      array->dtype = static_cast<int32_t>(bytes->any_integer());
      break;
  }
}

void edit_option(gce_problem* p, Bytes* bytes) {
  double* const reals[] = {&p->normalizer, &p->label_smoothing, &p->z_loss, &p->softcap};
  int32_t* const integers[] = {&p->has_normalizer, &p->has_ignore_index, &p->axis,  &p->reduction,
                               &p->value,          &p->gauss_newton,     &p->shift, &p->shard};
  int64_t* const longs[] = {&p->ignore_index, &p->first_class, &p->all_classes};
  const int which = bytes->below(15);
  if (which < 4) {
    *reals[which] = bytes->any_real();
  } else if (which < 12) {
    *integers[which - 4] = static_cast<int32_t>(bytes->any_integer());
  } else {
    *longs[which - 12] = bytes->any_integer();
  }
}

void edit_option(gce_binary_problem* p, Bytes* bytes) {
  double* const reals[] = {&p->normalizer, &p->label_smoothing};
  int32_t* const integers[] = {&p->has_normalizer, &p->reduction, &p->value};
  const int which = bytes->below(5);
  if (which < 2) {
    *reals[which] = bytes->any_real();
  } else {
    *integers[which - 2] = static_cast<int32_t>(bytes->any_integer());
  }
}

template <class Problem>
void edit(Case<Problem>* made, Bytes* bytes) {
  const int edits = std::max(0, bytes->below(8) - 4);
  for (int i = 0; i < edits; ++i) {
    if (bytes->rarely(3)) {
      edit_option(&made->problem, bytes);
    } else {
      edit_array(&made->arrays[static_cast<size_t>(bytes->byte()) % made->arrays.size()], bytes);
    }
  }
}

template <class Problem>
void give_memory(Case<Problem>* made, Bytes* bytes) {
  const int lead = bytes->rarely(4) ? bytes->below(64) : 0;
  for (size_t i = 0; i < made->arrays.size(); ++i) {
    Array& array = made->arrays[i];
    if (!array.given) continue;
    const Backing backing = allocate(&array, lead, &made->blocks);
    if (!made->is_used(i)) continue;
    made->is_possible = made->is_possible && backing != Backing::kImpossible;
    made->must_fail = made->must_fail || backing == Backing::kRefused;
  }
  // In place, or over each other.
  Array& grad = made->of(&Problem::grad);
  const Array& logits = made->of(&Problem::logits);
  if (grad.given && logits.given && bytes->rarely(4)) {
    const bool partly = bytes->rarely(8) || grad.shape.size() != logits.shape.size();
    if (!partly) grad.strides = logits.strides;
    put_into(&grad, logits.block, partly ? bytes->byte() : lead, made->blocks);
  }
  if (!bytes->rarely(8)) return;
  Array& moved = made->arrays[static_cast<size_t>(bytes->byte()) % made->arrays.size()];
  const Array& other = made->arrays[static_cast<size_t>(bytes->byte()) % made->arrays.size()];
  if (moved.given && other.given) put_into(&moved, other.block, bytes->byte(), made->blocks);
}

template <class Problem>
void fill_arrays(Case<Problem>* made, int64_t classes, Bytes* bytes) {
  for (size_t i = 0; i < made->arrays.size() && made->is_possible && !made->must_fail; ++i) {
    const Array& array = made->arrays[i];
    if (!made->is_used(i)) continue;
    const auto field = made->fields[i].array;
    if (count_of(array.shape) > kMostWork) made->is_possible = false;
    if (made->is_output(i) || !made->is_possible) continue;
    const bool is_integer = array.dtype >= GCE_INT8;
    Content content = Content::kPositive;
    if (field == &Problem::logits) content = Content::kLogits;
    if (field == &Problem::gamma || field == &Problem::threshold) content = Content::kUnit;
    if (field == &Problem::targets) content = is_integer ? Content::kTargets : Content::kUnit;
    fill(array, content, classes, bytes, &made->blocks);
  }
}

// Logits of the shape; what depends on them follows.
struct Row {
  std::vector<int64_t> shape;
  size_t axis;
  std::vector<int64_t> rows;
  int64_t classes;
};

void take_options(Case<gce_problem>* made, const Row& row, Bytes* bytes) {
  gce_problem& p = made->problem;
  const int chosen = bytes->byte();
  take_scalars(&p, bytes);
  constexpr double kCaps[] = {30.0, 1e-3, 1e300};
  constexpr double kLambdas[] = {1e-4, 1.0, 1e300};
  if ((chosen & 1) != 0) p.z_loss = bytes->one_of(kLambdas);
  if ((chosen & 2) != 0) p.softcap = bytes->one_of(kCaps);
  if ((chosen & 4) != 0) p.shift = row.rows.empty() ? 0 : 1 + bytes->below(3);
  const auto real = [&](std::vector<int64_t> shape) {
    return make_array(bytes->one_of(kReals), std::move(shape), bytes, false);
  };
  made->of(&gce_problem::gamma) = real(scalar_or(row.rows, bytes));
  if ((chosen & 8) != 0) made->of(&gce_problem::threshold) = real(scalar_or(row.rows, bytes));
  if ((chosen & 16) != 0) made->of(&gce_problem::sample_weight) = real(row.rows);
  if ((chosen & 32) != 0) made->of(&gce_problem::weight) = real({row.classes});
  if ((chosen & 64) != 0) {
    const bool per_row = p.reduction == GCE_REDUCTION_NONE;
    made->of(&gce_problem::grad_output) =
        real(per_row ? scalar_or(row.rows, bytes) : std::vector<int64_t>());
  }
  if ((chosen & 128) != 0) {
    made->of(&gce_problem::vector) = real(row.shape);
    p.gauss_newton = bytes->below(2);
  }
}

void take_outputs(Case<gce_problem>* made, const Row& row, int32_t dtype, Bytes* bytes) {
  const int chosen = bytes->byte();
  const auto give = [&](gce_array gce_problem::* field, int32_t of, std::vector<int64_t> shape) {
    made->of(field) = make_array(of, std::move(shape), bytes, true);
  };
  const bool per_row = made->problem.reduction == GCE_REDUCTION_NONE;
  const int32_t wide = dtype == GCE_FLOAT64 ? GCE_FLOAT64 : GCE_FLOAT32;
  if ((chosen & 1) == 0) {
    give(&gce_problem::loss, loss_dtype_of(dtype, bytes),
         per_row ? row.rows : std::vector<int64_t>());
  }
  if ((chosen & 2) == 0) give(&gce_problem::grad, dtype, row.shape);
  if ((chosen & 4) != 0) give(&gce_problem::target_log_prob, wide, row.rows);
  if ((chosen & 8) != 0) give(&gce_problem::logsumexp, wide, row.rows);
  if ((chosen & 16) != 0) give(&gce_problem::grad_weight, wide, row.rows);
  if ((chosen & 32) != 0) give(&gce_problem::argmax, GCE_INT64, row.rows);
  if ((chosen & 64) != 0) {
    give(&gce_problem::gamma_grad, GCE_FLOAT64, made->of(&gce_problem::gamma).shape);
  }
}

// Logits become a slice of all_classes; for GCE_SHARD_PARTIAL the statistics are all that is wanted.
void take_shard(Case<gce_problem>* made, const Row& row, Bytes* bytes) {
  gce_problem& p = made->problem;
  p.shard = 1 + bytes->below(2);
  p.first_class = bytes->below(3) * 5;
  p.all_classes = p.first_class + row.classes + bytes->below(3) * 7;
  std::vector<int64_t> shape = row.rows;
  shape.push_back(GCE_SHARD_FIELDS);
  const bool is_partial = p.shard == GCE_SHARD_PARTIAL;
  made->of(&gce_problem::shard_stats) =
      make_array(GCE_FLOAT64, std::move(shape), bytes, is_partial);
  Array& weight = made->of(&gce_problem::weight);
  if (weight.given) weight = make_array(weight.dtype, {p.all_classes}, bytes, false);
  if (bytes->rarely(16)) return;
  p.softcap = 0.0;
  made->of(&gce_problem::vector).given = false;
  p.gauss_newton = 0;
  for (size_t i = 0; is_partial && i < made->arrays.size(); ++i) {
    if (made->fields[i].is_output) made->arrays[i].given = false;
  }
}

// Statistics that pass for those of all classes: of these logits, and in part anything.
void fill_merged(Case<gce_problem>* made, Bytes* bytes) {
  const Array& stats = made->of(&gce_problem::shard_stats);
  const int64_t rows = count_of(stats.shape) / GCE_SHARD_FIELDS;
  const bool is_usable = stats.given && stats.dtype == GCE_FLOAT64 && rows > 0 &&
                         stats.ndim == static_cast<int32_t>(stats.shape.size()) &&
                         stats.shape.back() == GCE_SHARD_FIELDS;
  if (!is_usable || made->problem.shard != GCE_SHARD_MERGED) return;
  const uint8_t edited = bytes->byte();
  Random random(edited);
  char* const first = made->first_of(made->index_of(&gce_problem::shard_stats));
  const std::vector<int64_t> offsets = offsets_of(stats);
  for (size_t i = 0; i < offsets.size(); ++i) {
    const auto field = static_cast<int>(i % GCE_SHARD_FIELDS);
    double value = 0.0;
    if (field == GCE_SHARD_SUM_HIGH || field == GCE_SHARD_WEIGHT_SUM) value = 3.0;
    if (field == GCE_SHARD_CLASSES) value = static_cast<double>(made->problem.all_classes);
    const bool is_free = field < GCE_SHARD_FIRST_CLASS;
    if (is_free && edited >= 128 && random.next() % 4 == 0) value = bytes->any_real();
    std::memcpy(first + offsets[i], &value, sizeof(value));
  }
}

}  // namespace

template <class Problem>
bool Case<Problem>::is_output(size_t i) const {
  if constexpr (std::is_same_v<Problem, gce_problem>) {
    if (fields[i].array == &gce_problem::shard_stats) return problem.shard == GCE_SHARD_PARTIAL;
  }
  return fields[i].is_output;
}

template <class Problem>
bool Case<Problem>::is_used(size_t i) const {
  if constexpr (std::is_same_v<Problem, gce_problem>) {
    const bool is_stats = fields[i].array == &gce_problem::shard_stats;
    if (is_stats && problem.shard == GCE_SHARD_NONE) return false;
  }
  return arrays[i].given;
}

template <class Problem>
Problem Case<Problem>::whole() const {
  Problem all = problem;
  for (size_t i = 0; i < arrays.size(); ++i) all.*fields[i].array = arrays[i].view(blocks);
  return all;
}

template <class Problem>
size_t Case<Problem>::index_of(gce_array Problem::* array) const {
  size_t i = 0;
  while (fields[i].array != array) ++i;
  return i;
}

template struct Case<gce_problem>;
template struct Case<gce_binary_problem>;

Case<gce_problem> rows_case(Bytes* bytes) {
  Case<gce_problem> made = empty_case(kRowFields, std::size(kRowFields));
  gce_problem_init(&made.problem);
  Row row;
  row.shape = take_shape(bytes);
  if (row.shape.empty()) row.shape = {3};
  row.axis = row.shape.size() - 1 - static_cast<size_t>(bytes->byte()) % row.shape.size();
  row.rows = without(row.shape, row.axis);
  row.classes = row.shape[row.axis];
  made.problem.axis = static_cast<int32_t>(row.axis);
  if (bytes->rarely(2)) made.problem.axis -= static_cast<int32_t>(row.shape.size());
  const int32_t dtype = bytes->one_of(kReals);
  made.of(&gce_problem::logits) = make_array(dtype, row.shape, bytes, false);
  constexpr int32_t kIntegers[] = {GCE_INT64, GCE_INT32,  GCE_INT8,   GCE_INT16,
                                   GCE_UINT8, GCE_UINT16, GCE_UINT32, GCE_UINT64};
  const bool are_probabilities = bytes->rarely(6);
  made.of(&gce_problem::targets) =
      are_probabilities ? make_array(bytes->one_of(kReals), row.shape, bytes, false)
                        : make_array(bytes->one_of(kIntegers), row.rows, bytes, false);
  made.problem.has_ignore_index = bytes->below(2);
  made.problem.ignore_index = -100;
  take_options(&made, row, bytes);
  take_outputs(&made, row, dtype, bytes);
  if (bytes->rarely(8)) take_shard(&made, row, bytes);
  edit(&made, bytes);
  give_memory(&made, bytes);
  fill_arrays(&made, row.classes, bytes);
  if (made.is_possible && !made.must_fail) fill_merged(&made, bytes);
  return made;
}

Case<gce_binary_problem> binary_case(Bytes* bytes) {
  using P = gce_binary_problem;
  Case<P> made = empty_case(kBinaryFields, std::size(kBinaryFields));
  gce_binary_problem_init(&made.problem);
  const std::vector<int64_t> shape = take_shape(bytes);
  const int32_t dtype = bytes->one_of(kReals);
  const int chosen = bytes->byte();
  take_scalars(&made.problem, bytes);
  const auto real = [&](std::vector<int64_t> lengths) {
    return make_array(bytes->one_of(kReals), std::move(lengths), bytes, false);
  };
  const auto broadcastable = [&] {
    std::vector<int64_t> lengths = shape;
    const size_t cut = std::min<size_t>(lengths.size(), static_cast<size_t>(bytes->below(4)));
    lengths.erase(lengths.begin(), lengths.begin() + static_cast<std::ptrdiff_t>(cut));
    const uint8_t ones = bytes->byte();
    for (size_t d = 0; d < lengths.size(); ++d) {
      if ((ones >> (d % 8) & 1) != 0) lengths[d] = 1;
    }
    return lengths;
  };
  const bool per_element = made.problem.reduction == GCE_REDUCTION_NONE;
  made.of(&P::logits) = make_array(dtype, shape, bytes, false);
  made.of(&P::targets) = real(shape);
  made.of(&P::gamma) = real(scalar_or(shape, bytes));
  if ((chosen & 1) != 0) made.of(&P::threshold) = real(scalar_or(shape, bytes));
  if ((chosen & 2) != 0) made.of(&P::weight) = real(broadcastable());
  if ((chosen & 4) != 0) made.of(&P::pos_weight) = real(broadcastable());
  if ((chosen & 8) != 0) {
    made.of(&P::grad_output) = real(per_element ? scalar_or(shape, bytes) : std::vector<int64_t>());
  }
  if ((chosen & 16) == 0) {
    const std::vector<int64_t> of_loss = per_element ? shape : std::vector<int64_t>();
    made.of(&P::loss) = make_array(loss_dtype_of(dtype, bytes), of_loss, bytes, true);
  }
  if ((chosen & 32) == 0) made.of(&P::grad) = make_array(dtype, shape, bytes, true);
  edit(&made, bytes);
  give_memory(&made, bytes);
  fill_arrays(&made, 0, bytes);
  return made;
}

}  // namespace fuzz
