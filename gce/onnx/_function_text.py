"""The text of the operator's function: its definition, in parts for what a model's nodes ask for.

`FUNCTION` is the definition of `gce.reference` line by line, in float64 whatever the scores are,
and in ONNX's textual form. Rows keep their class axis with length 1, ``[N,1,d1..dk]``, so that all
broadcasts against the scores; a variable's comment is that of `gce.reference` unless one is here.
What a function cannot decide when it runs, or what would cost time where nobody asks for it, are
parts that are put in: `Parts` says which.
"""

from __future__ import annotations

from string import Template
from typing import NamedTuple

__all__ = ["Parts", "function_text"]


class Parts(NamedTuple):
    """What the nodes of a model need of the function."""

    weights: bool  # class weights
    probabilities: bool  # labels are probabilities, and not classes
    softcap: bool
    shift: bool


def function_text(opset: int, parts: Parts) -> str:
    """Return the function for models of this opset, as onnx's parser reads it."""
    pieces = dict(WITH_SOFTCAP if parts.softcap else WITHOUT_SOFTCAP)
    pieces |= WITH_SHIFT if parts.shift else WITHOUT_SHIFT
    pieces["weights"] = WITH_WEIGHTS if parts.weights else WITHOUT_WEIGHTS
    pieces["c_y"] = C_Y_OF_WEIGHTS if parts.weights else C_Y_OF_ONE
    if parts.probabilities:
        pieces["moved_labels"] = MOVED_PROBABILITIES if parts.shift else PROBABILITIES_IN_PLACE
    else:
        pieces["moved_labels"] = MOVED_CLASSES if parts.shift else CLASSES_IN_PLACE
    of_targets = PROBABILITIES if parts.probabilities else CLASSES
    text = Template(FUNCTION).substitute(
        pieces,
        **{name: Template(piece).substitute(pieces) for name, piece in of_targets.items()},
        opset=opset,
        no_ignore_index=NO_IGNORE_INDEX,
        inputs="scores, labels, gamma" + (", weights" if parts.weights else ""),
        log_s_near=Template(LOG_ONE_MINUS).substitute(name="log_s_near", x="x"),
        log_star_near=Template(LOG_ONE_MINUS).substitute(name="log_star_near", x="x_star"),
    )
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


# What stands here for "no ignore_index": a function cannot tell that an attribute is absent.
NO_IGNORE_INDEX = -(2**63)

# log1p(-x), for which ONNX has no operator: what the rounding of 1 - x lost is known exactly.
LOG_ONE_MINUS = """
    ${name}_rest = Sub (one, ${x})
    ${name}_back = Sub (one, ${name}_rest)
    ${name}_lost = Sub (${name}_back, ${x})
    ${name}_correction = Div (${name}_lost, ${name}_rest)
    ${name}_rounded = Log (${name}_rest)
    ${name} = Add (${name}_rounded, ${name}_correction)
"""

# Where class weights enter.
WITH_WEIGHTS = """
    c = Cast <to = 11> (weights)
    c_sum = ReduceSum <keepdims = 0> (c)
    rank = Size (scores_shape)
    outer = Sub (rank, int_two)
    outer_shape = Reshape (outer, axis)
    outer_ones = ConstantOfShape <value = int64[1] {1}> (outer_shape)
    c_shape = Concat <axis = 0> (axis, classes_shape, outer_ones)
    c_all = Reshape (c, c_shape)
"""
WITHOUT_WEIGHTS = """
    c_sum = Cast <to = 11> (classes)
    c_all = Identity (one)
"""

# Where targets enter. Classes: a row has one target, of weight c_y. A negative class would count
# from the last one: it is sent past it, which is an error.
CLASSES = {
    "rows": """
    rows_shape = Shape (labels)
""",
    "targets": """
    y_int64 = Cast <to = 7> (labels)
    ${moved_labels}
    has_ignored_label = Equal (y_given, ignored_label)
    ignored_rows = Or (has_ignored_label, unpredicted)
    y_counted = Where (ignored_rows, int_zero, y_given)
    negative = Less (y_counted, int_zero)
    index = Where (negative, classes, y_counted)
    y = Unsqueeze (index, axis)
""",
    "of_targets": """
    log_p = GatherElements <axis = 1> (log_q, y)
    p = Exp (log_p)
    y_double = Cast <to = 11> (y)
    no_p = Mul (y_double, zero)
    q_others = ScatterElements <axis = 1> (q, y, no_p)
    others = ReduceSum <keepdims = 1> (q_others, axis)
""",
    "shares": """
    ${c_y}
    own = Mul (kept, c_y)
    own_is_none = Equal (own, zero)
    value_is_infinite = IsInf (value_of_row)
    own_is_dropped = And (own_is_none, value_is_infinite)
    row_weight = Identity (c_y)
""",
    "own_sum": """
    own_loss = Identity (own_terms)
""",
    # A q - s c, and at the target -(1 - epsilon) c_y w_b (1 - p) + s (C p - c_y) + 2 lambda
    # logsumexp p.
    "gradient": """
    factor = Add (slope, of_both)
    grad_q = Mul (factor, q)
    grad_c = Mul (s_smooth, c_all)
    grad_others = Sub (grad_q, grad_c)
    target_1 = Mul (slope, p_miss)
    target_2 = Mul (of_both, p)
    target_3 = Mul (s_smooth, c_y)
    target_4 = Sub (target_2, target_3)
    grad_target = Sub (target_4, target_1)
    grad_1 = ScatterElements <axis = 1> (grad_others, y, grad_target)
""",
}
C_Y_OF_WEIGHTS = """
    c_y_rows = Gather (c, index)
    c_y = Unsqueeze (c_y_rows, axis)
"""
C_Y_OF_ONE = """
    c_y = Identity (one)
"""

# Probabilities t: every class is a target, of weight c t; log_p and what follows from it have the
# scores' shape. Only the largest p can be near 1: the others' 1 - p has no cancellation.
PROBABILITIES = {
    "rows": """
    rows_first = Shape <start = 0, end = 1> (labels)
    rows_rest = Shape <start = 2> (labels)
    rows_shape = Concat <axis = 0> (rows_first, rows_rest)
""",
    "targets": """
    t_all = Cast <to = 11> (labels)
    ${moved_labels}
    t_from_0 = GreaterOrEqual (t_given, zero)
    t_infinite = IsInf (t_given)
    t_finite = Not (t_infinite)
    t_is_valid = And (t_from_0, t_finite)
    none_ignored = ConstantOfShape <value = bool[1] {0}> (rows_shape)
    ignored_rows = Or (none_ignored, unpredicted)
""",
    "of_targets": """
    log_p = Identity (log_q)
    p = Identity (q)
    rest = Sub (one, q)
    top_double = Cast <to = 11> (top)
    no_q = Mul (top_double, zero)
    q_others = ScatterElements <axis = 1> (q, top, no_q)
    others_of_top = ReduceSum <keepdims = 1> (q_others, axis)
    others = ScatterElements <axis = 1> (rest, top, others_of_top)
""",
    "shares": """
    t = Where (t_is_valid, t_given, nan)
    c_t = Mul (c_all, t)
    own = Mul (kept, c_t)
    own_is_none = Equal (own, zero)
    value_is_nan = IsNaN (value_of_row)
    value_is_some = Not (value_is_nan)
    own_is_dropped = And (own_is_none, value_is_some)
    row_weight = Identity (one)
""",
    "own_sum": """
    own_loss = ReduceSum <keepdims = 1> (own_terms, axis)
""",
    # A q - a - s c, where A is the sum of a, of s c, and 2 lambda logsumexp.
    "gradient": """
    slope_sum = ReduceSum <keepdims = 1> (slope, axis)
    factor = Add (slope_sum, of_both)
    grad_q = Mul (factor, q)
    grad_c = Mul (s_smooth, c_all)
    grad_own = Add (slope, grad_c)
    grad_1 = Sub (grad_q, grad_own)
""",
}

# Where the cap enters: x = kappa tanh(z / kappa), x' = 1 / cosh(z / kappa)^2 = 4 e / (1 + e)^2 with
# e = exp(-2 |z / kappa|). A NaN stays one, whatever the runtime's Tanh makes of it.
WITH_SOFTCAP = {
    "cap": """
    kappa_float = Constant <value_float: float = @softcap> ()
    kappa = Cast <to = 11> (kappa_float)
    has_cap = Greater (kappa, zero)
    kappa_safe = Where (has_cap, kappa, one)
    z_in_kappa = Div (z_given, kappa_safe)
    z_is_nan = IsNaN (z_given)
    tanh = Tanh (z_in_kappa)
    capped = Mul (kappa_safe, tanh)
    must_be_capped = Not (z_is_nan)
    is_capped = And (has_cap, must_be_capped)
    z = Where (is_capped, capped, z_given)
""",
    "cap_slope": """
    z_size = Abs (z_in_kappa)
    two_z_size = Add (z_size, z_size)
    minus_two_z_size = Neg (two_z_size)
    e_cap = Exp (minus_two_z_size)
    one_and_e_cap = Add (one, e_cap)
    half_root = Div (e_cap, one_and_e_cap)
    quarter = Div (half_root, one_and_e_cap)
    two_quarters = Add (quarter, quarter)
    slope_of_cap = Add (two_quarters, two_quarters)
    x_slope = Where (has_cap, slope_of_cap, one)
    grad_2 = Mul (grad_1, x_slope)
""",
}
WITHOUT_SOFTCAP = {
    "cap": """
    z = Identity (z_given)
""",
    "cap_slope": """
    grad_2 = Identity (grad_1)
""",
}

# Where the shift enters: the row at t along the last axis takes what stands at t + s, and the last
# s rows are ignored; the losses of rows go back to t + s. What the labels of probabilities have for
# that axis depends on their rank.
WITH_SHIFT = {
    "shift": """
    shift = Constant <value_int: int = @shift> ()
    length = Gather <axis = 0> (rows_shape, int_minus_one)
    last = Sub (length, int_one)
    predicted = Sub (length, shift)
    positions = Range (int_zero, length, int_one)
    unpredicted = GreaterOrEqual (positions, predicted)
    positions_ahead_1 = Add (positions, shift)
    positions_ahead = Min (positions_ahead_1, last)
    unseen = Less (positions, shift)
    positions_back_1 = Sub (positions, shift)
    positions_back = Max (positions_back_1, int_zero)
""",
    "moved_gamma": """
    gamma_rows = Gather <axis = -1> (gamma_given, positions_ahead)
""",
    "moved_loss": """
    loss_ahead = Gather <axis = -1> (loss_of_rows, positions_back)
    loss_back = Where (unseen, zero, loss_ahead)
    loss_rows = Where (is_none, loss_back, loss_of_rows)
""",
}
WITHOUT_SHIFT = {
    "shift": """
    unpredicted = Constant <value = bool {0}> ()
""",
    "moved_gamma": """
    gamma_rows = Identity (gamma_given)
""",
    "moved_loss": """
    loss_rows = Identity (loss_of_rows)
""",
}
MOVED_CLASSES = """
    y_given = Gather <axis = -1> (y_int64, positions_ahead)
"""
CLASSES_IN_PLACE = """
    y_given = Identity (y_int64)
"""
MOVED_PROBABILITIES = """
    t_rank = Size (scores_shape)
    t_axes = Range (int_zero, t_rank, int_one)
    t_last_axis = Sub (t_rank, int_one)
    t_is_matrix = Equal (t_rank, int_two)
    t_axis = Where (t_is_matrix, int_zero, t_last_axis)
    t_axis_1 = Reshape (t_axis, axis)
    left_out = Min (shift, length)
    left_out_1 = Reshape (left_out, axis)
    length_1 = Reshape (length, axis)
    t_ahead = Slice (t_all, left_out_1, length_1, t_axis_1)
    is_t_axis = Equal (t_axes, t_axis)
    pads_before = Mul (t_axes, int_zero)
    pads_after = Where (is_t_axis, left_out, pads_before)
    pads = Concat <axis = 0> (pads_before, pads_after)
    t_given = Pad (t_ahead, pads)
"""
PROBABILITIES_IN_PLACE = """
    t_given = Identity (t_all)
"""

FUNCTION = """
<domain: "ai.gce", opset_import: ["" : ${opset}]>
GammaCrossEntropyLoss
<reduction: string = "mean", value: string = "primitive", threshold: float = 0.0,
 label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float = 0.0, shift: int = 0,
 ignore_index: int = ${no_ignore_index}>
(${inputs}) => (loss, grad)
{
    zero = Constant <value = double {0.0}> ()
    one = Constant <value = double {1.0}> ()
    half = Constant <value = double {0.5}> ()
    tiny = Constant <value = double {1e-17}> ()
    int_minus_one = Constant <value = int64 {-1}> ()
    int_zero = Constant <value = int64 {0}> ()
    int_one = Constant <value = int64 {1}> ()
    int_two = Constant <value = int64 {2}> ()
    axis = Constant <value = int64[1] {1}> ()

    # Options. Two strings are equal where they are one unique string: Equal takes none before opset
    # 19.
    b_float = Constant <value_float: float = @threshold> ()
    b = Cast <to = 11> (b_float)
    epsilon_float = Constant <value_float: float = @label_smoothing> ()
    epsilon = Cast <to = 11> (epsilon_float)
    smoothed = Greater (epsilon, zero)
    lambda_float = Constant <value_float: float = @z_loss> ()
    lambda = Cast <to = 11> (lambda_float)
    has_z_loss = Greater (lambda, zero)
    ignored_label = Constant <value_int: int = @ignore_index> ()
    given_reduction = Constant <value_string: string = @reduction> ()
    given_value = Constant <value_string: string = @value> ()
    given_reduction_1 = Reshape (given_reduction, axis)
    given_value_1 = Reshape (given_value, axis)
    mean_name = Constant <value_strings = ["mean"]> ()
    none_name = Constant <value_strings = ["none"]> ()
    surrogate_name = Constant <value_strings = ["surrogate"]> ()
    mean_names = Concat <axis = 0> (given_reduction_1, mean_name)
    none_names = Concat <axis = 0> (given_reduction_1, none_name)
    value_names = Concat <axis = 0> (given_value_1, surrogate_name)
    mean_unique = Unique (mean_names)
    none_unique = Unique (none_names)
    value_unique = Unique (value_names)
    mean_count = Size (mean_unique)
    none_count = Size (none_unique)
    value_count = Size (value_unique)
    is_mean = Equal (mean_count, int_one)
    is_none = Equal (none_count, int_one)
    is_surrogate = Equal (value_count, int_one)

    # Targets.
    scores_shape = Shape (scores)
    classes_shape = Shape <start = 1, end = 2> (scores)
    classes = Squeeze (classes_shape)
    ${rows}
    ${shift}
    ${targets}
    ignored = Unsqueeze (ignored_rows, axis)

    # Softmax. 1 - p is the sum of the others: no cancellation. NaN and +inf poison their row,
    # whatever the runtime's LogSoftmax makes of them; -inf is a masked class.
    z_given = Cast <to = 11> (scores)
    ${cap}
    masked = IsInf <detect_positive = 0> (z)
    z_unmasked = Where (masked, zero, z)
    z_poison = Mul (z_unmasked, zero)
    poison = ReduceSum <keepdims = 1> (z_poison, axis)
    log_q_clean = LogSoftmax <axis = 1> (z)
    log_q = Add (log_q_clean, poison)
    q = Exp (log_q)
    top = ArgMax <axis = 1> (z)
    ${of_targets}
    is_poisoned = IsNaN (log_p)
    nan = Div (zero, zero)
    infinity = Div (one, zero)
    p_miss = Where (is_poisoned, nan, others)
    minus_log_p = Neg (log_p)
    z_top = GatherElements <axis = 1> (z, top)
    log_q_top = GatherElements <axis = 1> (log_q, top)
    logsumexp = Sub (z_top, log_q_top)

    # w_b = max(b, 1 / (delta + gamma e^-l)), e^-l in two halves.
    gamma_double = Cast <to = 11> (gamma)
    gamma_given = Expand (gamma_double, rows_shape)
    ${moved_gamma}
    g_given = Unsqueeze (gamma_rows, axis)
    g_from_0 = GreaterOrEqual (g_given, zero)
    g_to_1 = LessOrEqual (g_given, one)
    g_is_valid = And (g_from_0, g_to_1)
    g = Where (g_is_valid, g_given, nan)
    delta = Sub (one, g)
    is_ce = Equal (g, zero)
    half_minus_log_p = Mul (minus_log_p, half)
    root = Exp (half_minus_log_p)
    g_root = Mul (g, root)
    g_over_p = Mul (g_root, root)
    inverse_w = Add (delta, g_over_p)
    w_general = Div (one, inverse_w)
    w = Where (is_ce, one, w_general)
    w_b_clean = Max (b, w)
    w_b = Where (is_poisoned, nan, w_b_clean)

    # The primitive from p >= t*: -log(s) / delta, by log1p(-x) for small x = delta (1 - p).
    x = Mul (delta, p_miss)
    ${log_s_near}
    delta_p = Mul (delta, p)
    s_far = Add (g, delta_p)
    log_s_far = Log (s_far)
    x_is_small = Less (x, half)
    log_s = Where (x_is_small, log_s_near, log_s_far)
    head_1 = Div (log_s, delta)
    head_2 = Neg (head_1)
    x_is_tiny = Less (x, tiny)
    head = Where (x_is_tiny, p_miss, head_2)

    # And below t*, for b > 0.
    one_minus_b = Sub (one, b)
    b_g = Mul (b, g)
    one_minus_b_delta = Add (one_minus_b, b_g)
    x_star_1 = Mul (delta, one_minus_b)
    x_star = Div (x_star_1, one_minus_b_delta)
    ${log_star_near}
    log_g = Log (g)
    log_one_minus_b_delta = Log (one_minus_b_delta)
    log_star_far = Sub (log_g, log_one_minus_b_delta)
    star_is_small = Less (x_star, half)
    log_s_star = Where (star_is_small, log_star_near, log_star_far)
    log_b = Log (b)
    log_t_star = Add (log_b, log_s_star)
    head_star_1 = Div (log_s_star, delta)
    head_star_2 = Neg (head_star_1)
    is_dft = Equal (delta, zero)
    head_star = Where (is_dft, one_minus_b, head_star_2)
    below = Sub (log_t_star, log_p)
    b_below = Mul (b, below)
    tail = Add (head_star, b_below)
    in_tail = Less (log_p, log_t_star)
    primitive_1 = Where (in_tail, tail, head)
    primitive = Where (is_ce, minus_log_p, primitive_1)

    no_weight = Equal (w_b, zero)
    surrogate_1 = Mul (w_b, minus_log_p)
    surrogate = Where (no_weight, zero, surrogate_1)
    value_of_row = Where (is_surrogate, surrogate, primitive)

    # Class weights and label smoothing. What has no weight is no part of a sum, even if infinite.
    ${weights}
    kept = Sub (one, epsilon)
    ${shares}
    own_terms_1 = Mul (own, value_of_row)
    own_terms = Where (own_is_dropped, zero, own_terms_1)
    ${own_sum}
    classes_double = Cast <to = 11> (classes)
    spread = Div (epsilon, classes_double)
    minus_log_q = Neg (log_q)
    class_is_none = Equal (c_all, zero)
    class_terms_1 = Mul (c_all, minus_log_q)
    class_terms = Where (class_is_none, zero, class_terms_1)
    class_sum = ReduceSum <keepdims = 1> (class_terms, axis)
    smooth_loss_1 = Mul (spread, class_sum)
    smooth_loss = Where (smoothed, smooth_loss_1, zero)
    two_losses = Add (own_loss, smooth_loss)
    square = Mul (logsumexp, logsumexp)
    z_loss_1 = Mul (lambda, square)
    z_loss = Where (has_z_loss, z_loss_1, zero)
    row_loss = Add (two_losses, z_loss)
    counted_loss = Where (ignored, zero, row_loss)

    # The reduction: of all rows, or of each alone; the first axis of [rows] or of [1, rows'
    # shape].
    counted_weight = Where (ignored, zero, row_weight)
    total = ReduceSum <keepdims = 0> (counted_weight)
    divisor = Where (is_mean, total, one)
    counted_size = Abs (counted_weight)
    total_size = ReduceSum <keepdims = 0> (counted_size)
    has_no_weight = Equal (total_size, zero)
    is_nothing = And (is_mean, has_no_weight)
    divisor_safe = Where (is_nothing, infinity, divisor)
    loss_of_rows = Squeeze (counted_loss, axis)
    ${moved_loss}
    rows_rank = Size (rows_shape)
    rows_size = Size (loss_of_rows)
    reduced_size = Where (is_none, int_one, rows_size)
    reduced_size_1 = Reshape (reduced_size, axis)
    kept_rank = Where (is_none, rows_rank, int_zero)
    kept_rank_1 = Reshape (kept_rank, axis)
    first = Constant <value = int64[1] {0}> ()
    kept_shape = Slice (rows_shape, first, kept_rank_1)
    summed_shape = Concat <axis = 0> (reduced_size_1, kept_shape)
    summed = Reshape <allowzero = 1> (loss_rows, summed_shape)
    loss_sum = ReduceSum <keepdims = 0> (summed, first)
    loss_1 = Div (loss_sum, divisor_safe)
    loss = CastLike (loss_1, scores)

    # The gradient.
    slope_1 = Mul (own, w_b)
    slope = Div (slope_1, divisor_safe)
    s_smooth = Div (spread, divisor_safe)
    of_all = Mul (s_smooth, c_sum)
    of_z_1 = Mul (lambda, logsumexp)
    of_z_2 = Div (of_z_1, divisor_safe)
    of_z_3 = Add (of_z_2, of_z_2)
    of_z = Where (has_z_loss, of_z_3, zero)
    of_both = Add (of_all, of_z)
    ${gradient}
    ${cap_slope}
    is_clean = Not (is_poisoned)
    is_nothing_clean = And (is_nothing, is_clean)
    grad_is_zero = Or (ignored, is_nothing_clean)
    grad_3 = Where (grad_is_zero, zero, grad_2)
    grad = CastLike (grad_3, scores)
}
"""
