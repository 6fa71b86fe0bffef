#include "limits.h"

#include "numpy_api.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "gce/limits.h"
#include "threads.h"

namespace py = pybind11;

namespace gce_python {
namespace {

constexpr int64_t kPiece = 64 * 1024;  // floats: what a thread takes at a time
constexpr int kMostThreads = 256;      // whatever num_threads says

struct Floats {
  float* data;
  int64_t size;
};

Floats floats_of(const char* name, py::handle object, bool to_write) {
  const std::string wanted = std::string(name) + ": expected a contiguous array of float32";
  if (!PyArray_Check(object.ptr())) throw py::type_error(wanted);
  auto* array = reinterpret_cast<PyArrayObject*>(object.ptr());
  const bool native = PyArray_ISNOTSWAPPED(array) && PyArray_ISALIGNED(array);
  if (PyArray_TYPE(array) != NPY_FLOAT32 || !native) throw py::type_error(wanted);
  if (!PyArray_IS_C_CONTIGUOUS(array)) throw py::value_error(wanted);
  if (to_write && !PyArray_ISWRITEABLE(array)) {
    throw py::value_error(std::string(name) + " is read-only");
  }
  return {static_cast<float*>(PyArray_DATA(array)), PyArray_SIZE(array)};
}

// The operation on all of the arrays, piece by piece; the largest of the values that it gives.
float run(gce_limit_op op, float* to, const float* from, int64_t n, float factor, int num_threads) {
  if (num_threads < 1) {
    throw py::value_error("num_threads = " + std::to_string(num_threads) + ", expected at least 1");
  }
  const char* isa = nullptr;  // chosen now, so that nothing can fail on the threads
  if (gce_isa_in_use(&isa) != GCE_OK) throw std::runtime_error(gce_last_error());
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  const int64_t most = std::min(num_threads, kMostThreads);
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min(most, pieces)));
  std::vector<float> values(static_cast<size_t>(threads), -std::numeric_limits<float>::infinity());
  std::atomic<int64_t> next{0};
  const auto work = [&](int thread) {
    for (int64_t piece = next++; piece < pieces; piece = next++) {
      const int64_t start = piece * kPiece;
      float value = factor;
      gce_limit(op, to == nullptr ? to : to + start, from == nullptr ? from : from + start,
                std::min(kPiece, n - start), &value);
      float& largest = values[static_cast<size_t>(thread)];
      largest = std::max(largest, value);
    }
  };
  const py::gil_scoped_release released;
  run_on_threads(threads, work);
  return *std::max_element(values.begin(), values.end());
}

}  // namespace

float limit_read(py::handle array, int num_threads, bool cached) {
  const Floats from = floats_of("array", array, false);
  const gce_limit_op op = cached ? GCE_LIMIT_READ_CACHED : GCE_LIMIT_READ;
  return run(op, nullptr, from.data, from.size, 0.0f, num_threads);
}

void limit_copy(py::handle out, py::handle array, int num_threads, bool cached) {
  const Floats to = floats_of("out", out, true);
  const Floats from = floats_of("array", array, false);
  if (to.size != from.size) {
    throw py::value_error("out has " + std::to_string(to.size) + " elements, array has " +
                          std::to_string(from.size));
  }
  if (to.data < from.data + from.size && from.data < to.data + to.size) {
    throw py::value_error("out and array share memory");
  }
  const gce_limit_op op = cached ? GCE_LIMIT_COPY_CACHED : GCE_LIMIT_COPY;
  run(op, to.data, from.data, to.size, 0.0f, num_threads);
}

void limit_scale(py::handle array, float factor, int num_threads) {
  const Floats to = floats_of("array", array, true);
  run(GCE_LIMIT_SCALE, to.data, nullptr, to.size, factor, num_threads);
}

}  // namespace gce_python
