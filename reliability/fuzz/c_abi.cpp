// A libFuzzer target: calls of the C ABI of which every byte is the fuzzer's.
//
// Beside what the sanitizers see, each call is held to this: an error writes nothing and says what was wrong; a success
// writes every byte of every output and no other, the same bytes whoever works in which order and whatever was there
// before; the results are within their bounds. Memory may run out at any allocation.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"
#include "arrays.h"
#include "bytes.h"
#include "gce/gce.h"
#include "problems.h"
#include "results.h"

namespace fuzz {
namespace {

// How a call is made.
struct Way {
  bool directly;  // by gce_run
  int32_t max_workers;
  int order;    // of the workers: forwards, backwards, at once
  int failing;  // the allocation that fails, from 1 on; or 0
};

Way take_way(Bytes* bytes) {
  constexpr int32_t kWorkers[] = {1, 2, 3, 5, 64, 0, -1, INT32_MAX, INT32_MIN};
  Way way = {};
  way.max_workers = bytes->one_of(kWorkers);
  way.order = bytes->below(3);
  way.directly = bytes->rarely(4);
  way.failing = bytes->rarely(16) ? 1 + bytes->below(24) : 0;
  return way;
}

// As different as can be.
Way other_than(const Way& way) { return {!way.directly, way.max_workers == 1 ? 3 : 1, 1, 0}; }

gce_status create(const gce_problem& problem, int32_t max_workers, gce_plan** plan) {
  return gce_plan_create(&problem, max_workers, plan);
}
gce_status create(const gce_binary_problem& problem, int32_t max_workers, gce_plan** plan) {
  return gce_binary_plan_create(&problem, max_workers, plan);
}
gce_status run(const gce_problem& problem) { return gce_run(&problem); }
gce_status run(const gce_binary_problem& problem) { return gce_binary_run(&problem); }

void work(gce_plan* plan, int32_t workers, int order) {
  if (order < 2 || workers > 64) {
    for (int32_t i = 0; i < workers; ++i) gce_plan_work(plan, order == 0 ? i : workers - 1 - i);
    return;
  }
  std::vector<std::thread> threads;
  for (int32_t i = 1; i < workers; ++i) threads.emplace_back([=] { gce_plan_work(plan, i); });
  gce_plan_work(plan, 0);
  for (std::thread& thread : threads) thread.join();
}

template <class Problem>
gce_status call(const Case<Problem>& made, const Way& way) {
  // The struct need not outlive the making of the plan, nor its arrays' shapes that of the plan.
  const Problem problem = made.whole();
  if (way.directly) {
    const FailingAllocation failing(way.failing);
    return run(problem);
  }
  gce_plan* plan = nullptr;
  gce_status status;
  {
    const FailingAllocation failing(way.failing);
    status = create(problem, way.max_workers, &plan);
  }
  require((plan != nullptr) == (status == GCE_OK),
          "a plan where there is no error, and only there");
  if (plan == nullptr) return status;
  const int32_t workers = gce_plan_workers(plan);
  require(workers >= 1 && workers <= std::max(1, way.max_workers), "1 to max_workers workers");
  work(plan, workers, way.order);
  gce_plan_finish(plan);
  return status;
}

template <class Problem>
void test(Case<Problem> made, const Way& way) {
  if (!made.is_possible) return;
  const Contents before = contents_of(made.blocks);
  const gce_status status = call(made, way);
  require(!made.must_fail || status != GCE_OK, "an error for arrays that no memory can hold");
  if (status != GCE_OK) {
    check_error(status);
    require(contents_of(made.blocks) == before, "nothing written where there is an error");
    return;
  }
  const Roles roles = roles_of(made);
  check_untouched(made.blocks, before, roles);
  check_values(made, before);
  const Contents results = contents_of(made.blocks);
  restore(before, roles, &made.blocks);
  require(call(made, other_than(way)) == GCE_OK, "the same call to succeed again");
  require(contents_of(made.blocks) == results, "the same bytes from any number of workers");
}

// The elementwise functions.
void test_pointwise(Bytes* bytes) {
  constexpr int64_t kLengths[] = {1, 2, 3, 4, 7, 8, 9, 16, 33, 100, 0};
  int32_t op = bytes->below(3);
  int32_t dtype = bytes->rarely(2) ? GCE_FLOAT64 : GCE_FLOAT32;
  int64_t n = bytes->one_of(kLengths);
  const int edits = bytes->below(8);
  const bool is_valid = edits < 5;
  const size_t inputs = op == GCE_POINTWISE_GAMMA_GRAD ? 2 : 3;
  std::vector<Block> blocks;
  std::vector<Array> arrays;
  for (size_t i = 0; i <= inputs; ++i) {
    const bool is_real64 = i > 0 && i < inputs;
    arrays.push_back(make_array(is_real64 ? GCE_FLOAT64 : dtype, {n}, bytes, i == inputs));
    allocate(&arrays.back(), bytes->rarely(4) ? bytes->below(8) : 0, &blocks);
    if (i < inputs) {
      fill(arrays.back(), i == 0 ? Content::kLogits : Content::kUnit, 0, bytes, &blocks);
    }
  }
  if (bytes->rarely(4)) arrays.back() = arrays.front();  // in place
  if (edits == 5) op = static_cast<int32_t>(bytes->any_integer());
  const int32_t made_of = dtype;
  if (edits == 6) dtype = static_cast<int32_t>(bytes->any_integer());
  if (dtype == GCE_FLOAT64 && made_of == GCE_FLOAT32) return;  // there are half as many bytes
  if (edits == 7) n = -1 - bytes->below(3);
  std::vector<char*> data;
  std::vector<int64_t> strides;
  for (const Array& array : arrays) {
    data.push_back(blocks[static_cast<size_t>(array.block)].memory.get() + array.start);
    strides.push_back(array.strides[0]);
  }
  const bool op_is_valid = op >= 0 && op < 3;
  if (op_is_valid && op != GCE_POINTWISE_GAMMA_GRAD && inputs == 2) return;  // lacks an argument
  const Contents before = contents_of(blocks);
  int64_t out_of_range = -1;
  const gce_status status = gce_pointwise(op, dtype, n, data.data(), strides.data(), &out_of_range);
  const bool is_good =
      is_valid || (edits == 5 && op_is_valid) || (edits == 6 && (dtype == GCE_FLOAT32));
  if (is_good && edits != 6) require(status == GCE_OK, "gce_pointwise to succeed");
  if (!op_is_valid || n < 0) require(status == GCE_VALUE_ERROR, "an error of gce_pointwise");
  if (dtype != GCE_FLOAT32 && dtype != GCE_FLOAT64) require(status != GCE_OK, "a dtype's error");
  if (status == GCE_OK) {
    require(out_of_range >= 0 && out_of_range <= 2 * n, "0 to 2 n numbers out of range");
  } else {
    check_error(status);
    require(contents_of(blocks) == before, "nothing written where there is an error");
  }
}

void test_names(Bytes* bytes) {
  constexpr const char* kNames[] = {"mean",     "sum",  "none",   "primitive", "surrogate",
                                    "baseline", "avx2", "avx512", "neon",      ""};
  std::string name = bytes->one_of(kNames);
  if (bytes->rarely(2)) {
    for (int left = bytes->below(16); left > 0; --left) name += static_cast<char>(bytes->byte());
  }
  const char* const given = bytes->rarely(16) ? nullptr : name.c_str();
  const std::string text = name.c_str();  // up to a zero
  auto reduction = GCE_REDUCTION_NONE;
  auto value = GCE_VALUE_PRIMITIVE;
  const bool is_reduction = given != nullptr && (text == "mean" || text == "sum" || text == "none");
  const bool is_value = given != nullptr && (text == "primitive" || text == "surrogate");
  gce_status status = gce_reduction_from_name(given, &reduction);
  require((status == GCE_OK) == is_reduction, "reductions to be those that have a name");
  if (status != GCE_OK) check_error(status);
  status = gce_value_from_name(given, &value);
  require((status == GCE_OK) == is_value, "values to be those that have a name");
  if (status != GCE_OK) check_error(status);
  status = gce_isa_select(given);
  const char* in_use = nullptr;
  require(gce_isa_in_use(&in_use) == GCE_OK, "an ISA");
  if (status != GCE_OK) {
    require(*gce_last_error() != '\0', "a message");
  } else if (given != nullptr) {
    require(text == in_use, "the ISA that was selected");
  }
  int32_t supported = 0;
  const auto number = static_cast<int32_t>(bytes->any_integer());
  const char* const of_number = gce_isa_name(number, &supported);
  require(number >= 0 || of_number == nullptr, "no ISA of a negative number");
}

// One that this CPU has; zero is the best.
void select_isa(int number) {
  std::vector<const char*> names;
  int32_t supported = 0;
  for (int32_t i = 0; const char* name = gce_isa_name(i, &supported); ++i) {
    if (supported != 0) names.push_back(name);
  }
  const char* const name = names[static_cast<size_t>(number) % names.size()];
  require(gce_isa_select(name) == GCE_OK, "this CPU to have an ISA", name);
}

void test_one(Bytes* bytes) {
  const int what = bytes->below(16);
  select_isa(bytes->byte());
  const Way way = take_way(bytes);
  if (what < 10) return test(rows_case(bytes), way);
  if (what < 14) return test(binary_case(bytes), way);
  if (what == 14) return test_pointwise(bytes);
  test_names(bytes);
}

}  // namespace
}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Bytes bytes(data, size);
  fuzz::test_one(&bytes);
  return 0;
}
