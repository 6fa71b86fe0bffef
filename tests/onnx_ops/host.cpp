// A host without Python: opens ONNX Runtime and the operator's library by their paths, runs a model
// whose one node is the operator, and compares with the loss' formulas.
//
//   host LIBONNXRUNTIME LIBGCE_ORT MODEL
//
// MODEL: scores float [N, C], labels int64 [N], gamma float [] -> loss float [], the mean; grad
// float [N, C]. Prints a line for each check; the exit code is 1 if one failed.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "host_abi.h"
#include "ort_abi.h"

namespace {

using gce_onnx::Api;
using gce_onnx::ApiBase;
using gce_onnx::HostApi;

int passed = 0;
int failed = 0;

void check(bool holds, const std::string& what) {
  std::printf("%s: %s\n", holds ? "ok" : "FAILED", what.c_str());
  ++(holds ? passed : failed);
}

[[noreturn]] void give_up(const std::string& why) {
  std::printf("FAILED: %s\n", why.c_str());
  std::exit(1);
}

// --- the runtime ---------------------------------------------------------------------------------

const Api* api = nullptr;  // the same table: each names some of its slots
const HostApi* host = nullptr;

// An error of the runtime, or none; the status itself is released.
struct Status {
  int code = 0;
  std::string message;

  explicit Status(OrtStatus* status) {
    if (status == nullptr) return;
    code = host->GetErrorCode()(status);
    message = api->GetErrorMessage()(status);
    api->ReleaseStatus()(status);
  }
};

// For calls that cannot be what is tested.
void must(OrtStatus* status) {
  const Status told(status);
  if (told.code != 0) give_up(told.message);
}

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

void open_runtime(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) give_up(dlerror());
  const auto get_base = reinterpret_cast<const ApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  if (get_base == nullptr) give_up("OrtGetApiBase is missing");
  std::printf("ONNX Runtime %s\n", get_base()->get_version());
  api = get_base()->get_api(17);
  if (api == nullptr) give_up("the runtime is older than 1.17");
  host = reinterpret_cast<const HostApi*>(api);
}

Owned<OrtSessionOptions> new_options(int threads) {
  OrtSessionOptions* options = nullptr;
  must(host->CreateSessionOptions()(&options));
  must(host->SetIntraOpNumThreads()(options, threads));
  return {options, host->ReleaseSessionOptions()};
}

// A process' environment, and where its models and the library are.
struct Place {
  const OrtEnv* environment;
  const OrtMemoryInfo* memory;
  const char* library;
  const char* model;

  Status add_library(OrtSessionOptions* options) const {
    return Status(host->RegisterCustomOpsLibrary_V2()(options, library));
  }

  Status open(const OrtSessionOptions* options, OrtSession** session) const {
    return Status(host->CreateSession()(environment, model, options, session));
  }

  Owned<OrtSession> new_session(int threads) const {
    const Owned<OrtSessionOptions> options = new_options(threads);
    must(host->RegisterCustomOpsLibrary_V2()(options.get(), library));
    OrtSession* session = nullptr;
    must(host->CreateSession()(environment, model, options.get(), &session));
    return {session, host->ReleaseSession()};
  }

  template <class T>
  Owned<OrtValue> tensor(const std::vector<T>& data, const std::vector<int64_t>& dims,
                         int type) const {
    OrtValue* value = nullptr;
    // The runtime only reads a run's inputs.
    must(host->CreateTensorWithDataAsOrtValue()(memory, const_cast<T*>(data.data()),
                                                data.size() * sizeof(T), dims.data(), dims.size(),
                                                type, &value));
    return {value, host->ReleaseValue()};
  }
};

// --- one problem, by the runtime and by the formula ----------------------------------------------

struct Problem {
  int64_t rows;
  int64_t classes;
  std::vector<float> gamma;  // one element: a scalar
  std::vector<float> scores;
  std::vector<int64_t> labels;

  Problem(int64_t rows, int64_t classes, float gamma)
      : rows(rows), classes(classes), gamma{gamma}, scores(size_of(rows * classes)) {
    uint32_t state = 1;
    for (float& score : scores) {
      state = state * 1664525u + 1013904223u;
      score = static_cast<float>(state >> 8) * 0x1p-21f - 4.0f;  // from -4 to 4
    }
    for (int64_t r = 0; r < rows; ++r) labels.push_back(r * 7 % classes);
  }

  static size_t size_of(int64_t count) { return static_cast<size_t>(count); }
};

struct Result {
  float loss = -77.0f;
  std::vector<float> grad;

  bool operator==(const Result& other) const {  // bit for bit
    return std::memcmp(&loss, &other.loss, sizeof(loss)) == 0 && grad.size() == other.grad.size() &&
           std::memcmp(grad.data(), other.grad.data(), grad.size() * sizeof(float)) == 0;
  }
};

// Touches nothing that other threads may not touch at the same time.
Status run(const Place& place, OrtSession* session, const Problem& problem, Result* result) {
  const auto scores =
      place.tensor(problem.scores, {problem.rows, problem.classes}, gce_onnx::kFloat);
  const auto labels = place.tensor(problem.labels, {problem.rows}, gce_onnx::kInt64);
  const auto gamma = place.tensor(problem.gamma, {}, gce_onnx::kFloat);
  const char* const input_names[] = {"scores", "labels", "gamma"};
  const char* const output_names[] = {"loss", "grad"};
  const OrtValue* const inputs[] = {scores.get(), labels.get(), gamma.get()};
  OrtValue* outputs[2] = {nullptr, nullptr};
  Status status(host->Run()(session, nullptr, input_names, inputs, 3, output_names, 2, outputs));
  const Owned<OrtValue> loss(outputs[0], host->ReleaseValue());
  const Owned<OrtValue> grad(outputs[1], host->ReleaseValue());
  if (status.code != 0) return status;
  void* data = nullptr;
  must(api->GetTensorMutableData()(loss.get(), &data));
  result->loss = *static_cast<const float*>(data);
  must(api->GetTensorMutableData()(grad.get(), &data));
  const auto* elements = static_cast<const float*>(data);
  result->grad.assign(elements, elements + problem.scores.size());
  return status;
}

Result run_well(const Place& place, OrtSession* session, const Problem& problem) {
  Result result;
  const Status status = run(place, session, problem, &result);
  if (status.code != 0) give_up(status.message);
  return result;
}

// q = softmax(z), p = q[y]; L = -log(gamma + (1 - gamma) p) / (1 - gamma), or 1 - p at gamma = 1;
// dL/dz = p / (gamma + (1 - gamma) p) (q - e_y). The result is of their mean over the rows; the
// error is the largest, of the mean's loss (relative, above 1) or of a row's gradient.
double error_of(const Problem& problem, const Result& result) {
  const double gamma = problem.gamma[0];
  const double rows = static_cast<double>(problem.rows);
  const auto classes = Problem::size_of(problem.classes);
  double loss = 0.0;
  double error = 0.0;
  for (size_t r = 0; r < problem.labels.size(); ++r) {
    const float* z = &problem.scores[r * classes];
    const double highest = *std::max_element(z, z + classes);
    double sum = 0.0;
    for (size_t v = 0; v < classes; ++v) sum += std::exp(z[v] - highest);
    const auto y = static_cast<size_t>(problem.labels[r]);
    const double p = std::exp(z[y] - highest) / sum;
    const double s = gamma + (1.0 - gamma) * p;
    loss += gamma == 1.0 ? 1.0 - p : -std::log(s) / (1.0 - gamma);
    for (size_t v = 0; v < classes; ++v) {
      const double q = std::exp(z[v] - highest) / sum;
      const double grad = p / s * (q - (v == y ? 1.0 : 0.0));
      error = std::max(error, std::fabs(grad - rows * result.grad[r * classes + v]));
    }
  }
  return std::max(error, std::fabs(loss / rows - result.loss) / std::max(1.0, loss / rows));
}

// --- the checks ----------------------------------------------------------------------------------

void check_formula(const Place& place) {
  const Owned<OrtSession> session = place.new_session(1);
  for (const float gamma : {0.0f, 0.3f, 1.0f}) {
    const Problem problem(6, 5, gamma);
    const double error = error_of(problem, run_well(place, session.get(), problem));
    char text[100];
    std::snprintf(text, sizeof(text), "formula, gamma = %g: off by %.1e", problem.gamma[0], error);
    check(error < 1e-6, text);
  }
}

void check_registration(const Place& place) {
  const Owned<OrtSessionOptions> options = new_options(1);
  OrtSession* session = nullptr;
  check(place.open(options.get(), &session).code != 0, "without the library the model is refused");
  check(place.add_library(options.get()).code == 0, "the library is registered");
  check(place.add_library(options.get()).code == 0, "and again with the same options");
  const Status opened = place.open(options.get(), &session);
  check(opened.code == 0, "these options make a session " + opened.message);
  const Owned<OrtSession> first(session, host->ReleaseSession());
  if (session == nullptr) return;

  // Sessions share the domain: it must outlive each of them.
  const Problem problem(6, 5, 0.3f);
  const Result expected = run_well(place, session, problem);
  const bool same = run_well(place, place.new_session(1).get(), problem) == expected;
  check(same, "another session, now closed, gave the same");
  check(run_well(place, session, problem) == expected, "the first one still does");
}

void check_error(const Place& place) {
  const Owned<OrtSession> session = place.new_session(1);
  Problem problem(3, 5, 0.3f);
  const Result expected = run_well(place, session.get(), problem);
  problem.labels[1] = 9;
  Result result;
  const Status status = run(place, session.get(), problem, &result);
  check(status.code == gce_onnx::kInvalidArgument, "a label out of range is an INVALID_ARGUMENT");
  const bool told =
      status.message.find("targets[1] = 9, expected 0 <= target < 5") != std::string::npos;
  check(told, "whose message says: " + status.message);
  problem.labels[1] = 2;
  check(run_well(place, session.get(), problem) == expected, "the session works on");
}

void check_concurrent_runs(const Place& place) {
  constexpr size_t kThreads = 4;
  constexpr int kRuns = 25;
  const Owned<OrtSession> session = place.new_session(2);
  const Problem problem(256, 1000, 0.3f);  // enough for more than one worker in each run
  const Result expected = run_well(place, session.get(), problem);
  std::vector<int> good(kThreads, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRuns; ++i) {
        Result result;
        const bool ran = run(place, session.get(), problem, &result).code == 0;
        good[t] += ran && result == expected ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const bool all = std::all_of(good.begin(), good.end(), [](int n) { return n == kRuns; });
  check(all, "threads that share a session get the same bits");
}

void check_threads(const Place& place) {
  const Problem problem(512, 1000, 0.3f);
  const Result alone = run_well(place, place.new_session(1).get(), problem);
  const Result shared = run_well(place, place.new_session(2).get(), problem);
  check(error_of(problem, alone) < 1e-6, "a larger batch is as the formula says");
  check(alone == shared, "sessions of one thread and of two give the same bits");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) give_up("expected: LIBONNXRUNTIME LIBGCE_ORT MODEL");
  open_runtime(arguments[1]);
  OrtEnv* environment = nullptr;
  must(host->CreateEnv()(gce_onnx::kFatalOnly, "gce", &environment));
  const Owned<OrtEnv> owned_environment(environment, host->ReleaseEnv());
  OrtMemoryInfo* memory = nullptr;
  must(host->CreateCpuMemoryInfo()(gce_onnx::kDeviceAllocator, gce_onnx::kDefaultMemory, &memory));
  const Owned<OrtMemoryInfo> owned_memory(memory, host->ReleaseMemoryInfo());

  const Place place = {environment, memory, arguments[2], arguments[3]};
  check_formula(place);
  check_registration(place);
  check_error(place);
  check_concurrent_runs(place);
  check_threads(place);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
