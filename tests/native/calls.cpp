// One call of the C ABI, for tests/test_instructions.py to count what it costs:
//
//   calls <rows> <classes> <inner> <1 if with gradient> <dtype: float32 | float64>
//
// Logits [rows, classes, inner], the class axis in the middle; inner = 1 makes it the last.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gce/gce.h"

namespace {

template <class Scalar>
int run(int64_t rows, int64_t classes, int64_t inner, bool grad, int32_t dtype) {
  const size_t count = static_cast<size_t>(rows * classes * inner);
  std::vector<Scalar> logits(count);
  std::vector<Scalar> out(count);
  std::vector<int64_t> targets(static_cast<size_t>(rows * inner));
  uint32_t state = 1;
  const auto random = [&state] { return (state = state * 1664525u + 1013904223u) >> 8; };
  for (Scalar& logit : logits) logit = static_cast<Scalar>(random() % 2000) / 200 - 5;
  for (int64_t& target : targets) target = static_cast<int64_t>(random()) % classes;
  double gamma = 0.5;
  Scalar loss = 0;

  const int64_t size = static_cast<int64_t>(sizeof(Scalar));
  const int64_t shape[] = {rows, classes, inner};
  const int64_t strides[] = {classes * inner * size, inner * size, size};
  const int64_t target_shape[] = {rows, inner};
  const int64_t target_strides[] = {inner * 8, 8};
  const auto array = [](void* data, int32_t type, int32_t ndim, const int64_t* s,
                        const int64_t* t) {
    gce_array a = {};
    a.data = data;
    a.dtype = static_cast<gce_dtype>(type);
    a.ndim = ndim;
    a.shape = s;
    a.strides = t;
    return a;
  };
  gce_problem problem;
  gce_problem_init(&problem);
  problem.axis = 1;
  problem.logits = array(logits.data(), dtype, 3, shape, strides);
  problem.targets = array(targets.data(), GCE_INT64, 2, target_shape, target_strides);
  problem.gamma = array(&gamma, GCE_FLOAT64, 0, nullptr, nullptr);
  problem.loss = array(&loss, dtype, 0, nullptr, nullptr);
  if (grad) problem.grad = array(out.data(), dtype, 3, shape, strides);
  if (gce_run(&problem) != GCE_OK) {
    std::fprintf(stderr, "%s\n", gce_last_error());
    return 1;
  }
  const char* isa = nullptr;
  if (gce_isa_in_use(&isa) != GCE_OK) return 1;
  std::printf("%s %.6f\n", isa, static_cast<double>(loss));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const int64_t rows = std::atoll(argv[1]);
  const int64_t classes = std::atoll(argv[2]);
  const int64_t inner = std::atoll(argv[3]);
  const bool grad = std::atoi(argv[4]) != 0;
  if (std::strcmp(argv[5], "float64") == 0) {
    return run<double>(rows, classes, inner, grad, GCE_FLOAT64);
  }
  return run<float>(rows, classes, inner, grad, GCE_FLOAT32);
}
