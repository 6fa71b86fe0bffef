#include "ufuncs.h"

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

// numpy turns floating-point flags into warnings: only a parameter out of range shall raise one.
void run_loop(char** args, const npy_intp* dimensions, const npy_intp* steps, void* data) {
  const Loop* loop = static_cast<const Loop*>(data);
  std::fenv_t environment;
  std::feholdexcept(&environment);
  int64_t out_of_range = 0;
  const gce_status status = gce_pointwise(loop->op, loop->dtype, dimensions[0], args,
                                          reinterpret_cast<const int64_t*>(steps), &out_of_range);
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
