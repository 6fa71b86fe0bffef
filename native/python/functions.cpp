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

// A call with fewer logits than this stays on the caller's thread: waking another costs more.
constexpr int64_t kSmallCall = 131072;
constexpr int kMostThreads = 256;  // whatever num_threads says

int64_t size_of(const gce_array& a) {
  int64_t size = 1;
  for (int32_t d = 0; d < a.ndim; ++d) size *= a.shape[d];
  return size;
}

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
  int threads = 1;
  if (size_of(call.problem.logits) >= kSmallCall) {
    threads = std::min(call.num_threads > 0 ? call.num_threads : num_threads(), kMostThreads);
  }
  gce_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = threads == 1 ? gce_run(&call.problem) : run_planned(call.problem, threads);
  Py_END_ALLOW_THREADS;
  throw_if(status);
}

// A number for the loss of a reduction, an array of the targets' shape for "none".
Ref new_loss(Call* call, View* view) {
  const int typenum = loss_typenum(call->problem.logits);
  const bool per_row =
      call->problem.reduction == GCE_REDUCTION_NONE && call->targets.array.ndim > 0;
  Ref loss = per_row ? new_rows(call->targets.owner.array(), typenum)
                     : Ref(PyArray_SimpleNew(0, nullptr, typenum));
  if (loss.get() == nullptr) throw PythonError();
  view_output(loss.array(), view);
  return loss;
}

PyObject* loss_result(Ref loss) {
  return PyArray_Return(reinterpret_cast<PyArrayObject*>(loss.release()));
}

PyObject* loss(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("loss", kLossFunction, args, positional, keywords);
  call.finish_inputs();
  View view;
  Ref loss = new_loss(&call, &view);
  call.problem.loss = view.array;
  run(call);
  return loss_result(std::move(loss));
}

PyObject* loss_and_grad(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("loss_and_grad", kLossAndGrad, args, positional, keywords);
  call.finish_inputs();
  View view;
  Ref loss = new_loss(&call, &view);
  call.problem.loss = view.array;
  if (call.out.owner.get() == nullptr) {
    call.out.owner = new_like(call.logits.owner.array());
    view_output(call.out.owner.array(), &call.out);
  }
  call.problem.grad = call.out.array;
  run(call);
  const Ref number(loss_result(std::move(loss)));
  if (number.get() == nullptr) throw PythonError();
  return PyTuple_Pack(2, number.get(), call.out.owner.get());
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
  call.finish_inputs();
  PyArrayObject* like = call.targets.owner.array();
  const int typenum = loss_typenum(call.problem.logits);
  const int typenums[] = {typenum, typenum, NPY_INT64};
  gce_array* const outputs[] = {&call.problem.target_log_prob, &call.problem.logsumexp,
                                &call.problem.argmax};
  Ref fields[3];
  for (int i = 0; i < 3; ++i) {
    View view;
    fields[i] = new_rows(like, typenums[i]);
    view_output(fields[i].array(), &view);
    *outputs[i] = view.array;
  }
  run(call);
  for (Ref& field : fields) field = Ref(loss_result(std::move(field)));
  return PyObject_CallFunctionObjArgs(row_stats_type(), fields[0].get(), fields[1].get(),
                                      fields[2].get(), nullptr);
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
