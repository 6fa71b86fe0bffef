// The C ABI over the core's C++: the only file that catches.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <utility>

#include "default_floats.h"
#include "dispatch.h"
#include "error.h"
#include "gce/gce.h"
#include "gce/limits.h"
#include "plan.h"
#include "validate.h"

struct gce_plan : gce::Plan {
  using gce::Plan::Plan;

  static void* operator new(size_t size);
  static void operator delete(void* memory);
};

namespace {

// What a thread keeps. Calls may come after its destructors have run (from a handler of atexit, a destructor of
// pthread_key_create): what they use needs none, and OfThread only frees it.
struct Kept {
  const char* last_error;
  char* message;  // allocated, or null
  void* plan;     // memory of the last one: to allocate as much takes longer than a small plan
  bool is_over;   // nothing would free these
  char late[512];
};
thread_local Kept kept = {"", nullptr, nullptr, false, ""};

struct OfThread {
  ~OfThread() {
    kept.last_error = "";
    std::free(std::exchange(kept.message, nullptr));
    ::operator delete(std::exchange(kept.plan, nullptr));
    kept.is_over = true;
  }
  void is_needed() {}  // a thread_local object is made, and destroyed, where it is used
};
thread_local OfThread of_thread;

gce_status note_out_of_memory() noexcept {
  kept.last_error = "out of memory";
  return GCE_OUT_OF_MEMORY;
}

// Where there is no memory for the message either, that is the error; late in a thread's life it may be cut short.
gce_status note(gce_status status, const char* message) noexcept {
  if (kept.is_over) {
    std::snprintf(kept.late, sizeof(kept.late), "%s", message);
    kept.last_error = kept.late;
    return status;
  }
  of_thread.is_needed();
  const size_t size = std::strlen(message) + 1;
  auto* const copy = static_cast<char*>(std::malloc(size));
  if (copy == nullptr) return note_out_of_memory();
  std::memcpy(copy, message, size);
  std::free(std::exchange(kept.message, copy));
  kept.last_error = copy;
  return status;
}

template <class Action>
gce_status guarded(Action action) noexcept {
  const gce::DefaultFloats default_floats;
  try {
    action();
    return GCE_OK;
  } catch (const gce::Error& error) {
    return note(error.status(), error.message().c_str());
  } catch (const std::bad_alloc&) {
    return note_out_of_memory();
  } catch (const std::length_error&) {  // more than a vector can ever hold
    return note_out_of_memory();
  } catch (const std::exception& error) {
    return note(GCE_RUNTIME_ERROR, error.what());
  }
}

template <class T>
void require_pointer(const char* name, const T* pointer) {
  if (pointer == nullptr) gce::fail(GCE_VALUE_ERROR, name, " is NULL, expected its address");
}

template <class Problem>
gce_status create_plan(const Problem* problem, int32_t max_workers, gce_plan** plan) {
  return guarded([&] {
    require_pointer("plan", plan);
    *plan = nullptr;
    require_pointer("problem", problem);
    *plan = new gce_plan(*problem, max_workers);
  });
}

template <class Problem>
gce_status run(const Problem* problem) {
  return guarded([&] {
    require_pointer("problem", problem);
    gce::Plan plan(*problem, 1);
    plan.work(0);
    plan.finish();
  });
}

}  // namespace

void* gce_plan::operator new(size_t size) {
  if (kept.plan == nullptr) return ::operator new(size);
  return std::exchange(kept.plan, nullptr);
}
void gce_plan::operator delete(void* memory) {
  if (kept.is_over) return ::operator delete(memory);
  of_thread.is_needed();
  ::operator delete(std::exchange(kept.plan, memory));
}

extern "C" {

void gce_problem_init(gce_problem* problem) {
  if (problem == nullptr) return;
  *problem = gce_problem();
  problem->axis = -1;
  problem->reduction = GCE_REDUCTION_MEAN;
  problem->value = GCE_VALUE_PRIMITIVE;
}

void gce_binary_problem_init(gce_binary_problem* problem) {
  if (problem == nullptr) return;
  *problem = gce_binary_problem();
  problem->reduction = GCE_REDUCTION_MEAN;
  problem->value = GCE_VALUE_PRIMITIVE;
}

gce_status gce_plan_create(const gce_problem* problem, int32_t max_workers, gce_plan** plan) {
  return create_plan(problem, max_workers, plan);
}

gce_status gce_binary_plan_create(const gce_binary_problem* problem, int32_t max_workers,
                                  gce_plan** plan) {
  return create_plan(problem, max_workers, plan);
}

int32_t gce_plan_workers(const gce_plan* plan) { return plan == nullptr ? 0 : plan->workers(); }

void gce_plan_work(gce_plan* plan, int32_t worker) {
  if (worker < 0 || worker >= gce_plan_workers(plan)) return;
  const gce::DefaultFloats default_floats;
  plan->work(worker);
}

void gce_plan_finish(gce_plan* plan) {
  if (plan == nullptr) return;
  const gce::DefaultFloats default_floats;
  plan->finish();
  delete plan;
}

gce_status gce_run(const gce_problem* problem) { return run(problem); }

gce_status gce_binary_run(const gce_binary_problem* problem) { return run(problem); }

gce_status gce_reduction_from_name(const char* name, gce_reduction* reduction) {
  return guarded([&] {
    require_pointer("reduction", reduction);
    *reduction = gce::reduction_from_name(name);
  });
}

gce_status gce_value_from_name(const char* name, gce_value* value) {
  return guarded([&] {
    require_pointer("value", value);
    *value = gce::value_from_name(name);
  });
}

const char* gce_last_error(void) { return kept.last_error; }

gce_status gce_pointwise(int32_t op, int32_t dtype, int64_t n, char* const* args,
                         const int64_t* strides, int64_t* out_of_range) {
  return guarded([&] {
    require_pointer("args", args);
    require_pointer("strides", strides);
    require_pointer("out_of_range", out_of_range);
    gce::validate_pointwise(op, dtype, n, args);
    *out_of_range = gce::kernels().pointwise(static_cast<gce_pointwise_op>(op),
                                             static_cast<gce_dtype>(dtype), n, args, strides);
  });
}

gce_status gce_limit(gce_limit_op op, float* to, const float* from, int64_t n, float* value) {
  return guarded([&] {
    const float result = gce::kernels().limit(op, to, from, n, *value);
    if (op == GCE_LIMIT_READ || op == GCE_LIMIT_READ_CACHED) *value = result;
  });
}

gce_status gce_isa_in_use(const char** name) {
  return guarded([&] {
    require_pointer("name", name);
    *name = gce::kernels().name;
  });
}

const char* gce_isa_name(int32_t i, int32_t* supported) {
  bool is_supported = false;
  const char* name = gce::isa_name(i, &is_supported);
  if (supported != nullptr) *supported = is_supported ? 1 : 0;
  return name;
}

gce_status gce_isa_select(const char* name) {
  return guarded([&] { gce::select_isa(name); });
}

}  // extern "C"
