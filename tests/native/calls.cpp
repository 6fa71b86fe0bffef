// One call of the C ABI, for tests/test_instructions.py to count what it costs:
//
//   calls <what> <rows> <classes> <inner> <gamma> <dtype: float32 | float64>
//
// Logits [rows, classes, inner], the class axis in the middle; inner = 1 makes it the last. What: loss, or with the
// gradient one of kWithGradient.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <vector>

#include "gce/gce.h"

namespace {

const std::string kWithGradient[] = {"loss_and_grad", "probabilities", "softcap", "hvp", "binary"};

struct Shape {
  int64_t rows;
  int64_t classes;
  int64_t inner;
};

gce_array array_of(void* data, int32_t dtype, int32_t ndim, const int64_t* shape,
                   const int64_t* strides) {
  gce_array array = {};
  array.data = data;
  array.dtype = dtype;
  array.ndim = ndim;
  array.shape = shape;
  array.strides = strides;
  return array;
}

gce_status run_binary(const gce_problem& of, const gce_array& targets) {
  gce_binary_problem problem;
  gce_binary_problem_init(&problem);
  problem.logits = of.logits;
  problem.targets = targets;
  problem.gamma = of.gamma;
  problem.loss = of.loss;
  problem.grad = of.grad;
  return gce_binary_run(&problem);
}

template <class Scalar>
gce_status run(const std::string& what, const Shape& s, double gamma, int32_t dtype) {
  const size_t count = static_cast<size_t>(s.rows * s.classes * s.inner);
  std::vector<Scalar> logits(count);
  std::vector<Scalar> unit(count);  // probabilities, the vector of a product, or binary targets
  std::vector<Scalar> out(count);
  std::vector<int64_t> indices(static_cast<size_t>(s.rows * s.inner));
  uint32_t state = 1;
  const auto random = [&state] { return (state = state * 1664525u + 1013904223u) >> 8; };
  for (Scalar& logit : logits) logit = static_cast<Scalar>(random() % 2000) / 200 - 5;
  for (int64_t& index : indices) index = static_cast<int64_t>(random()) % s.classes;
  for (Scalar& number : unit) number = static_cast<Scalar>(random() % 1000) / 1000;
  Scalar loss = 0;

  const int64_t size = static_cast<int64_t>(sizeof(Scalar));
  const int64_t shape[] = {s.rows, s.classes, s.inner};
  const int64_t strides[] = {s.classes * s.inner * size, s.inner * size, size};
  const int64_t row_shape[] = {s.rows, s.inner};
  const int64_t row_strides[] = {s.inner * 8, 8};
  const gce_array units = array_of(unit.data(), dtype, 3, shape, strides);
  gce_problem problem;
  gce_problem_init(&problem);
  problem.axis = 1;
  problem.logits = array_of(logits.data(), dtype, 3, shape, strides);
  problem.targets = array_of(indices.data(), GCE_INT64, 2, row_shape, row_strides);
  problem.gamma = array_of(&gamma, GCE_FLOAT64, 0, nullptr, nullptr);
  if (what == "probabilities") problem.targets = units;
  if (what == "softcap") problem.softcap = 5.0;
  if (what == "hvp") {
    problem.vector = units;
  } else {
    problem.loss = array_of(&loss, dtype, 0, nullptr, nullptr);
  }
  if (what != "loss") problem.grad = array_of(out.data(), dtype, 3, shape, strides);
  return what == "binary" ? run_binary(problem, units) : gce_run(&problem);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const std::string what = argv[1];
  const bool is_known =
      what == "loss" || std::count(std::begin(kWithGradient), std::end(kWithGradient), what) > 0;
  if (!is_known) return 2;
  const Shape shape = {std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4])};
  const double gamma = std::atof(argv[5]);
  const gce_status status = std::string(argv[6]) == "float64"
                                ? run<double>(what, shape, gamma, GCE_FLOAT64)
                                : run<float>(what, shape, gamma, GCE_FLOAT32);
  const char* isa = nullptr;
  if (status != GCE_OK || gce_isa_in_use(&isa) != GCE_OK) {
    std::fprintf(stderr, "%s\n", gce_last_error());
    return 1;
  }
  std::printf("%s\n", isa);
  return 0;
}
