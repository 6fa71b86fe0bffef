"""The operator once more, as an ONNX function in standard operators: where there is no library.

`FUNCTION` is the definition of `gce.reference` line by line, in float64 whatever the scores are,
and in ONNX's textual form. Rows keep their class axis with length 1, ``[N,1,d1..dk]``, so that all
broadcasts against the scores; a variable's comment is that of `gce.reference` unless one is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import onnx
from onnx import parser

from gce._onnx_library import DOMAIN, OP_TYPE
from gce.onnx._graphs import Body, bodies_of, copy_of, fresh_names, opset_of, value_names
from gce.onnx._node import check_attributes

__all__ = ["attach_function"]

WEIGHTS = 3  # the place of the class weights among a node's inputs

# What stands here for "no ignore_index": a function cannot tell that an attribute is absent.
NO_IGNORE_INDEX = -(2**63)

# log1p(-x), for which ONNX has no operator: what the rounding of 1 - x lost is known exactly.
LOG_ONE_MINUS = """
    {name}_rest = Sub (one, {x})
    {name}_back = Sub (one, {name}_rest)
    {name}_lost = Sub ({name}_back, {x})
    {name}_correction = Div ({name}_lost, {name}_rest)
    {name}_rounded = Log ({name}_rest)
    {name} = Add ({name}_rounded, {name}_correction)
"""

# Where class weights enter; the one thing that a function cannot decide when it runs.
WITH_WEIGHTS = """
    c = Cast <to = 11> (weights)
    c_y_rows = Gather (c, index)
    c_y = Unsqueeze (c_y_rows, axis)
    c_sum = ReduceSum <keepdims = 0> (c)
    rank = Size (scores_shape)
    outer = Sub (rank, int_two)
    outer_shape = Reshape (outer, axis)
    outer_ones = ConstantOfShape <value = int64[1] {1}> (outer_shape)
    c_shape = Concat <axis = 0> (axis, classes_shape, outer_ones)
    c_all = Reshape (c, c_shape)
"""
WITHOUT_WEIGHTS = """
    c_y = Identity (one)
    c_sum = Cast <to = 11> (classes)
    c_all = Identity (one)
"""

FUNCTION = """
<domain: "ai.gce", opset_import: ["" : {opset}]>
GammaCrossEntropyLoss
<reduction: string = "mean", value: string = "primitive", threshold: float = 0.0,
 label_smoothing: float = 0.0, z_loss: float = 0.0, ignore_index: int = {no_ignore_index}>
({inputs}) => (loss, grad)
{{
    zero = Constant <value = double {{0.0}}> ()
    one = Constant <value = double {{1.0}}> ()
    half = Constant <value = double {{0.5}}> ()
    tiny = Constant <value = double {{1e-17}}> ()
    int_zero = Constant <value = int64 {{0}}> ()
    int_one = Constant <value = int64 {{1}}> ()
    int_two = Constant <value = int64 {{2}}> ()
    axis = Constant <value = int64[1] {{1}}> ()

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

    # Targets. A negative one would count from the last class: it is sent past it, which is an
    # error.
    scores_shape = Shape (scores)
    labels_shape = Shape (labels)
    classes_shape = Shape <start = 1, end = 2> (scores)
    classes = Squeeze (classes_shape)
    y_given = Cast <to = 7> (labels)
    ignored_rows = Equal (y_given, ignored_label)
    ignored = Unsqueeze (ignored_rows, axis)
    y_counted = Where (ignored_rows, int_zero, y_given)
    negative = Less (y_counted, int_zero)
    index = Where (negative, classes, y_counted)
    y = Unsqueeze (index, axis)

    # Softmax. 1 - p is the sum of the others: no cancellation. NaN and +inf poison their row,
    # whatever the runtime's LogSoftmax makes of them; -inf is a masked class.
    z = Cast <to = 11> (scores)
    masked = IsInf <detect_positive = 0> (z)
    z_unmasked = Where (masked, zero, z)
    z_poison = Mul (z_unmasked, zero)
    poison = ReduceSum <keepdims = 1> (z_poison, axis)
    log_q_clean = LogSoftmax <axis = 1> (z)
    log_q = Add (log_q_clean, poison)
    q = Exp (log_q)
    log_p = GatherElements <axis = 1> (log_q, y)
    p = Exp (log_p)
    y_double = Cast <to = 11> (y)
    no_p = Mul (y_double, zero)
    q_others = ScatterElements <axis = 1> (q, y, no_p)
    others = ReduceSum <keepdims = 1> (q_others, axis)
    is_poisoned = IsNaN (log_p)
    nan = Div (zero, zero)
    p_miss = Where (is_poisoned, nan, others)
    minus_log_p = Neg (log_p)
    top = ArgMax <axis = 1> (z)
    z_top = GatherElements <axis = 1> (z, top)
    log_q_top = GatherElements <axis = 1> (log_q, top)
    logsumexp = Sub (z_top, log_q_top)

    # w_b = max(b, 1 / (delta + gamma e^-l)), e^-l in two halves.
    gamma_double = Cast <to = 11> (gamma)
    gamma_rows = Expand (gamma_double, labels_shape)
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
    {log_s_near}
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
    {log_star_near}
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
    {weights}
    kept = Sub (one, epsilon)
    own = Mul (kept, c_y)
    own_is_none_1 = Equal (own, zero)
    own_is_none = And (own_is_none_1, smoothed)
    value_is_infinite = IsInf (value_of_row)
    own_is_dropped = And (own_is_none, value_is_infinite)
    own_loss_1 = Mul (own, value_of_row)
    own_loss = Where (own_is_dropped, zero, own_loss_1)
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

    # The reduction: of all rows, or of each alone; the first axis of [rows] or of [1, labels'
    # shape].
    counted_weight = Where (ignored, zero, c_y)
    total = ReduceSum <keepdims = 0> (counted_weight)
    divisor = Where (is_mean, total, one)
    is_nothing = Equal (divisor, zero)
    divisor_safe = Where (is_nothing, one, divisor)
    loss_rows = Squeeze (counted_loss, axis)
    labels_rank = Size (labels_shape)
    labels_size = Size (labels)
    reduced_size = Where (is_none, int_one, labels_size)
    reduced_size_1 = Reshape (reduced_size, axis)
    kept_rank = Where (is_none, labels_rank, int_zero)
    kept_rank_1 = Reshape (kept_rank, axis)
    first = Constant <value = int64[1] {{0}}> ()
    kept_shape = Slice (labels_shape, first, kept_rank_1)
    summed_shape = Concat <axis = 0> (reduced_size_1, kept_shape)
    summed = Reshape <allowzero = 1> (loss_rows, summed_shape)
    loss_sum = ReduceSum <keepdims = 0> (summed, first)
    loss_1 = Div (loss_sum, divisor_safe)
    loss_2 = Where (is_nothing, zero, loss_1)
    loss = CastLike (loss_2, scores)

    # The gradient: A q - s c, and at the target -(1 - epsilon) c_y w_b (1 - p) + s (C p - c_y) +
    # 2 lambda logsumexp p.
    slope_1 = Mul (own, w_b)
    slope = Div (slope_1, divisor_safe)
    s_smooth = Div (spread, divisor_safe)
    of_all = Mul (s_smooth, c_sum)
    twice = Add (logsumexp, logsumexp)
    of_z_1 = Mul (lambda, twice)
    of_z_2 = Div (of_z_1, divisor_safe)
    of_z = Where (has_z_loss, of_z_2, zero)
    of_both = Add (of_all, of_z)
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
    is_clean = Not (is_poisoned)
    is_nothing_clean = And (is_nothing, is_clean)
    grad_is_zero = Or (ignored, is_nothing_clean)
    grad_2 = Where (grad_is_zero, zero, grad_1)
    grad = CastLike (grad_2, scores)
}}
"""


OLDEST_OPSET = 15  # CastLike, and Shape of some of the axes
FUNCTION_IR_VERSION = 9  # attributes with defaults


def attach_function(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """Give a model the operator as a function in standard operators.

    A runtime that has the library registered uses the library's kernel; any other runs the
    function, with the same results within the rounding of float32: slower, in float64, and with
    some copies of the scores in memory. There a label out of range is an error in the runtime's own
    words, and γ out of range makes the results NaN.

    Parameters
    ----------
    model : onnx.ModelProto or path
        A model with ``GammaCrossEntropyLoss`` nodes, of opset 15 or newer. It stays as it is.

    Returns
    -------
    onnx.ModelProto
        A new model. Its nodes list both outputs, the gradient by an empty name where nobody asked
        for it; if some have class weights and others not, the others get weights of 1.

    Raises
    ------
    TypeError, ValueError
        The model has no such node, an older opset, or a node with an attribute out of its range.

    Examples
    --------
    >>> import gce.onnx
    >>> from onnx import TensorProto, helper
    >>> node = gce.onnx.loss_node("scores", "labels", "gamma")
    >>> inputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
    ...           helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
    ...           helper.make_tensor_value_info("gamma", TensorProto.DOUBLE, [])]
    >>> outputs = [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])]
    >>> model = helper.make_model(
    ...     helper.make_graph([node], "loss", inputs, outputs),
    ...     opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(gce.onnx.DOMAIN, 1)])
    >>> print([function.name for function in gce.onnx.attach_function(model).functions])
    ['GammaCrossEntropyLoss']
    """
    attached = copy_of(model)
    opset = opset_of(attached)
    if opset < OLDEST_OPSET:
        raise ValueError(
            f"model has opset {opset}, expected {OLDEST_OPSET} or newer: see onnx.version_converter"
        )
    for number, function in reversed(list(enumerate(attached.functions))):
        if _is_ours(function.domain, function.name):
            del attached.functions[number]
    bodies = list(bodies_of(attached))
    nodes = [node for body in bodies for node in body.node if _is_ours(node.domain, node.op_type)]
    if not nodes:
        raise ValueError(f"model has no {DOMAIN}::{OP_TYPE} node")
    for node in nodes:
        _check(node)
        while node.input and not node.input[-1]:
            node.input.pop()
        # Inlining the function into a node of one output ends some runtimes' process.
        node.output.extend([""] * (2 - len(node.output)))
    with_weights = any(len(node.input) > WEIGHTS for node in nodes)
    if with_weights:
        fresh = fresh_names(value_names(attached), DOMAIN)
        for body in reversed(bodies):  # subgraphs first: what holds them is copied
            _weigh_by_one(body, fresh)
    attached.functions.append(make_function(opset, with_weights))
    attached.ir_version = max(attached.ir_version, FUNCTION_IR_VERSION)
    return attached


def make_function(opset: int, with_weights: bool) -> onnx.FunctionProto:
    """Make the function for models of this opset, for nodes with or without class weights."""
    text = FUNCTION.format(
        opset=opset,
        no_ignore_index=NO_IGNORE_INDEX,
        inputs="scores, labels, gamma" + (", weights" if with_weights else ""),
        weights=WITH_WEIGHTS if with_weights else WITHOUT_WEIGHTS,
        log_s_near=LOG_ONE_MINUS.format(name="log_s_near", x="x"),
        log_star_near=LOG_ONE_MINUS.format(name="log_star_near", x="x_star"),
    )
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return parser.parse_function("\n".join(lines))


def _is_ours(domain: str, name: str) -> bool:
    return (domain, name) == (DOMAIN, OP_TYPE)


def _check(node: onnx.NodeProto) -> None:
    """Raise what the core has to say about a node's attributes, where no function sets them."""
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if not attribute.ref_attr_name
    }
    check_attributes(
        {name: a.decode() if isinstance(a, bytes) else a for name, a in attributes.items()}
    )


def _weigh_by_one(body: Body, fresh: Callable[[], str]) -> None:
    """Give each of our nodes that has no class weights a vector of ones, as long as needed."""
    nodes = list(body.node)
    del body.node[:]
    for node in nodes:
        if _is_ours(node.domain, node.op_type) and len(node.input) == WEIGHTS:
            classes, floats, ones = fresh(), fresh(), fresh()
            one = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])
            make = onnx.helper.make_node
            body.node.extend(
                [
                    make("Shape", [node.input[0]], [classes], start=1, end=2),
                    make("ConstantOfShape", [classes], [floats], value=one),
                    make("CastLike", [floats, node.input[0]], [ones]),
                ]
            )
            node.input.append(ones)
        body.node.append(node)
