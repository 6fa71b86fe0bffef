#include "functions.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

#include "arguments.h"
#include "arrays.h"
#include "docs.h"
#include "errors.h"
#include "threads.h"

namespace gce_python {
namespace {

constexpr int kMostThreads = 256;  // whatever num_threads says

gce_status run_planned(const gce_problem& problem, int threads) {
  gce_plan* plan = nullptr;
  const gce_status status = gce_plan_create(&problem, threads, &plan);
  if (status != GCE_OK) return status;
  run_on_threads(gce_plan_workers(plan), [plan](int worker) { gce_plan_work(plan, worker); });
  gce_plan_finish(plan);
  return GCE_OK;
}

// Runs the problem without the GIL.
void run(const Call& call) {
  const int threads =
      std::min(call.num_threads > 0 ? call.num_threads : num_threads(), kMostThreads);
  gce_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = run_planned(call.problem, threads);
  Py_END_ALLOW_THREADS;
  throw_if(status);
}

// What a call computes for each row, or the number that a reduction makes of it.
class Output {
 public:
  // An array of the targets' shape; where that has no dimension, a number.
  gce_array take_new(const gce_array& targets, int typenum) {
    if (targets.ndim == 0) return take_number(typenum);
    array_.take_new(new_rows(targets, typenum));
    return array_.look();
  }
  gce_array take_number(int typenum) {
    typenum_ = typenum;
    const int32_t dtype = typenum == NPY_INT64    ? GCE_INT64
                          : typenum == NPY_DOUBLE ? GCE_FLOAT64
                                                  : GCE_FLOAT32;
    return {number_, nullptr, nullptr, 0, dtype, 0};
  }
  // A numpy array, or a numpy number.
  Ref result() {
    if (array_.is_given()) return Ref(Py_NewRef(array_.object()));
    return new_number(typenum_, number_);
  }

 private:
  View array_;
  int typenum_ = -1;
  alignas(8) char number_[8];
};

gce_array take_new_loss(const Call& call, Output* loss) {
  const int typenum = loss_typenum(call.problem.logits);
  return call.problem.reduction == GCE_REDUCTION_NONE
             ? loss->take_new(call.problem.targets, typenum)
             : loss->take_number(typenum);
}

PyObject* loss(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("loss", kLossFunction, args, positional, keywords);
  call.look_at_inputs();
  Output loss;
  call.problem.loss = take_new_loss(call, &loss);
  run(call);
  return loss.result().release();
}

PyObject* loss_and_grad(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("loss_and_grad", kLossAndGrad, args, positional, keywords);
  call.look_at_inputs();
  Output loss;
  call.problem.loss = take_new_loss(call, &loss);
  if (!call.out.is_given()) call.out.take_new(new_like(call.logits.array()));
  call.problem.grad = call.out.look();
  run(call);
  return PyTuple_Pack(2, loss.result().get(), call.out.object());
}

PyObject* row_stats_type() {
  static PyObject* type = nullptr;
  if (type == nullptr) {
    const Ref module(PyImport_ImportModule("gce._types"));
    if (module.get() != nullptr) type = PyObject_GetAttrString(module.get(), "RowStats");
    if (type == nullptr) throw PythonError();
  }
  return type;
}

PyObject* row_stats(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("row_stats", kRowStats, args, positional, keywords);
  call.look_at_inputs();
  const int typenum = loss_typenum(call.problem.logits);
  const struct {
    gce_array* output;
    int typenum;
  } wanted[] = {{&call.problem.target_log_prob, typenum},
                {&call.problem.logsumexp, typenum},
                {&call.problem.argmax, NPY_INT64}};
  Output fields[3];
  for (int i = 0; i < 3; ++i) {
    *wanted[i].output = fields[i].take_new(call.problem.targets, wanted[i].typenum);
  }
  run(call);
  Ref results[3];
  for (int i = 0; i < 3; ++i) results[i] = fields[i].result();
  return PyObject_CallFunctionObjArgs(row_stats_type(), results[0].get(), results[1].get(),
                                      results[2].get(), nullptr);
}

using Function = PyObject* (*)(PyObject* const*, Py_ssize_t, PyObject*);

// The face of a function to the interpreter: C++ exceptions end here.
template <Function function>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  try {
    return function(args, positional, keywords);
  } catch (const PythonError&) {
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

template <Function function>
PyMethodDef method(const char* name, const std::string& doc) {
  const auto entry_point = entry<function>;
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entry_point)),
          METH_FASTCALL | METH_KEYWORDS, doc.c_str()};
}

std::string doc_of(const char* name, Takes takes, const FunctionDoc& doc) {
  return signature_of(name, takes) + "\n--\n\n" + doc.before_options + parameters_of(takes) +
         doc.after_options;
}

}  // namespace

void add_functions(PyObject* module) {
  prepare_keywords();
  static const std::string docs[] = {doc_of("loss", kLossFunction, kLossDoc),
                                     doc_of("loss_and_grad", kLossAndGrad, kLossAndGradDoc),
                                     doc_of("row_stats", kRowStats, kRowStatsDoc)};
  static PyMethodDef methods[] = {method<loss>("loss", docs[0]),
                                  method<loss_and_grad>("loss_and_grad", docs[1]),
                                  method<row_stats>("row_stats", docs[2]),
                                  {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module, methods) < 0) throw PythonError();
}

}  // namespace gce_python
