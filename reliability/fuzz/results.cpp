#include "results.h"

#include <cmath>
#include <cstring>
#include <string>

#include "storage.h"

namespace fuzz {
namespace {

bool is_in_place(const gce_array& grad, const gce_array& logits) {
  if (grad.data != logits.data || grad.dtype != logits.dtype || grad.ndim != logits.ndim)
    return false;
  for (int32_t d = 0; d < grad.ndim; ++d) {
    if (grad.shape[d] != logits.shape[d]) return false;
    if (grad.shape[d] > 1 && grad.strides[d] != logits.strides[d]) return false;
  }
  return true;
}

std::vector<double> values_in(const Array& array, const std::vector<int64_t>& offsets,
                              const char* block) {
  std::vector<double> values;
  values.reserve(offsets.size());
  for (const int64_t offset : offsets) {
    values.push_back(real_at(block + array.start + offset, array.dtype));
  }
  return values;
}

template <class Problem>
std::vector<double> inputs_of(const Case<Problem>& made, gce_array Problem::* field,
                              const Contents& before) {
  const Array& array = made.of(field);
  if (!array.given || count_of(array.shape) == 0) return {};
  return values_in(array, offsets_of(array), before[static_cast<size_t>(array.block)].data());
}

template <class Problem>
std::vector<double> results_of(const Case<Problem>& made, gce_array Problem::* field) {
  const Array& array = made.of(field);
  if (!array.given || count_of(array.shape) == 0) return {};
  const Block& block = made.blocks[static_cast<size_t>(array.block)];
  return values_in(array, offsets_of(array), block.memory.get());
}

bool are_moderate(const std::vector<double>& values) {
  for (const double x : values) {
    if (!(std::abs(x) <= 1e30)) return false;
  }
  return true;
}

// NaN passes unless it must not be.
void require_within(const std::vector<double>& values, double low, double high, bool may_be_nan,
                    const char* of) {
  for (const double x : values) {
    if (std::isnan(x)) {
      require(may_be_nan, "no NaN", of);
    } else {
      require(x >= low && x <= high, "results within bounds", of);
    }
  }
}

// The first largest logit of each row, or the first NaN.
void check_argmax(const Case<gce_problem>& made, const Contents& before) {
  const Array& argmax = made.of(&gce_problem::argmax);
  const Array& logits = made.of(&gce_problem::logits);
  const gce_problem& p = made.problem;
  if (!argmax.given || p.shift != 0 || p.shard != GCE_SHARD_NONE || p.softcap != 0.0) return;
  if (count_of(argmax.shape) == 0) return;
  const auto axis = static_cast<size_t>(p.axis < 0 ? p.axis + logits.ndim : p.axis);
  Array rows = logits;
  rows.shape[axis] = 1;
  const std::vector<int64_t> of_rows = offsets_of(rows);
  const std::vector<int64_t> of_results = offsets_of(argmax);
  const char* const first = before[static_cast<size_t>(logits.block)].data() + logits.start;
  const char* const results = made.first_of(made.index_of(&gce_problem::argmax));
  for (size_t r = 0; r < of_rows.size(); ++r) {
    int64_t best = 0;
    double largest = real_at(first + of_rows[r], logits.dtype);
    for (int64_t v = 1; v < logits.shape[axis] && !std::isnan(largest); ++v) {
      const double z = real_at(first + of_rows[r] + v * logits.strides[axis], logits.dtype);
      if (!(z > largest) && !std::isnan(z)) continue;
      best = v;
      largest = z;
    }
    require(gce::read<int64_t>(results + of_results[r]) == best, "the first largest logit");
  }
}

}  // namespace

Contents contents_of(const std::vector<Block>& blocks) {
  Contents contents;
  contents.reserve(blocks.size());
  for (const Block& block : blocks) {
    contents.emplace_back(block.memory.get(), block.memory.get() + block.size);
  }
  return contents;
}

void check_error(gce_status status) {
  constexpr const char* kOptions[] = {
      "axis",         "label_smoothing", "z_loss", "softcap",      "shift", "normalizer",
      "ignore_index", "reduction",       "value",  "gauss_newton", "shard", "vector",
      "first_class",  "another output",  "op",     "dtype",        "n"};
  const std::string message = gce_last_error();
  if (status == GCE_OUT_OF_MEMORY) return require(message == "out of memory", "out of memory");
  const bool is_of_argument =
      status == GCE_TYPE_ERROR || status == GCE_VALUE_ERROR || status == GCE_INDEX_ERROR;
  require(is_of_argument, "an error of an argument");
  bool names_one = false;
  const auto look_for = [&](const char* name) {
    const size_t length = std::strlen(name);
    const char after = message.rfind(name, 0) == 0 ? message[length] : '\0';
    names_one = names_one || after == ' ' || after == '[';
  };
  for (const char* name : kOptions) look_for(name);
  for (const auto& field : kRowFields) look_for(field.name);
  for (const auto& field : kBinaryFields) look_for(field.name);
  require(names_one, "a message that begins with an argument's name");
  require(message.find("expected") != std::string::npos, "a message that says what was expected");
}

template <class Problem>
Roles roles_of(const Case<Problem>& made) {
  Roles roles;
  for (const Block& block : made.blocks) roles.emplace_back(block.size, kNothing);
  const Problem whole = made.whole();
  const bool in_place = made.of(&Problem::grad).given && is_in_place(whole.grad, whole.logits);
  for (const Role role : {kInput, kOutput}) {
    for (size_t i = 0; i < made.arrays.size(); ++i) {
      const Array& array = made.arrays[i];
      if (!made.is_used(i) || made.is_output(i) != (role == kOutput) || count_of(array.shape) == 0)
        continue;
      require(role == kInput || array.readonly == 0, "no output that is read-only");
      uint8_t* const first = roles[static_cast<size_t>(array.block)].data() + array.start;
      const bool replaces = in_place && made.fields[i].array == &Problem::grad;
      for (const int64_t offset : offsets_of(array)) {
        for (int64_t byte = 0; byte < gce::size_of(array.dtype); ++byte) {
          uint8_t& of_byte = first[offset + byte];
          const bool is_free =
              role == kInput || of_byte == kNothing || (replaces && of_byte == kInput);
          require(is_free, "outputs that share no memory", made.fields[i].name);
          of_byte |= role;
        }
      }
    }
  }
  return roles;
}
template Roles roles_of(const Case<gce_problem>& made);
template Roles roles_of(const Case<gce_binary_problem>& made);

void check_untouched(const std::vector<Block>& blocks, const Contents& before, const Roles& roles) {
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (size_t i = 0; i < blocks[b].size; ++i) {
      if (blocks[b].memory[i] == before[b][i]) continue;
      require((roles[b][i] & kOutput) != 0, "only outputs to change");
    }
  }
}

void restore(const Contents& before, const Roles& roles, std::vector<Block>* blocks) {
  for (size_t b = 0; b < blocks->size(); ++b) {
    for (size_t i = 0; i < (*blocks)[b].size; ++i) {
      const char byte = before[b][i];
      (*blocks)[b].memory[i] = roles[b][i] == kOutput ? static_cast<char>(~byte) : byte;
    }
  }
}

void check_values(const Case<gce_problem>& made, const Contents& before) {
  using P = gce_problem;
  const P& p = made.problem;
  const double inf = __builtin_inf();
  const bool is_weighted = made.of(&P::weight).given || made.of(&P::sample_weight).given;
  const bool is_whole = p.shard == GCE_SHARD_NONE;
  const bool is_moderate = is_whole && are_moderate(inputs_of(made, &P::logits, before));
  if (!is_weighted && is_whole) {
    // A tiny divisor makes of a gradient's parts infinities, of both signs.
    const bool is_overflowing = p.z_loss != 0.0 || (p.has_normalizer != 0 && p.normalizer < 1e-30);
    const bool may_be_nan = !is_moderate || is_overflowing;
    require_within(results_of(made, &P::loss), 0.0, inf, may_be_nan, "loss");
    const bool is_factored = made.of(&P::vector).given || made.of(&P::grad_output).given;
    if (!is_factored) require_within(results_of(made, &P::grad), -inf, inf, may_be_nan, "grad");
  }
  if (is_whole) {
    // Of probabilities, which need not add up to 1, it is a sum.
    const double most = made.of(&P::targets).dtype <= GCE_FLOAT64 ? inf : 1.0;
    require_within(results_of(made, &P::grad_weight), 0.0, most, !is_moderate, "grad_weight");
    require_within(results_of(made, &P::target_log_prob), -inf, 0.0, !is_moderate,
                   "target_log_prob");
    require_within(results_of(made, &P::logsumexp), -inf, inf, !is_moderate, "logsumexp");
  }
  check_argmax(made, before);
}

void check_values(const Case<gce_binary_problem>& made, const Contents& before) {
  using P = gce_binary_problem;
  const double inf = __builtin_inf();
  if (made.of(&P::weight).given || made.of(&P::pos_weight).given) return;
  const P& p = made.problem;
  const bool is_moderate = are_moderate(inputs_of(made, &P::logits, before)) &&
                           (p.has_normalizer == 0 || p.normalizer >= 1e-30);
  require_within(results_of(made, &P::loss), 0.0, inf, !is_moderate, "loss");
  if (made.of(&P::grad_output).given) return;
  require_within(results_of(made, &P::grad), -inf, inf, !is_moderate, "grad");
}

}  // namespace fuzz
