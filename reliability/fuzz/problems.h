// A fuzzer's bytes as a call: a valid problem first, then, often, a few edits of anything in it.
#ifndef GCE_RELIABILITY_FUZZ_PROBLEMS_H_
#define GCE_RELIABILITY_FUZZ_PROBLEMS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "arrays.h"
#include "bytes.h"
#include "gce/gce.h"

namespace fuzz {

template <class Problem>
struct Field {
  const char* name;  // in error messages
  gce_array Problem::* array;
  bool is_output;
};

inline constexpr Field<gce_problem> kRowFields[] = {
    {"logits", &gce_problem::logits, false},
    {"targets", &gce_problem::targets, false},
    {"gamma", &gce_problem::gamma, false},
    {"threshold", &gce_problem::threshold, false},
    {"weight", &gce_problem::weight, false},
    {"sample_weight", &gce_problem::sample_weight, false},
    {"grad_output", &gce_problem::grad_output, false},
    {"vector", &gce_problem::vector, false},
    {"stats", &gce_problem::shard_stats, false},  // an output of GCE_SHARD_PARTIAL
    {"loss", &gce_problem::loss, true},
    {"out", &gce_problem::grad, true},
    {"target_log_prob", &gce_problem::target_log_prob, true},
    {"logsumexp", &gce_problem::logsumexp, true},
    {"grad_weight", &gce_problem::grad_weight, true},
    {"argmax", &gce_problem::argmax, true},
    {"gamma_grad", &gce_problem::gamma_grad, true},
};
inline constexpr Field<gce_binary_problem> kBinaryFields[] = {
    {"logits", &gce_binary_problem::logits, false},
    {"targets", &gce_binary_problem::targets, false},
    {"gamma", &gce_binary_problem::gamma, false},
    {"threshold", &gce_binary_problem::threshold, false},
    {"weight", &gce_binary_problem::weight, false},
    {"pos_weight", &gce_binary_problem::pos_weight, false},
    {"grad_output", &gce_binary_problem::grad_output, false},
    {"loss", &gce_binary_problem::loss, true},
    {"out", &gce_binary_problem::grad, true},
};

// A problem and its arrays, in the order of the fields above.
template <class Problem>
struct Case {
  const Field<Problem>* fields;
  Problem problem;  // without the arrays
  std::vector<Array> arrays;
  std::vector<Block> blocks;
  bool is_possible = true;  // else this machine cannot hold it, or it would take too long
  bool must_fail = false;   // some array has no memory

  bool is_output(size_t i) const;
  // Given, and not ignored.
  bool is_used(size_t i) const;
  // With the arrays as they lie in memory.
  Problem whole() const;
  size_t index_of(gce_array Problem::* array) const;
  Array& of(gce_array Problem::* array) { return arrays[index_of(array)]; }
  const Array& of(gce_array Problem::* array) const { return arrays[index_of(array)]; }
  char* first_of(size_t i) const {
    return blocks[static_cast<size_t>(arrays[i].block)].memory.get() + arrays[i].start;
  }
};

Case<gce_problem> rows_case(Bytes* bytes);
Case<gce_binary_problem> binary_case(Bytes* bytes);

}  // namespace fuzz

#endif  // GCE_RELIABILITY_FUZZ_PROBLEMS_H_
