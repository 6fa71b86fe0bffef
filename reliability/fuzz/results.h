// What holds of every call, whatever it was.
#ifndef GCE_RELIABILITY_FUZZ_RESULTS_H_
#define GCE_RELIABILITY_FUZZ_RESULTS_H_

#include <cstdint>
#include <vector>

#include "arrays.h"
#include "gce/gce.h"
#include "problems.h"

namespace fuzz {

// The bytes of each block.
using Contents = std::vector<std::vector<char>>;
Contents contents_of(const std::vector<Block>& blocks);

// A message that names an argument.
void check_error(gce_status status);

// What each byte of each block is part of.
enum Role : uint8_t { kNothing = 0, kInput = 1, kOutput = 2 };
using Roles = std::vector<std::vector<uint8_t>>;
// Requires that outputs share no byte with one another or with an input, but for a gradient in place.
template <class Problem>
Roles roles_of(const Case<Problem>& made);

// Only outputs have changed.
void check_untouched(const std::vector<Block>& blocks, const Contents& before, const Roles& roles);

// Inputs as they were before, and other rubbish in the outputs.
void restore(const Contents& before, const Roles& roles, std::vector<Block>* blocks);

// Results are within their bounds. `before` has the inputs, which a gradient may have replaced.
void check_values(const Case<gce_problem>& made, const Contents& before);
void check_values(const Case<gce_binary_problem>& made, const Contents& before);

}  // namespace fuzz

#endif  // GCE_RELIABILITY_FUZZ_RESULTS_H_
