#include "docs.h"

// clang-format off: a string literal is a line of the docstring.

namespace gce_python {
namespace {

// What loss and loss_and_grad share.
#define GCE_LOSS_FORMULA                                                                          \
  "For a row with logits z, ``p = softmax(z)[target]`` and ``d = 1 - gamma``::\n\n"               \
  "    loss      L     = -log(gamma + d p) / d       gamma = 0: -log(p); gamma = 1: 1 - p\n"      \
  "    gradient  dL/dz = w_b (softmax(z) - onehot(target))\n"                                     \
  "    weight    w_b   = max(threshold, p / (gamma + d p))\n\n"                                   \
  GCE_LIMITS_FORMULA

#define GCE_LIMITS_FORMULA                                                                        \
  "`gamma` leads from cross-entropy (0) to smooth accuracy (1). At gamma = 1 the loss is the\n"   \
  "limit 1 - p; the -p of other texts differs from it by the constant 1 and has the same\n"       \
  "gradient. Below ``t = b gamma / (1 - b d)``, where the threshold b acts on the weight, the\n"  \
  "loss goes on as ``L(t) + b (log(t) - log(p))``, so that it stays the antiderivative.\n"         \
  "Targets that are probabilities t make it ``sum_k t_k L(p_k)``, with the mean over the rows.\n\n"

#define GCE_POSITIONAL                                                                            \
  "Parameters\n----------\n"                                                                      \
  "logits : array of float16, bfloat16 (``ml_dtypes``), float32 or float64\n"                     \
  "    Any shape with at least one axis and any strides. One row is what remains when all axes\n" \
  "    but the class axis are fixed; V is the length of the class axis.\n"                        \
  "targets : array of int, or of float\n"                                                         \
  "    The target class of each row: any integer dtype, the shape of `logits` without the class\n" \
  "    axis, ``0 <= targets < V`` or `ignore_index`. Or probabilities: a float dtype, the shape of\n" \
  "    `logits`, finite and >= 0; \"the shape of `targets`\" below is then that without the class axis.\n"

#define GCE_GAMMA                                                                                 \
  "gamma : float or array of float\n"                                                             \
  "    0 <= gamma <= 1: a scalar, or one per row (the shape of `targets`). Taken in double.\n"

#define GCE_RAISES                                                                                \
  "Raises\n------\n"                                                                              \
  "TypeError\n    A dtype that the argument does not take.\n"                                     \
  "ValueError\n    A shape, option or range; an `out` that is read-only or overlaps.\n"           \
  "IndexError\n    A target outside [0, V) that is not `ignore_index`.\n\n"                       \
  "Everything is checked before anything is written.\n\n"

#define GCE_STATS                                                                                 \
  "stats : LossStats\n"                                                                           \
  "    With ``return_stats=True``: a named tuple of arrays of the shape of `targets`.\n\n"

#define GCE_NOTES                                                                                 \
  "Notes\n-----\n"                                                                                \
  "A logit of -inf is a masked class. NaN or +inf makes its own row's result NaN and no other's.\n" \
  "Weight 0 makes an infinite loss 0 (PyTorch: NaN). If no row counts, mean and sum are 0 and the\n" \
  "gradient is zeros. A row's loss and gradient have the same bits for any number of threads, any\n" \
  "split of the batch and any memory layout.\n\n"                                                  \
  GCE_REFERENCES

#define GCE_REFERENCES                                                                            \
  "References\n----------\n"                                                                      \
  "Ji et al., \"Tailoring Language Generation Models under Total Variation Distance\", ICLR 2023,\n" \
  "arXiv:2302.13344. gamma = 1: arXiv:2508.05629.\n\n"

#define GCE_BINARY_FORMULA                                                                        \
  "For each element by itself, as multi-label work needs it: with logit z, ``p = sigmoid(z)``, target t\n" \
  "in [0, 1], c = `pos_weight` and ``d = 1 - gamma``::\n\n"                                       \
  "    loss      L     = c t L(p) + (1 - t) L(1 - p)\n"                                           \
  "              L(p)  = -log(gamma + d p) / d       gamma = 0: -log(p); gamma = 1: 1 - p\n"      \
  "    gradient  dL/dz = c t w_b(p) (p - 1) + (1 - t) w_b(1 - p) p\n"                             \
  "    weight    w_b   = max(threshold, p / (gamma + d p))\n\n"                                   \
  "times `weight`. At gamma = 0 that is PyTorch's ``binary_cross_entropy_with_logits``.\n\n"       \
  GCE_LIMITS_FORMULA

#define GCE_BINARY_POSITIONAL                                                                     \
  "Parameters\n----------\n"                                                                      \
  "logits : array of float16, bfloat16 (``ml_dtypes``), float32 or float64\n"                     \
  "    Any shape, any strides.\n"                                                                 \
  "targets : array of float, bool or int\n"                                                       \
  "    The shape of `logits`, ``0 <= targets <= 1``. bool and integers are converted to float64.\n" \
  "gamma : float or array of float\n"                                                             \
  "    0 <= gamma <= 1: a scalar, or one per element (the shape of `logits`). Taken in double.\n"

#define GCE_BINARY_RAISES                                                                         \
  "Raises\n------\n"                                                                              \
  "TypeError\n    A dtype that the argument does not take.\n"                                     \
  "ValueError\n"                                                                                  \
  "    A shape, option or range; a target outside [0, 1]; an `out` that is read-only or overlaps.\n\n" \
  "Everything is checked before anything is written.\n\n"

#define GCE_BINARY_NOTES                                                                          \
  "Notes\n-----\n"                                                                                \
  "Right for logits of any size. Those of -inf and +inf give the limits (at gamma = 0 or with a\n" \
  "threshold, +inf where the target says otherwise); NaN gives NaN in its own element. Without\n"  \
  "elements, mean and sum are 0. An element's loss and gradient have the same bits for any number\n" \
  "of threads and any memory layout.\n\n"                                                         \
  GCE_REFERENCES

#define GCE_BINARY_EXAMPLE_INPUT                                                                  \
  ">>> import numpy as np\n>>> import gce\n"                                                      \
  ">>> logits = np.array([[2.0, -1.0, 0.0], [-3.0, 0.5, 1.0]], dtype=np.float32)\n"               \
  ">>> targets = np.array([[1, 0, 1], [1, 0, 0]])\n"

#define GCE_LOG_P                                                                                 \
  "Parameters\n----------\n"                                                                      \
  "log_p : array_like of float32 or float64\n    Log-probability of the target, -inf to 0.\n"     \
  "gamma : array_like of float\n"                                                                 \
  "    0 <= gamma <= 1; taken in double. Elsewhere the result is NaN.\n"

#define GCE_THRESHOLD                                                                             \
  "threshold : array_like of float\n    0 <= threshold <= 1; taken in double. Elsewhere NaN.\n\n"

#define GCE_RETURNS_LIKE_LOG_P                                                                    \
  "Returns\n-------\n"                                                                            \
  "array or scalar\n"                                                                             \
  "    float32 for float32 (or smaller) `log_p`, and for a Python number beside arrays, as numpy's\n" \
  "    weak scalars go; else float64.\n\n"

#define GCE_EXAMPLE_INPUT                                                                         \
  ">>> import numpy as np\n>>> import gce\n"                                                      \
  ">>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 0.0, 3.0]], dtype=np.float32)\n"                \
  ">>> targets = np.array([0, 1])\n"

}  // namespace

const FunctionDoc kLossDoc = {
    "The gamma-cross-entropy loss of logits and targets.\n\n" GCE_LOSS_FORMULA GCE_POSITIONAL
        GCE_GAMMA,
    "\nReturns\n-------\n"
    "numpy scalar or array\n"
    "    The reduced loss, or with ``reduction=\"none\"`` one per row (the shape of `targets`):\n"
    "    float32 for 16-bit logits, else the dtype of `logits`.\n"
    GCE_STATS GCE_RAISES
    "See Also\n--------\nloss_and_grad : the same with the gradient, in one pass.\n\n" GCE_NOTES
    "Examples\n--------\n" GCE_EXAMPLE_INPUT
    ">>> gce.loss(logits, targets, 0.0, reduction=\"none\").round(4)  # cross-entropy\n"
    "array([0.1698, 3.0949], dtype=float32)\n"
    ">>> gce.loss(logits, targets, 0.5, reduction=\"none\").round(4)  # at most -log(gamma)/(1-gamma)\n"
    "array([0.1626, 1.2977], dtype=float32)\n"
    ">>> gce.loss(logits, targets, 1.0, reduction=\"none\").round(4)  # 1 - p\n"
    "array([0.1562, 0.9547], dtype=float32)\n"};

const FunctionDoc kLossAndGradDoc = {
    "The gamma-cross-entropy loss and its gradient with respect to the logits, in one fused pass.\n\n"
    GCE_LOSS_FORMULA GCE_POSITIONAL GCE_GAMMA,
    "\nReturns\n-------\n"
    "loss : numpy scalar or array\n"
    "    As `loss` returns it.\n"
    "grad : numpy.ndarray\n"
    "    Gradient of the reduced loss (with ``reduction=\"none\"``: of the rows' sum) times\n"
    "    `grad_output`: shape and dtype of `logits`; `out` if that was given.\n"
    GCE_STATS GCE_RAISES
    "See Also\n--------\nloss : the loss alone.\n\n" GCE_NOTES
    "A new gradient costs page faults on fresh memory, at large V more than the loss itself: reuse\n"
    "one with `out`.\n\n"
    "Examples\n--------\n" GCE_EXAMPLE_INPUT
    ">>> loss, grad = gce.loss_and_grad(logits, targets, 0.5)\n"
    ">>> loss.round(4)\n"
    "np.float32(0.7302)\n"
    ">>> loss, grad, stats = gce.loss_and_grad(logits, targets, 0.5, return_stats=True)\n"
    ">>> print((stats.argmax == targets).mean())  # accuracy\n"
    "0.5\n"
    ">>> grad.round(4)\n"
    "array([[-0.0715,  0.0523,  0.0192],\n"
    "       [ 0.002 , -0.0414,  0.0394]], dtype=float32)\n"
    ">>> loss, same = gce.loss_and_grad(logits, targets, 0.5, out=grad)\n"
    ">>> same is grad\n"
    "True\n"};

const FunctionDoc kRowStatsDoc = {
    "Statistics of each row in one pass: what is needed to log, to weight or to evaluate a batch.\n\n"
    GCE_POSITIONAL,
    "\nReturns\n-------\n"
    "RowStats\n"
    "    A named tuple of arrays of the shape of `targets`: ``target_log_prob`` (log-probability of the\n"
    "    target, 0 for an ignored row), ``logsumexp`` and ``argmax`` (int64: the first largest logit, or\n"
    "    the first NaN, as numpy has it). Floats are float32 for 16-bit logits, else of the dtype of\n"
    "    `logits`.\n\n" GCE_RAISES
    "Examples\n--------\n" GCE_EXAMPLE_INPUT
    ">>> stats = gce.row_stats(logits, targets)\n"
    ">>> stats.target_log_prob.round(4)\n"
    "array([-0.1698, -3.0949], dtype=float32)\n"
    ">>> stats.argmax\n"
    "array([0, 2])\n"};

#define GCE_EXAMPLE_SLICES                                                                        \
  ">>> import numpy as np\n>>> import gce\n>>> from gce import shards\n"                          \
  ">>> logits = np.array([[2.0, 0.0, -1.0, 1.0], [0.0, 0.0, 3.0, 0.5]])\n"                        \
  ">>> targets = np.array([0, 2])\n"                                                              \
  ">>> left, right = logits[:, :2], logits[:, 2:]  # each on a process of its own\n"              \
  ">>> stats = shards.merge([\n"                                                                  \
  "...     shards.partial_stats(left, targets, first_class=0, num_classes=4),\n"                  \
  "...     shards.partial_stats(right, targets, first_class=2, num_classes=4),\n"                 \
  "... ])\n"

#define GCE_SLICE                                                                                 \
  "Parameters\n----------\n"                                                                      \
  "logits : array of float16, bfloat16 (``ml_dtypes``), float32 or float64\n"                     \
  "    Those of classes `first_class` to ``first_class + n - 1`` along the class axis, n being its\n" \
  "    length.\n"                                                                                 \
  "targets : array of int\n"                                                                      \
  "    The target of each row among all classes, ``0 <= targets < num_classes`` or `ignore_index`.\n" \
  "    `weight` too is that of all classes.\n"

const FunctionDoc kPartialStatsDoc = {
    "What there is to know of a slice of the classes, to be merged with the other slices'.\n\n"
    "For a loss over classes that several processes share. Of each row the maximum, the sum of\n"
    "exponentials, the target's logit if it is in the slice, and the argmax: `merge` makes one of all\n"
    "slices' statistics, and `loss_and_grad` takes that. With label smoothing, and then only, of the\n"
    "class weights too.\n\n"
    GCE_SLICE,
    "\nReturns\n-------\n"
    "array of float64\n"
    "    The shape of `targets` and 12 more: numbers that `merge` knows, contiguous, so that they can be\n"
    "    sent as they are.\n\n" GCE_RAISES
    "See Also\n--------\nmerge : the statistics of the whole.\n\n"
    "Examples\n--------\n" GCE_EXAMPLE_SLICES
    ">>> stats.shape\n"
    "(2, 12)\n"};

const FunctionDoc kShardedLossDoc = {
    "The loss over all classes, and the gradient of a slice's logits.\n\n"
    GCE_LOSS_FORMULA GCE_SLICE GCE_GAMMA
    "stats : array of float64\n    From `merge`, of all slices.\n",
    "\nReturns\n-------\n"
    "loss : numpy scalar or array\n"
    "    As `gce.loss` returns it for all classes: the same in each process.\n"
    "grad : numpy.ndarray\n"
    "    The slice of the gradient: shape and dtype of `logits`; `out` if that was given.\n"
    GCE_STATS GCE_RAISES
    "See Also\n--------\nmerge : where `stats` come from.\n\n"
    "Notes\n-----\n"
    "Where the slices begin at multiples of 8192 classes, and are of 8192 or fewer, the bits are those of\n"
    "the whole; else sums are added in another order, and results differ as roundings do.\n\n"
    "References\n----------\nOf the loss: arXiv:2302.13344.\n\n"
    "Examples\n--------\n" GCE_EXAMPLE_SLICES
    ">>> loss, grad = shards.loss_and_grad(\n"
    "...     right, targets, 0.5, stats, first_class=2, num_classes=4\n"
    "... )\n"
    ">>> whole, whole_grad = gce.loss_and_grad(logits, targets, 0.5)\n"
    ">>> bool(abs(loss - whole) < 1e-15), bool(abs(grad - whole_grad[:, 2:]).max() < 1e-15)\n"
    "(True, True)\n"};

const FunctionDoc kHvpDoc = {
    "The product of the reduced loss' Hessian in the logits with a vector.\n\n"
    "Of a row with ``q = softmax(z)``, ``w = p / (gamma + d p)``, ``d = 1 - gamma`` and the vector u::\n\n"
    "    H u = w ((1 - d w) (u_y - q.u) (q - onehot(y)) + q (u - q.u))\n\n"
    "where the threshold acts without the first term, as the gradient weight is constant there. The Hessian\n"
    "is not positive semi-definite for gamma > 0; with ``gauss_newton=True`` its part ``w (diag(q) - q q')``\n"
    "is taken, which is. All options of the loss count.\n\n"
    GCE_POSITIONAL
    "vector : array of float\n    u, of the shape of `logits`.\n" GCE_GAMMA,
    "\nReturns\n-------\n"
    "numpy.ndarray\n"
    "    Shape and dtype of `logits`: the directional derivative of `loss_and_grad`'s gradient along\n"
    "    `vector`; `out` if that was given.\n\n" GCE_RAISES
    "See Also\n--------\nloss_and_grad : the gradient.\n\n"
    "References\n----------\nOf the loss: arXiv:2302.13344.\n\n"
    "Examples\n--------\n" GCE_EXAMPLE_INPUT
    ">>> vector = np.ones((2, 3)) * [1.0, 0.0, -1.0]\n"
    ">>> print(gce.hvp(logits, targets, vector, 0.5, reduction=\"sum\").round(3))\n"
    "[[ 0.138 -0.073 -0.065]\n"
    " [ 0.011 -0.065  0.054]]\n"
    ">>> h = 1e-5  # it is the slope of the gradient\n"
    ">>> moved = [gce.loss_and_grad(logits + s * vector, targets, 0.5, reduction=\"sum\")[1] for s in (h, -h)]\n"
    ">>> print(((moved[0] - moved[1]) / (2 * h)).round(3))\n"
    "[[ 0.138 -0.073 -0.065]\n"
    " [ 0.011 -0.065  0.054]]\n"};

const FunctionDoc kLossGammaGradDoc = {
    "The derivative of the reduced loss in gamma, so that gamma can be learnt.\n\n"
    "Of a row whose target has probability p, with ``d = 1 - gamma`` and ``s = gamma + d p``::\n\n"
    "    dL/dgamma = -(1 - p)/(s d) - log(s)/d**2      gamma = 1: -(1 - p)**2 / 2\n\n"
    "with p not below the knee ``t = b gamma / (1 - b d)`` of the threshold b, as beyond it the loss goes\n"
    "on with a slope in log(p) that is the same on both sides. It is never positive: to learn gamma by it\n"
    "alone leads to 1. `gamma_grad` is the same of log-probabilities, at threshold 0.\n\n"
    GCE_POSITIONAL GCE_GAMMA,
    "\nReturns\n-------\n"
    "numpy.float64 or array of float64\n"
    "    Derivative of the reduced loss (with ``reduction=\"none\"``: of the rows' sum) in `gamma`, of\n"
    "    its shape, times `grad_output`: one number for a scalar gamma, else one for each row.\n\n" GCE_RAISES
    "See Also\n--------\ngamma_grad : of log-probabilities.\n\n"
    "References\n----------\nOf the loss: arXiv:2302.13344.\n\n"
    "Examples\n--------\n" GCE_EXAMPLE_INPUT
    ">>> print(gce.loss_gamma_grad(logits, targets, 0.5).round(4))\n"
    "-0.5358\n"
    ">>> h = 1e-6  # it is the slope of the loss\n"
    ">>> wide = logits.astype(np.float64)\n"
    ">>> slope = (gce.loss(wide, targets, 0.5 + h) - gce.loss(wide, targets, 0.5 - h)) / (2 * h)\n"
    ">>> print(slope.round(4))\n"
    "-0.5358\n"};
const FunctionDoc kBinaryLossDoc = {
    "The binary gamma-cross-entropy of logits: the sigmoid form of `loss`.\n\n" GCE_BINARY_FORMULA
        GCE_BINARY_POSITIONAL,
    "\nReturns\n-------\n"
    "numpy scalar or array\n"
    "    The reduced loss, or with ``reduction=\"none\"`` one per element (the shape of `logits`):\n"
    "    float32 for 16-bit logits, else the dtype of `logits`.\n\n" GCE_BINARY_RAISES
    "See Also\n--------\nbinary_loss_and_grad : the same with the gradient, in one pass.\n\n"
    GCE_BINARY_NOTES
    "Examples\n--------\n" GCE_BINARY_EXAMPLE_INPUT
    ">>> gce.binary_loss(logits, targets, 0.0, reduction=\"none\").round(4)  # binary cross-entropy\n"
    "array([[0.1269, 0.3133, 0.6931],\n"
    "       [3.0486, 0.9741, 1.3133]], dtype=float32)\n"
    ">>> gce.binary_loss(logits, targets, 1.0, reduction=\"none\").round(4)  # 1 - p\n"
    "array([[0.1192, 0.2689, 0.5   ],\n"
    "       [0.9526, 0.6225, 0.7311]], dtype=float32)\n"
    ">>> gce.binary_loss(logits, targets, 0.5, pos_weight=[1.0, 1.0, 3.0]).round(4)  # per class\n"
    "np.float32(0.8478)\n"};

const FunctionDoc kBinaryLossAndGradDoc = {
    "The binary gamma-cross-entropy and its gradient with respect to the logits, in one fused pass.\n\n"
    GCE_BINARY_FORMULA GCE_BINARY_POSITIONAL,
    "\nReturns\n-------\n"
    "loss : numpy scalar or array\n"
    "    As `binary_loss` returns it.\n"
    "grad : numpy.ndarray\n"
    "    Gradient of the reduced loss (with ``reduction=\"none\"``: of the elements' sum) times\n"
    "    `grad_output`: shape and dtype of `logits`; `out` if that was given.\n\n" GCE_BINARY_RAISES
    "See Also\n--------\nbinary_loss : the loss alone.\n\n" GCE_BINARY_NOTES
    "Examples\n--------\n" GCE_BINARY_EXAMPLE_INPUT
    ">>> loss, grad = gce.binary_loss_and_grad(logits, targets, 0.5)\n"
    ">>> loss.round(4)\n"
    "np.float32(0.6561)\n"
    ">>> grad.round(4)\n"
    "array([[-0.0186,  0.0379, -0.0556],\n"
    "       [-0.0144,  0.0569,  0.0516]], dtype=float32)\n"
    ">>> loss, same = gce.binary_loss_and_grad(logits, targets, 0.5, out=grad)\n"
    ">>> same is grad\n"
    "True\n"};

const char* const kLossFromLogProbDoc =
    "The gamma-cross-entropy of log-probabilities of the target; a numpy ufunc.\n\n"
    "``L = -log(gamma + (1 - gamma) p) / (1 - gamma)`` with ``p = exp(log_p)``, and the limit 1 - p at\n"
    "gamma = 1; below the threshold's knee its linear continuation in log p (see `loss`).\n\n"
    GCE_LOG_P GCE_THRESHOLD
    GCE_RETURNS_LIKE_LOG_P
    "References\n----------\narXiv:2302.13344.\n\n"
    "Examples\n--------\n"
    ">>> import numpy as np\n>>> import gce\n"
    ">>> gce.loss_from_log_prob(np.log([1.0, 0.5, 0.25]), 1.0, 0.0)  # 1 - p\n"
    "array([0.  , 0.5 , 0.75])\n";

const char* const kGradWeightDoc =
    "The factor by which the gamma-cross-entropy scales cross-entropy's gradient; a numpy ufunc.\n\n"
    "``w_b = max(threshold, p / (gamma + (1 - gamma) p))`` with ``p = exp(log_p)``: 1 for gamma = 0, p\n"
    "for gamma = 1 (at threshold 0).\n\n"
    GCE_LOG_P GCE_THRESHOLD
    GCE_RETURNS_LIKE_LOG_P
    "References\n----------\narXiv:2302.13344.\n\n"
    "Examples\n--------\n"
    ">>> import numpy as np\n>>> import gce\n"
    ">>> gce.grad_weight(np.log([1.0, 0.5, 0.25]), 1.0, [0.0, 0.0, 0.3])\n"
    "array([1. , 0.5, 0.3])\n";

const char* const kGammaGradDoc =
    "The derivative of the gamma-cross-entropy in gamma, at threshold 0; a numpy ufunc.\n\n"
    "With ``d = 1 - gamma`` and ``s = gamma + d p``: ``-(1 - p)/(s d) - log(s)/d**2``, and its limit\n"
    "``-(1 - p)**2 / 2`` at gamma = 1. Never positive: a larger gamma means a smaller loss.\n\n"
    GCE_LOG_P "\n"
    GCE_RETURNS_LIKE_LOG_P
    "Examples\n--------\n"
    ">>> import numpy as np\n>>> import gce\n"
    ">>> gce.gamma_grad(np.log([1.0, 0.5]), 1.0)\n"
    "array([ 0.   , -0.125])\n";

}  // namespace gce_python
