#include "functions.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>

#include "arguments.h"
#include "arrays.h"
#include "docs.h"
#include "errors.h"
#include "gil.h"
#include "threads.h"

namespace gce_python {
namespace {

constexpr int kMostThreads = 256;  // whatever num_threads says

gce_status create_plan(const gce_problem& problem, int threads, gce_plan** plan) {
  return gce_plan_create(&problem, threads, plan);
}
gce_status create_plan(const gce_binary_problem& problem, int threads, gce_plan** plan) {
  return gce_binary_plan_create(&problem, threads, plan);
}

template <class Problem>
gce_status run_planned(const Problem& problem, int threads) noexcept {
  gce_plan* plan = nullptr;
  const gce_status status = create_plan(problem, threads, &plan);
  if (status != GCE_OK) return status;
  run_on_threads(gce_plan_workers(plan), [plan](int worker) { gce_plan_work(plan, worker); });
  gce_plan_finish(plan);
  return GCE_OK;
}

// Runs a call's problem without the GIL.
template <class Problem>
void run(const Call& call, const Problem& problem) {
  const int threads =
      std::min(call.num_threads > 0 ? call.num_threads : num_threads(), kMostThreads);
  PyThreadState* const state = PyEval_SaveThread();
  const gce_status status = run_planned(problem, threads);
  take_gil(state);
  throw_if(status);
}
void run(const Call& call) { run(call, call.problem); }

// What a call computes for each row, or the number that a reduction makes of it.
class Output {
 public:
  // An array of this one's shape; where that has no dimension, a number.
  gce_array take_new(const gce_array& like, int typenum) {
    if (like.ndim == 0) return take_number(typenum);
    array_.take_new(new_rows(like, typenum));
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

gce_array take_new_loss(const Call& call, const gce_array& rows, Output* loss) {
  const int typenum = loss_typenum(call.problem.logits);
  return call.problem.reduction == GCE_REDUCTION_NONE ? loss->take_new(rows, typenum)
                                                      : loss->take_number(typenum);
}
gce_array take_new_loss(Call* call, Output* loss) {
  return take_new_loss(*call, call->rows(), loss);
}

// Of gce._types, found when the module is imported: to import inside a call may wait for other threads.
PyObject* row_stats_type = nullptr;
PyObject* loss_stats_type = nullptr;

void find_types() {
  const Ref module(PyImport_ImportModule("gce._types"));
  if (module.get() == nullptr) throw PythonError();
  row_stats_type = PyObject_GetAttrString(module.get(), "RowStats");
  loss_stats_type = PyObject_GetAttrString(module.get(), "LossStats");
  if (row_stats_type == nullptr || loss_stats_type == nullptr) throw PythonError();
}

// The statistics of a call's rows, as a RowStats or, with the gradient weight, a LossStats.
class Stats {
 public:
  enum Of { kRow = 3, kLossToo = 4 };

  Stats(Of of, Call* call) : count_(of) {
    gce_problem& p = call->problem;
    const int typenum = loss_typenum(p.logits);
    const gce_array rows = call->rows();
    p.target_log_prob = fields_[0].take_new(rows, typenum);
    p.logsumexp = fields_[1].take_new(rows, typenum);
    p.argmax = fields_[2].take_new(rows, NPY_INT64);
    if (of == kLossToo) p.grad_weight = fields_[3].take_new(rows, typenum);
  }

  Ref result() {
    const Ref values(PyTuple_New(count_));
    if (values.get() == nullptr) throw PythonError();
    for (int i = 0; i < count_; ++i) {
      PyTuple_SET_ITEM(values.get(), i, fields_[i].result().release());
    }
    PyObject* const type = count_ == kRow ? row_stats_type : loss_stats_type;
    Ref stats(PyObject_CallObject(type, values.get()));
    if (stats.get() == nullptr) throw PythonError();
    return stats;
  }

 private:
  const int count_;
  Output fields_[kLossToo];
};

// What loss and loss_and_grad return: the loss, then the gradient if there is one, then statistics if they are asked for.
PyObject* run_losses(Call* call) {
  Output loss;
  call->problem.loss = take_new_loss(call, &loss);
  std::optional<Stats> stats;
  if (call->return_stats) stats.emplace(Stats::kLossToo, call);
  run(*call);
  const Ref of_loss = loss.result();
  PyObject* grad = call->out.object();
  if (!stats)
    return grad == nullptr ? Py_NewRef(of_loss.get()) : PyTuple_Pack(2, of_loss.get(), grad);
  const Ref of_rows = stats->result();
  return grad == nullptr ? PyTuple_Pack(2, of_loss.get(), of_rows.get())
                         : PyTuple_Pack(3, of_loss.get(), grad, of_rows.get());
}

void take_grad(Call* call) {
  if (!call->out.is_given()) call->out.take_new(new_like(call->logits.array()));
  call->problem.grad = call->out.look();
}

PyObject* loss(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("loss", kLossFunction, args, positional, keywords);
  call.look_at_inputs();
  return run_losses(&call);
}

PyObject* loss_and_grad(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("loss_and_grad", kLossAndGrad, args, positional, keywords);
  call.look_at_inputs();
  take_grad(&call);
  return run_losses(&call);
}

// What `loss` would find wrong; another face of the core calls it before it knows the arrays' contents.
PyObject* check_arguments(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("check_arguments", kLossFunction, args, positional, keywords);
  call.look_at_inputs();
  Output loss;
  call.problem.loss = take_new_loss(&call, &loss);
  gce_plan* plan = nullptr;
  throw_if(gce_plan_create(&call.problem, 1, &plan));
  gce_plan_finish(plan);
  return Py_NewRef(Py_None);
}

PyObject* row_stats(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("row_stats", kRowStats, args, positional, keywords);
  call.look_at_inputs();
  Stats stats(Stats::kRow, &call);
  run(call);
  return stats.result().release();
}

PyObject* partial_stats(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("partial_stats", kPartialStats, args, positional, keywords);
  call.look_at_inputs();
  call.stats.take_new(new_rows(call.rows(), NPY_DOUBLE, GCE_SHARD_FIELDS));
  call.problem.shard = GCE_SHARD_PARTIAL;
  call.problem.shard_stats = call.stats.look();
  run(call);
  return Py_NewRef(call.stats.object());
}

PyObject* sharded_loss_and_grad(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("sharded_loss_and_grad", kShardedLoss, args, positional, keywords);
  call.look_at_inputs();
  call.problem.shard = GCE_SHARD_MERGED;
  take_grad(&call);
  return run_losses(&call);
}

PyObject* hvp(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("hvp", kHvp, args, positional, keywords);
  call.look_at_inputs();
  take_grad(&call);
  run(call);
  return Py_NewRef(call.out.object());
}

PyObject* loss_gamma_grad(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("loss_gamma_grad", kLossGammaGrad, args, positional, keywords);
  call.look_at_inputs();
  Output grad;
  call.problem.gamma_grad = grad.take_new(call.problem.gamma, NPY_DOUBLE);
  run(call);
  return grad.result().release();
}

PyObject* binary_loss(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("binary_loss", kBinaryLoss, args, positional, keywords);
  gce_binary_problem problem = call.look_at_binary_inputs();
  Output loss;
  problem.loss = take_new_loss(call, problem.logits, &loss);
  run(call, problem);
  return loss.result().release();
}

PyObject* binary_loss_and_grad(PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  Call call;
  call.parse("binary_loss_and_grad", kBinaryLossAndGrad, args, positional, keywords);
  gce_binary_problem problem = call.look_at_binary_inputs();
  Output loss;
  problem.loss = take_new_loss(call, problem.logits, &loss);
  take_grad(&call);
  problem.grad = call.problem.grad;
  run(call, problem);
  return PyTuple_Pack(2, loss.result().get(), call.out.object());
}

// A call that an argument's own Python code makes is within another, whose frames take 16 KiB: Python's limit of recursion
// is more than a stack holds of them.
thread_local int calls_within_each_other = 0;

class Nesting {
 public:
  Nesting() {
    if (calls_within_each_other == kDeepest) {
      PyErr_Format(PyExc_RecursionError, "found %d calls of gce within each other, expected fewer",
                   kDeepest);
      throw PythonError();
    }
    ++calls_within_each_other;
  }
  ~Nesting() { --calls_within_each_other; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  static constexpr int kDeepest = 50;
};

using Function = PyObject* (*)(PyObject* const*, Py_ssize_t, PyObject*);

// The face of a function to the interpreter: C++ exceptions end here.
template <Function function>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  try {
    const Nesting nesting;
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
  find_types();
  static const std::string docs[] = {
      doc_of("loss", kLossFunction, kLossDoc),
      doc_of("loss_and_grad", kLossAndGrad, kLossAndGradDoc),
      doc_of("row_stats", kRowStats, kRowStatsDoc),
      doc_of("loss_gamma_grad", kLossGammaGrad, kLossGammaGradDoc),
      doc_of("hvp", kHvp, kHvpDoc),
      doc_of("partial_stats", kPartialStats, kPartialStatsDoc),
      doc_of("sharded_loss_and_grad", kShardedLoss, kShardedLossDoc),
      signature_of("check_arguments", kLossFunction) +
          "\n--\n\nRaise what `loss` would raise (gce.jax).",
      doc_of("binary_loss", kBinaryLoss, kBinaryLossDoc),
      doc_of("binary_loss_and_grad", kBinaryLossAndGrad, kBinaryLossAndGradDoc)};
  static PyMethodDef methods[] = {method<loss>("loss", docs[0]),
                                  method<loss_and_grad>("loss_and_grad", docs[1]),
                                  method<row_stats>("row_stats", docs[2]),
                                  method<loss_gamma_grad>("loss_gamma_grad", docs[3]),
                                  method<hvp>("hvp", docs[4]),
                                  method<partial_stats>("partial_stats", docs[5]),
                                  method<sharded_loss_and_grad>("sharded_loss_and_grad", docs[6]),
                                  method<check_arguments>("check_arguments", docs[7]),
                                  method<binary_loss>("binary_loss", docs[8]),
                                  method<binary_loss_and_grad>("binary_loss_and_grad", docs[9]),
                                  {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module, methods) < 0) throw PythonError();
}

}  // namespace gce_python
