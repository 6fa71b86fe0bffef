#include "ufuncs.h"

#include <algorithm>
#include <cfenv>

#include "arrays.h"
#include "docs.h"
#include "errors.h"
#include "gce/gce.h"

namespace gce_python {
namespace {

static_assert(sizeof(npy_intp) == sizeof(int64_t), "numpy's steps are passed on as they are");

// One loop serves all ufuncs; numpy hands it back which of them it is.
struct Loop {
  gce_pointwise_op op;
  gce_dtype dtype;
};

Loop loops[3][2] = {
    {{GCE_POINTWISE_LOSS, GCE_FLOAT32}, {GCE_POINTWISE_LOSS, GCE_FLOAT64}},
    {{GCE_POINTWISE_GRAD_WEIGHT, GCE_FLOAT32}, {GCE_POINTWISE_GRAD_WEIGHT, GCE_FLOAT64}},
    {{GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT32}, {GCE_POINTWISE_GAMMA_GRAD, GCE_FLOAT64}},
};

// Whether an element's input may be what another element wrote, as in reduce and accumulate: then one follows the other.
bool is_sequential(char* const* args, const npy_intp* steps, npy_intp n, int inputs) {
  const auto first = [&](int a) { return steps[a] < 0 ? args[a] + (n - 1) * steps[a] : args[a]; };
  const auto last = [&](int a) { return steps[a] < 0 ? args[a] : args[a] + (n - 1) * steps[a]; };
  const int out = inputs;
  for (int a = 0; a < inputs; ++a) {
    const bool is_out = args[a] == args[out] && steps[a] == steps[out] && steps[out] != 0;
    const auto size = static_cast<npy_intp>(sizeof(double));
    if (!is_out && first(a) < last(out) + size && first(out) < last(a) + size) return true;
  }
  return false;
}

// numpy turns floating-point flags into warnings: only a parameter out of range shall raise one.
void run_loop(char** args, const npy_intp* dimensions, const npy_intp* steps, void* data) {
  const Loop* loop = static_cast<const Loop*>(data);
  std::fenv_t environment;
  std::feholdexcept(&environment);
  const int inputs = loop->op == GCE_POINTWISE_GAMMA_GRAD ? 2 : 3;
  const npy_intp n = dimensions[0];
  const npy_intp at_once = is_sequential(args, steps, n, inputs) ? 1 : n;
  char* at[4] = {};
  std::copy_n(args, inputs + 1, at);
  int64_t out_of_range = 0;
  gce_status status = GCE_OK;
  for (npy_intp i = 0; i < n && status == GCE_OK; i += at_once) {
    int64_t outside = 0;
    status = gce_pointwise(loop->op, loop->dtype, at_once, at,
                           reinterpret_cast<const int64_t*>(steps), &outside);
    out_of_range += outside;
    for (int a = 0; a <= inputs; ++a) at[a] += at_once * steps[a];
  }
  std::fesetenv(&environment);
  if (out_of_range > 0) std::feraiseexcept(FE_INVALID);
  if (status != GCE_OK) {
    const PyGILState_STATE state = PyGILState_Ensure();
    set_error(status);
    PyGILState_Release(state);
  }
}

// gamma and threshold are double in the float32 loop too: 1 - gamma must stay exact.
PyUFuncGenericFunction kFunctions[] = {run_loop, run_loop};
char kTypesOfThree[] = {NPY_FLOAT,  NPY_DOUBLE, NPY_DOUBLE, NPY_FLOAT,
                        NPY_DOUBLE, NPY_DOUBLE, NPY_DOUBLE, NPY_DOUBLE};
char kTypesOfTwo[] = {NPY_FLOAT, NPY_DOUBLE, NPY_FLOAT, NPY_DOUBLE, NPY_DOUBLE, NPY_DOUBLE};

void add_ufunc(PyObject* module, const char* name, const char* doc, int inputs, Loop* loops_of_it) {
  static void* data[3][2];
  void** own_data = data[loops_of_it->op];
  own_data[0] = &loops_of_it[0];
  own_data[1] = &loops_of_it[1];
  const Ref ufunc(PyUFunc_FromFuncAndData(kFunctions, own_data,
                                          inputs == 3 ? kTypesOfThree : kTypesOfTwo, 2, inputs, 1,
                                          PyUFunc_None, name, doc, 0));
  if (ufunc.get() == nullptr || PyModule_AddObjectRef(module, name, ufunc.get()) < 0) {
    throw PythonError();
  }
}

}  // namespace

void add_ufuncs(PyObject* module) {
  add_ufunc(module, "loss_from_log_prob", kLossFromLogProbDoc, 3, loops[GCE_POINTWISE_LOSS]);
  add_ufunc(module, "grad_weight", kGradWeightDoc, 3, loops[GCE_POINTWISE_GRAD_WEIGHT]);
  add_ufunc(module, "gamma_grad", kGammaGradDoc, 2, loops[GCE_POINTWISE_GAMMA_GRAD]);
}

}  // namespace gce_python
