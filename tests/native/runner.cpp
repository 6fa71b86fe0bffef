// Runs calls of the C ABI that arrive on stdin and answers on stdout, so that the tests can drive a core
// built for another machine (in an emulator) or with other flags (sanitizers). tests/runner.py is the
// other end. It knows the C ABI alone.
//
// A request is lines of text, then the bytes of its blocks of memory, in order:
//
//   block <bytes> <address modulo 64> <1 if its bytes come back>
//   array <name> <block> <offset> <dtype> <readonly> <ndim> <shape...> <strides...>
//   int <name> <number>
//   real <name> <hexadecimal float>
//   text <name> <the rest of the line>
//   <what to do: isa | pointwise | run | run_binary>
//
// A reply is a line "<status> <number> <bytes of message>", the message, and the blocks asked for.
// Around each block lie bytes that must not change.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gce/gce.h"

namespace {

constexpr size_t kGuard = 128;  // bytes before and after a block: more than any vector
constexpr size_t kAlignment = 64;
constexpr unsigned char kGuardByte = 0xA5;

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "runner: %s\n", what.c_str());
  std::exit(2);
}

// Memory at a given address modulo 64, guarded on both sides.
class Block {
 public:
  Block(size_t size, size_t phase, bool comes_back)
      : size_(size),
        comes_back_(comes_back),
        memory_(static_cast<unsigned char*>(std::malloc(size + 2 * kGuard + 2 * kAlignment))) {
    if (memory_ == nullptr) die("out of memory");
    const size_t first = reinterpret_cast<uintptr_t>(memory_) + kGuard;
    const size_t aligned = (first + kAlignment - 1) / kAlignment * kAlignment;
    data_ = memory_ + kGuard + (aligned - first) + phase;
    std::memset(data_ - kGuard, kGuardByte, kGuard);
    std::memset(data_ + size_, kGuardByte, kGuard);
  }
  Block(Block&& other) noexcept
      : size_(other.size_),
        comes_back_(other.comes_back_),
        memory_(other.memory_),
        data_(other.data_) {
    other.memory_ = nullptr;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  Block& operator=(Block&&) = delete;
  ~Block() { std::free(memory_); }

  void read() {
    std::cin.read(reinterpret_cast<char*>(data_), static_cast<std::streamsize>(size_));
  }
  void write_if_asked() const {
    if (!comes_back_) return;
    std::cout.write(reinterpret_cast<const char*>(data_), static_cast<std::streamsize>(size_));
  }
  bool is_intact() const {
    for (size_t i = 1; i <= kGuard; ++i) {
      if (data_[-static_cast<ptrdiff_t>(i)] != kGuardByte || data_[size_ + i - 1] != kGuardByte) {
        return false;
      }
    }
    return true;
  }
  unsigned char* data() const { return data_; }

 private:
  size_t size_;
  bool comes_back_;
  unsigned char* memory_;
  unsigned char* data_;
};

struct Array {
  size_t block = 0;
  int64_t offset = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  gce_array view = {};
};

struct Request {
  std::string action;
  std::vector<Block> blocks;
  std::map<std::string, Array> arrays;
  std::map<std::string, int64_t> ints;
  std::map<std::string, double> reals;
  std::map<std::string, std::string> texts;

  int64_t int_or(const char* name, int64_t absent) const {
    const auto found = ints.find(name);
    return found == ints.end() ? absent : found->second;
  }
  double real_or(const char* name, double absent) const {
    const auto found = reals.find(name);
    return found == reals.end() ? absent : found->second;
  }
};

struct Reply {
  gce_status status = GCE_OK;
  int64_t number = 0;
  std::string message;
};

Array parse_array(std::istream& line) {
  Array array;
  int32_t ndim = 0;
  line >> array.block >> array.offset >> array.view.dtype >> array.view.readonly >> ndim;
  array.shape.resize(static_cast<size_t>(ndim));
  array.strides.resize(static_cast<size_t>(ndim));
  for (int64_t& n : array.shape) line >> n;
  for (int64_t& n : array.strides) line >> n;
  array.view.ndim = ndim;
  return array;
}

// False at the end of the input.
bool read_request(Request* request) {
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    std::string kind;
    std::string name;
    line >> kind;
    if (kind == "block") {
      size_t size = 0;
      size_t phase = 0;
      bool comes_back = false;
      line >> size >> phase >> comes_back;
      request->blocks.emplace_back(size, phase, comes_back);
    } else if (kind == "array") {
      line >> name;
      request->arrays[name] = parse_array(line);
    } else if (kind == "int") {
      line >> name;
      line >> request->ints[name];
    } else if (kind == "real") {
      line >> name >> text;  // istream does not read hexadecimal floats
      request->reals[name] = std::strtod(text.c_str(), nullptr);
    } else if (kind == "text") {
      line >> name >> std::ws;
      std::getline(line, request->texts[name]);
    } else {
      request->action = kind;
      for (Block& block : request->blocks) block.read();
      for (auto& entry : request->arrays) {  // now that no vector moves any more
        Array& array = entry.second;
        array.view.data = request->blocks.at(array.block).data() + array.offset;
        array.view.shape = array.shape.data();
        array.view.strides = array.strides.data();
      }
      return true;
    }
    if (line.fail()) die("cannot read " + kind + " " + name);
  }
  return false;
}

void set_arrays(const Request& request, gce_problem* problem) {
  const std::map<std::string, gce_array gce_problem::*> arrays = {
      {"logits", &gce_problem::logits},
      {"targets", &gce_problem::targets},
      {"gamma", &gce_problem::gamma},
      {"threshold", &gce_problem::threshold},
      {"weight", &gce_problem::weight},
      {"sample_weight", &gce_problem::sample_weight},
      {"grad_output", &gce_problem::grad_output},
      {"vector", &gce_problem::vector},
      {"stats", &gce_problem::shard_stats},
      {"loss", &gce_problem::loss},
      {"grad", &gce_problem::grad},
      {"target_log_prob", &gce_problem::target_log_prob},
      {"logsumexp", &gce_problem::logsumexp},
      {"grad_weight", &gce_problem::grad_weight},
      {"argmax", &gce_problem::argmax},
      {"gamma_grad", &gce_problem::gamma_grad},
  };
  for (const auto& entry : request.arrays) problem->*arrays.at(entry.first) = entry.second.view;
}

void set_arrays(const Request& request, gce_binary_problem* problem) {
  const std::map<std::string, gce_array gce_binary_problem::*> arrays = {
      {"logits", &gce_binary_problem::logits},
      {"targets", &gce_binary_problem::targets},
      {"gamma", &gce_binary_problem::gamma},
      {"threshold", &gce_binary_problem::threshold},
      {"weight", &gce_binary_problem::weight},
      {"pos_weight", &gce_binary_problem::pos_weight},
      {"grad_output", &gce_binary_problem::grad_output},
      {"loss", &gce_binary_problem::loss},
      {"grad", &gce_binary_problem::grad},
  };
  for (const auto& entry : request.arrays) problem->*arrays.at(entry.first) = entry.second.view;
}

// What both kinds of problem have.
template <class Problem>
gce_status set_options(const Request& request, Problem* problem) {
  set_arrays(request, problem);
  problem->has_normalizer = static_cast<int32_t>(request.reals.count("normalizer"));
  if (problem->has_normalizer) problem->normalizer = request.reals.at("normalizer");
  problem->label_smoothing = request.real_or("label_smoothing", 0.0);

  gce_reduction reduction = GCE_REDUCTION_MEAN;
  gce_value value = GCE_VALUE_PRIMITIVE;
  gce_status status = GCE_OK;
  if (request.texts.count("reduction")) {
    status = gce_reduction_from_name(request.texts.at("reduction").c_str(), &reduction);
  }
  if (status == GCE_OK && request.texts.count("value")) {
    status = gce_value_from_name(request.texts.at("value").c_str(), &value);
  }
  problem->reduction = reduction;
  problem->value = value;
  return status;
}

gce_status plan_of(const gce_problem& problem, int32_t threads, gce_plan** plan) {
  return gce_plan_create(&problem, threads, plan);
}
gce_status plan_of(const gce_binary_problem& problem, int32_t threads, gce_plan** plan) {
  return gce_binary_plan_create(&problem, threads, plan);
}

// Unlike the Python module, uses as many threads as it is asked to however small the problem is.
template <class Problem>
gce_status run_on_threads(const Problem& problem, int64_t threads) {
  gce_plan* plan = nullptr;
  const gce_status planned = plan_of(problem, static_cast<int32_t>(threads), &plan);
  if (planned != GCE_OK) return planned;
  std::vector<std::thread> workers;
  for (int32_t i = 0; i < gce_plan_workers(plan); ++i) workers.emplace_back(gce_plan_work, plan, i);
  for (std::thread& worker : workers) worker.join();
  gce_plan_finish(plan);
  return GCE_OK;
}

gce_status run(const Request& request) {
  gce_problem problem;
  gce_problem_init(&problem);
  problem.axis = static_cast<int32_t>(request.int_or("axis", -1));
  problem.has_ignore_index = static_cast<int32_t>(request.ints.count("ignore_index"));
  problem.ignore_index = request.int_or("ignore_index", 0);
  problem.z_loss = request.real_or("z_loss", 0.0);
  problem.softcap = request.real_or("softcap", 0.0);
  problem.shift = static_cast<int32_t>(request.int_or("shift", 0));
  problem.gauss_newton = static_cast<int32_t>(request.int_or("gauss_newton", 0));
  problem.shard = static_cast<int32_t>(request.int_or("shard", GCE_SHARD_NONE));
  problem.first_class = request.int_or("first_class", 0);
  problem.all_classes = request.int_or("num_classes", 0);
  const gce_status status = set_options(request, &problem);
  const int64_t threads = request.int_or("num_threads", 1);
  if (status != GCE_OK) return status;
  return threads == 1 ? gce_run(&problem) : run_on_threads(problem, threads);
}

gce_status run_binary(const Request& request) {
  gce_binary_problem problem;
  gce_binary_problem_init(&problem);
  const gce_status status = set_options(request, &problem);
  const int64_t threads = request.int_or("num_threads", 1);
  if (status != GCE_OK) return status;
  return threads == 1 ? gce_binary_run(&problem) : run_on_threads(problem, threads);
}

gce_status pointwise(const Request& request, int64_t* out_of_range) {
  char* args[4] = {};
  int64_t strides[4] = {};
  int count = 0;
  for (const char* name : {"log_p", "gamma", "threshold", "out"}) {
    const auto found = request.arrays.find(name);
    if (found == request.arrays.end()) continue;
    args[count] = static_cast<char*>(found->second.view.data);
    strides[count++] = found->second.strides.at(0);
  }
  const Array& log_p = request.arrays.at("log_p");
  return gce_pointwise(static_cast<gce_pointwise_op>(request.int_or("op", -1)),
                       static_cast<gce_dtype>(log_p.view.dtype), log_p.shape.at(0), args, strides,
                       out_of_range);
}

Reply answer(const Request& request) {
  Reply reply;
  if (request.action == "isa") {
    const char* name = "";
    reply.status = gce_isa_in_use(&name);
    reply.message = name;
  } else if (request.action == "pointwise") {
    reply.status = pointwise(request, &reply.number);
  } else if (request.action == "run") {
    reply.status = run(request);
  } else if (request.action == "run_binary") {
    reply.status = run_binary(request);
  } else {
    die("cannot do " + request.action);
  }
  if (reply.status != GCE_OK) reply.message = gce_last_error();
  for (const Block& block : request.blocks) {
    if (!block.is_intact()) die("bytes next to an array were written");
  }
  return reply;
}

}  // namespace

int main() {
  for (;;) {
    Request request;
    if (!read_request(&request)) return 0;
    const Reply reply = answer(request);
    std::cout << reply.status << ' ' << reply.number << ' ' << reply.message.size() << '\n'
              << reply.message;
    for (const Block& block : request.blocks) block.write_if_asked();
    std::cout << std::flush;
  }
}
