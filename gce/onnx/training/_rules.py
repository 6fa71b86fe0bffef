"""Reverse rules that take the place of onnx-ad's where those are slow, refuse, or run into a race.

onnx-ad carries any number of seeds in a trailing axis of every derivative. A loss has one seed,
and then that axis is a Squeeze away. The rules here compute on derivatives without it:

==============  ==================================================================================
MatMul, Gemm    one matrix product for each operand, without transposes of seeds, and with the
                batch folded into the rows where the right operand is a matrix
Conv            any batch size (onnx-ad needs a fixed one), any pads, groups
Concat, Slice   any extents (onnx-ad needs fixed ones)
==============  ==================================================================================

`rules_for_one_seed` puts them into onnx-ad's table for as long as it is needed. It also wraps every
rule of that table. A derivative that reaches a rule has its value's full shape already, since each
rule reduces what it gives to the shape of the operand: so `Context.full`, an Expand that copies,
has nothing to do, and neither has `Context.unbroadcast` where operand and result have the same
shape, be it by the name of a size. And an error says which node it is about.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import onnx
from onnx import TensorProto, helper
from onnx_ad import UnsupportedOperator
from onnx_ad._build import Context, attribute
from onnx_ad.rules import REVERSE

__all__ = ["UnsupportedOperator", "rules_for_one_seed"]

Dims: TypeAlias = tuple[int | str | None, ...]
Rule: TypeAlias = Callable[[Any, onnx.NodeProto, list[str | None]], list[str | None]]

LOCK = threading.Lock()  # onnx-ad's table of rules is one for the process


@contextlib.contextmanager
def rules_for_one_seed(dims: Mapping[str, Dims]) -> Iterator[None]:
    """Have onnx-ad use the rules of this module, in this thread alone, until the block ends.

    Parameters
    ----------
    dims : mapping of str to tuple
        What is known of the shapes of values: a size, a name for it, or None for each axis.
    """
    with LOCK:
        theirs = dict(REVERSE)
        rules = {**theirs, **RULES}
        REVERSE.update({name: for_one_seed(rule, dims) for name, rule in rules.items()})
        try:
            yield
        finally:
            REVERSE.clear()
            REVERSE.update(theirs)


def for_one_seed(rule: Rule, dims: Mapping[str, Dims]) -> Rule:
    """The rule, spared what is known to be of no effect, with errors that name the node."""

    def apply(ctx: Any, node: onnx.NodeProto, grads: list[str | None]) -> list[str | None]:
        def unbroadcast(value: str, source_rank: int, target: str, skip: int = 0) -> str:
            """`skip`: how many axes at the end are no part of what broadcasts."""
            one, other = (dims.get(name, (None,)) for name in (target, node.output[0]))
            one, other = one[: len(one) - skip], other[: len(other) - skip]
            if one == other and None not in one:
                return value
            return str(Context.unbroadcast(ctx, value, source_rank, target))

        ctx.unbroadcast = unbroadcast
        for grad, name in zip(grads, node.output, strict=False):
            if grad is not None:
                ctx._full[grad, name] = grad  # what `ctx.full` would compute
        if node.op_type in ("Softmax", "CumSum"):
            ctx._full[grads[0], node.input[0]] = grads[0]
        try:
            if node.domain not in ("", "ai.onnx"):
                raise UnsupportedOperator("no rule for an operator of this domain")
            return rule(ctx, node, grads)
        except UnsupportedOperator as error:
            raise UnsupportedOperator(f"{described(node)}: {error}") from error

    return apply


def described(node: onnx.NodeProto) -> str:
    """How an error calls a node."""
    op_type = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"{op_type} node {node.name or node.output[0]!r}"


def plain(ctx: Any, grad: str) -> str:
    """The derivative without the axis of its one seed."""
    return str(ctx.squeeze(grad, [-1]))


def seeded(ctx: Any, value: str) -> str:
    """The derivative with the axis of its one seed."""
    return str(ctx.unsqueeze(value, [-1]))


def matmul(ctx: Any, node: onnx.NodeProto, grads: list[str | None]) -> list[str | None]:
    """``z = a b``: the derivative of a is ``g bᵀ``, that of b is ``aᵀ g``."""
    a, b = node.input
    rank_a, rank_b = ctx.rank(a), ctx.rank(b)
    if rank_a < 2 or rank_b < 2 or grads[0] is None:
        return THEIRS["MatMul"](ctx, node, grads)
    g = plain(ctx, grads[0])
    if rank_b == 2:  # a matrix of weights: rows and batch of the left operand are all rows
        rows_a, rows_g = a, g
        if rank_a > 2:
            rows_a, rows_g = (ctx.b.op("Flatten", [v], axis=rank_a - 1) for v in (a, g))
        left = right = None
        if ctx.asked_for(a):
            left = seeded(ctx, ctx.b.op("Gemm", [rows_g, b], transB=1))
            left = left if rank_a == 2 else ctx.reshape_like(left, a)
        if ctx.asked_for(b):
            right = seeded(ctx, ctx.b.op("Gemm", [rows_a, rows_g], transA=1))
        return [left, right]
    rank = max(rank_a, rank_b)
    contributions: list[str | None] = []
    for value, other, first in ((a, b, True), (b, a, False)):
        if not ctx.asked_for(value):
            contributions.append(None)
            continue
        axes = list(range(ctx.rank(other)))
        swapped = ctx.b.op("Transpose", [other], perm=[*axes[:-2], axes[-1], axes[-2]])
        product = ctx.b.op("MatMul", [g, swapped] if first else [swapped, g])
        contributions.append(ctx.unbroadcast(seeded(ctx, product), rank, value, skip=2))
    return contributions


def gemm(ctx: Any, node: onnx.NodeProto, grads: list[str | None]) -> list[str | None]:
    """``y = α a' b' + β c``, where ' is a transposition if transA or transB says so."""
    a, b = node.input[:2]
    trans_a, trans_b = (int(attribute(node, name, 0)) for name in ("transA", "transB"))
    alpha, beta = (float(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    assert grads[0] is not None
    g = plain(ctx, grads[0])

    def product(left: str, right: str, flags: tuple[int, int]) -> str:
        made = ctx.b.op("Gemm", [left, right], alpha=alpha, transA=flags[0], transB=flags[1])
        return seeded(ctx, made)

    grad_a = grad_b = None
    if ctx.asked_for(a):
        grad_a = product(b, g, (trans_b, 1)) if trans_a else product(g, b, (0, 1 - trans_b))
    if ctx.asked_for(b):
        grad_b = product(g, a, (1, trans_a)) if trans_b else product(a, g, (1 - trans_a, 0))
    contributions = [grad_a, grad_b]
    if len(node.input) > 2:
        c = node.input[2]
        grad_c = ctx.unbroadcast(grads[0], 2, c) if c and ctx.asked_for(c) else None
        if grad_c is not None and beta != 1.0:
            grad_c = ctx.b.op("Mul", [grad_c, ctx.constant(beta, ctx.dtype(node.output[0]))])
        contributions.append(grad_c)
    return contributions


def conv(ctx: Any, node: onnx.NodeProto, grads: list[str | None]) -> list[str | None]:
    """Convolution of spatial extents that are known; the batch may be of any size.

    The derivative of the input is the transposed convolution of g with the same weights. That of
    the weights correlates input and g over the batch: as a convolution of the input, whose batch
    takes the place of the channels, with g as the filters, strides and dilations changing places.
    With groups, each group's channels (times the batch) are a group of that convolution.
    """
    x, w = node.input[:2]
    assert grads[0] is not None
    g = plain(ctx, grads[0])
    sizes, filters = ctx.shapes.shape(x), ctx.shapes.static(w)
    if filters is None:
        raise UnsupportedOperator("its weights have no known shape")
    if sizes is None or None in sizes[1:]:
        raise UnsupportedOperator(
            f"its input has shape {shape_text(sizes)}, expected known sizes but for the batch"
        )
    window = Window.of(node, sizes[2:], filters[2:])
    grad_x = grad_w = None
    if ctx.asked_for(x):
        made = ctx.b.op("ConvTranspose", [g, w], output_padding=window.rest, **window.attributes)
        grad_x = seeded(ctx, made)
    if ctx.asked_for(w):
        grad_w = seeded(ctx, conv_weights(ctx, x, g, sizes, filters, window))
    contributions = [grad_x, grad_w]
    if len(node.input) > 2:
        bias = node.input[2]
        axes = [0, *range(2, len(sizes))]
        grad_bias = ctx.reduce_sum(g, axes, keepdims=0) if ctx.asked_for(bias) else None
        contributions.append(grad_bias and seeded(ctx, grad_bias))
    return contributions


class Window(NamedTuple):
    """How the filters of a convolution move over its input."""

    group: int
    strides: list[int]
    dilations: list[int]
    pads: list[int]  # all beginnings, then all ends
    rest: list[int]  # what the strides do not reach, at the end of each axis

    @classmethod
    def of(cls, node: onnx.NodeProto, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
        """From a node, for spatial extents of input and filters."""
        axes = range(len(sizes))
        strides = list(attribute(node, "strides", [1] * len(sizes)))
        dilations = list(attribute(node, "dilations", [1] * len(sizes)))
        pads = list(attribute(node, "pads", [0] * 2 * len(sizes)))
        auto_pad = attribute(node, "auto_pad", "NOTSET")
        reach = [dilations[i] * (kernel[i] - 1) + 1 for i in axes]
        if auto_pad == "VALID":
            pads = [0] * 2 * len(sizes)
        elif auto_pad != "NOTSET":  # as many results as strides in the input
            steps = [-(-sizes[i] // strides[i]) - 1 for i in axes]
            total = [max(steps[i] * strides[i] + reach[i] - sizes[i], 0) for i in axes]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = [*less, *more] if auto_pad == "SAME_UPPER" else [*more, *less]
        padded = [sizes[i] + pads[i] + pads[i + len(sizes)] for i in axes]
        rest = [(padded[i] - reach[i]) % strides[i] for i in axes]
        return cls(int(attribute(node, "group", 1)), strides, dilations, pads, rest)

    @property
    def attributes(self) -> dict[str, Any]:
        """Those that Conv and ConvTranspose share."""
        return {key: value for key, value in self._asdict().items() if key != "rest"}


def conv_weights(
    ctx: Any, x: str, g: str, sizes: Sequence[int], filters: Sequence[int], window: Window
) -> str:
    """Derivative of the weights: see `conv`."""
    inner = list(range(2, len(sizes)))
    swap = [1, 0, *inner]
    if window.group == 1:
        turned = ctx.b.op("Transpose", [x], perm=swap)
    else:  # [N, group channels, ...] -> [channels, group N, ...]; N is the one unknown size
        split = [-1, window.group, filters[1], *sizes[2:]]
        apart = ctx.b.op("Reshape", [x, ctx.b.ints(split)])
        turned = ctx.b.op("Transpose", [apart], perm=[2, 1, 0, *(i + 1 for i in inner)])
        turned = ctx.b.op("Reshape", [turned, ctx.b.ints([filters[1], -1, *sizes[2:]])])
    correlated = ctx.b.op(
        "Conv",
        [turned, ctx.b.op("Transpose", [g], perm=swap)],
        strides=window.dilations,
        dilations=window.strides,
        pads=window.pads,
        group=window.group,
    )
    # Where strides leave a rest, it is larger than the filters.
    cropped = ctx.slice(correlated, [0] * len(inner), list(filters[2:]), inner)
    return str(ctx.b.op("Transpose", [cropped], perm=swap))


def concat(ctx: Any, node: onnx.NodeProto, grads: list[str | None]) -> list[str | None]:
    """The pieces of g, of the extents that the operands have at run time."""
    shapes = [ctx.shapes.shape(name) for name in node.input]
    axis = int(attribute(node, "axis")) % ctx.rank(node.output[0])
    if all(shape is not None and shape[axis] is not None for shape in shapes):
        return THEIRS["Concat"](ctx, node, grads)
    where = ctx.b.constant(axis, TensorProto.INT64, (1,))
    extents = [ctx.b.op("Gather", [ctx.shape_of(name), where]) for name in node.input]
    sizes = ctx.b.op("Concat", extents, axis=0)
    pieces = ctx.b.op("Split", [grads[0], sizes], outputs=len(node.input), axis=axis)
    return list(pieces) if len(node.input) > 1 else [pieces]


def slice_(ctx: Any, node: onnx.NodeProto, grads: list[str | None]) -> list[str | None]:
    """g, scattered to where the same Slice takes the elements from."""
    x, rest = node.input[0], [None] * (len(node.input) - 1)
    assert grads[0] is not None
    # Numbers of the elements of x: those that the slice has are where g goes.
    count = ctx.b.op("Size", [x])
    zero, one = (ctx.b.constant(i, TensorProto.INT64, ()) for i in (0, 1))
    numbers = ctx.b.op("Reshape", [ctx.b.op("Range", [zero, count, one]), ctx.shape_of(x)])
    taken = ctx.b.op("Slice", [numbers, *node.input[1:]])
    flat = ctx.b.ints([-1])
    zeros = ctx.b.op(
        "ConstantOfShape",
        [ctx.b.op("Reshape", [count, flat])],
        value=helper.make_tensor("zero", ctx.dtype(x), [1], [0]),
    )
    where, what = (ctx.b.op("Reshape", [v, flat]) for v in (taken, plain(ctx, grads[0])))
    scattered = ctx.b.op("ScatterElements", [zeros, where, what])
    return [ctx.reshape_like(scattered, x), *rest]


def slice_or_pad(ctx: Any, node: onnx.NodeProto, grads: list[str | None]) -> list[str | None]:
    """A Pad where the bounds and the extents of the axes that are cut are known: it is faster."""
    x = node.input[0]
    shape = ctx.shapes.shape(x)
    operands = [ctx.integers(name) if name else None for name in node.input[1:]]
    padded_operands: list[Any] = [*operands, *[None] * (4 - len(operands))]
    starts, ends, axes, steps = padded_operands
    given = [bool(name) for name in node.input[1:]]
    unknown = any(g and value is None for g, value in zip(given, operands, strict=True))
    if unknown or shape is None or set(steps or [1]) != {1}:
        return slice_(ctx, node, grads)
    axes = [axis % len(shape) for axis in (range(len(starts)) if axes is None else axes)]
    if None in (shape[axis] for axis in axes):
        return slice_(ctx, node, grads)
    before, after = [0] * (len(shape) + 1), [0] * (len(shape) + 1)  # the last is the seed's
    for axis, start, end in zip(axes, starts, ends, strict=True):
        first, last, _ = slice(start, end).indices(shape[axis])
        before[axis], after[axis] = first, shape[axis] - max(first, last)
    padded = ctx.b.op("Pad", [grads[0], ctx.b.ints([*before, *after])])
    return [padded, *[None] * (len(node.input) - 1)]


def shape_text(shape: tuple[int | None, ...] | None) -> str:
    """``[?, 3, 8]``."""
    if shape is None:
        return "unknown"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


THEIRS: dict[str, Rule] = dict(REVERSE)
RULES: dict[str, Rule] = {
    "Concat": concat,
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "Slice": slice_or_pad,
}
