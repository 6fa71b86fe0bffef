// The C ABI over the core's C++: the only file that catches.
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "error.h"
#include "gce/gce.h"
#include "gce/limits.h"
#include "plan.h"
#include "validate.h"

// Each thread keeps the memory of its last plan: to allocate that much takes longer than to plan a small problem.
struct gce_plan : gce::Plan {
  using gce::Plan::Plan;

  static void* operator new(size_t size);
  static void operator delete(void* memory);
};

namespace {

thread_local std::string last_error;

struct MemoryDeleter {
  void operator()(void* memory) const { ::operator delete(memory); }
};
thread_local std::unique_ptr<void, MemoryDeleter> memory_of_last_plan;

gce_status note_out_of_memory() noexcept {
  last_error = "out of memory";  // short enough to lie in the string itself
  return GCE_OUT_OF_MEMORY;
}

// Where there is no memory for the message either, that is the error.
gce_status note(gce_status status, const char* message) noexcept {
  try {
    last_error = message;
    return status;
  } catch (const std::bad_alloc&) {
    return note_out_of_memory();
  }
}

template <class Action>
gce_status guarded(Action action) noexcept {
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
  return memory_of_last_plan ? memory_of_last_plan.release() : ::operator new(size);
}
void gce_plan::operator delete(void* memory) { memory_of_last_plan.reset(memory); }

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
  if (0 <= worker && worker < gce_plan_workers(plan)) plan->work(worker);
}

void gce_plan_finish(gce_plan* plan) {
  if (plan == nullptr) return;
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

const char* gce_last_error(void) { return last_error.c_str(); }

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
