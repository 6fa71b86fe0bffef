"""Reverse rules that take the place of onnx-ad's where those are slow, refuse, or are wrong.

onnx-ad carries any number of seeds in a trailing axis of every derivative. A loss has one seed,
and then that axis is a Squeeze away. The rules here compute on derivatives without it:

=============================  ===================================================================
MatMul, Gemm                   one matrix product for each operand, without transposes of seeds,
                               and with the batch folded into the rows where the right operand is
                               a matrix
Conv, AveragePool              any sizes (onnx-ad needs fixed ones); groups, any pads
Resize                         any batch size
DepthToSpace                   any sizes in CRD mode
ConvTranspose                  its weights too
MaxPool                        pads that are to be computed
Concat, Slice, Tile, GatherND  any extents (onnx-ad needs fixed ones), steps, batch_dims
Pad                            any mode; onnx-ad gives a wrong shape where pads are negative
Pow                            an exponent of another type, if it is no parameter
Unsqueeze                      no axes
=============================  ===================================================================

`rules_for_one_seed` puts them into onnx-ad's table for as long as it is needed. It also wraps every
rule of that table. A derivative that reaches a rule has its value's full shape already, since each
rule reduces what it gives to the shape of the operand: so `Context.full`, an Expand that copies,
has nothing to do, and neither has `Context.unbroadcast` where operand and result have the same
shape, be it by the name of a size. And an error says which node it is about.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import onnx
from onnx import TensorProto, helper
from onnx_ad import UnsupportedOperator
from onnx_ad._build import Context, attribute
from onnx_ad.rules import REVERSE

from gce.onnx._graphs import described
from gce.onnx.training._seed_axis import Grads, plain, seeded
from gce.onnx.training._window_rules import (
    average_pool,
    conv,
    conv_transpose,
    max_pool,
    resize,
)

__all__ = ["UnsupportedOperator", "rules_for_one_seed"]

Dims: TypeAlias = tuple[int | str | None, ...]
Rule: TypeAlias = Callable[[Any, onnx.NodeProto, Grads], Grads]

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

    def apply(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
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


def matmul(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
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
    contributions: Grads = []
    for value, other, first in ((a, b, True), (b, a, False)):
        if not ctx.asked_for(value):
            contributions.append(None)
            continue
        axes = list(range(ctx.rank(other)))
        swapped = ctx.b.op("Transpose", [other], perm=[*axes[:-2], axes[-1], axes[-2]])
        product = ctx.b.op("MatMul", [g, swapped] if first else [swapped, g])
        contributions.append(ctx.unbroadcast(seeded(ctx, product), rank, value, skip=2))
    return contributions


def gemm(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
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


def concat(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
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


def slice_(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """g, put to where the same Slice takes the elements from."""
    x, *operands = node.input
    taken = ctx.b.op("Slice", [numbered(ctx, x), *operands])
    return [put_back(ctx, x, taken, plain(ctx, grads[0])), *[None] * len(operands)]


def numbered(ctx: Any, x: str) -> str:
    """The numbers of the elements of x, in its shape."""
    zero, one = (ctx.b.constant(i, TensorProto.INT64, ()) for i in (0, 1))
    numbers = ctx.b.op("Range", [zero, ctx.b.op("Size", [x]), one])
    return str(ctx.b.op("Reshape", [numbers, ctx.shape_of(x)]))


def put_back(ctx: Any, x: str, taken: str, g: str) -> str:
    """The derivative of x, of which a node took the elements of these numbers, some repeatedly."""
    flat = ctx.b.ints([-1])
    zeros = ctx.b.op(
        "ConstantOfShape",
        [ctx.b.op("Reshape", [ctx.b.op("Size", [x]), flat])],
        value=helper.make_tensor("zero", ctx.dtype(x), [1], [0]),
    )
    where, what = (ctx.b.op("Reshape", [value, flat]) for value in (taken, g))
    scattered = ctx.b.op("ScatterElements", [zeros, where, what], reduction="add")
    return str(ctx.reshape_like(scattered, x))


def slice_or_pad(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """A Pad where the axes that are cut are known, and the steps are 1: it is faster."""
    x, *operands = node.input
    names = [*operands, "", ""][:4]
    known: list[Any] = [ctx.integers(name) if name else None for name in names]
    starts, ends, axes, steps = known
    shape, rank, count = ctx.shapes.shape(x), ctx.rank(x), ctx.shapes.shape(names[0])
    if axes is None and not names[2] and count is not None and count[0] is not None:
        axes = list(range(count[0]))
    if axes is None or (names[3] and set(steps or [0]) != {1}):
        return slice_(ctx, node, grads)
    axes = [axis % rank for axis in axes]
    if None in (shape, starts, ends) or None in (shape[axis] for axis in axes):
        pads = pads_at_run_time(ctx, node, axes)
    else:
        before, after = [0] * (rank + 1), [0] * (rank + 1)  # the last is the seed's
        for axis, start, end in zip(axes, starts, ends, strict=True):
            first, last, _ = slice(start, end).indices(shape[axis])
            before[axis], after[axis] = first, shape[axis] - max(first, last)
        pads = ctx.b.ints([*before, *after])
    return [ctx.b.op("Pad", [grads[0], pads]), *[None] * len(operands)]


def pads_at_run_time(ctx: Any, node: onnx.NodeProto, axes: list[int]) -> str:
    """How much a Slice with steps of 1 cuts off these axes: the pads of its derivative."""
    x, starts, *_ = node.input
    where, zero = ctx.b.ints(axes), ctx.b.constant(0, TensorProto.INT64, ())
    sizes, left = (ctx.b.op("Gather", [ctx.shape_of(n), where]) for n in (x, node.output[0]))
    first = ctx.b.op("Cast", [starts], to=TensorProto.INT64)
    from_end = ctx.b.op("Add", [first, sizes])
    first = ctx.b.op("Where", [ctx.b.op("Less", [first, zero]), from_end, first])
    before = ctx.b.op("Min", [ctx.b.op("Max", [first, zero]), sizes])
    after = ctx.b.op("Sub", [sizes, ctx.b.op("Add", [before, left])])
    none = ctx.b.ints([0] * (ctx.rank(x) + 1))  # the last is the seed's
    ends = [ctx.b.op("ScatterElements", [none, where, part]) for part in (before, after)]
    return str(ctx.b.op("Concat", ends, axis=0))


def gather_nd(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """g, added to where the same GatherND takes the elements from."""
    x, indices = node.input
    batch_dims = attribute(node, "batch_dims", 0)
    taken = ctx.b.op("GatherND", [numbered(ctx, x), indices], batch_dims=batch_dims)
    return [put_back(ctx, x, taken, plain(ctx, grads[0])), None]


def pad(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """g, cut where there were pads, and padded where these were negative."""
    x, pads, *rest = node.input
    if rest and rest[0] and ctx.asked_for(rest[0]):
        raise UnsupportedOperator("its constant_value depends on a parameter")
    g, axes = plain(ctx, grads[0]), rest[1:]
    mode = attribute(node, "mode", "constant")
    if mode == "constant":
        made = seeded(ctx, ctx.b.op("Pad", [g, ctx.b.op("Neg", [pads]), "", *axes]))
    else:  # copies of elements
        taken = ctx.b.op("Pad", [numbered(ctx, x), pads, "", *axes], mode=mode)
        made = put_back(ctx, x, taken, g)
    return [made, *[None] * (len(node.input) - 1)]


def tile(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """The copies of g, added: each of its axes is taken apart into copies and extent."""
    x, repeats = node.input
    columns = [ctx.unsqueeze(sizes, [1]) for sizes in (repeats, ctx.shape_of(x))]
    pairs = ctx.b.op("Reshape", [ctx.b.op("Concat", columns, axis=1), ctx.b.ints([-1])])
    apart = ctx.b.op("Reshape", [plain(ctx, grads[0]), pairs])
    copies = list(range(0, 2 * ctx.rank(x), 2))
    return [seeded(ctx, ctx.reduce_sum(apart, copies, keepdims=0)), None]


def depth_to_space(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """g, with each block's rows and columns before the pixels again; onnx-ad's for the other mode.

    It wants known sizes for this one.
    """
    if attribute(node, "mode", "DCR") != "CRD":
        return THEIRS["DepthToSpace"](ctx, node, grads)
    x, block = node.input[0], ctx.b.ints([int(attribute(node, "blocksize"))])
    n, rows, columns = (ctx.slice(ctx.shape_of(x), [i], [i + 1], [0]) for i in (0, 2, 3))
    sizes = [n, ctx.b.ints([-1]), rows, block, columns, block]
    apart = ctx.b.op("Reshape", [plain(ctx, grads[0]), ctx.b.op("Concat", sizes, axis=0)])
    return [ctx.reshape_like(ctx.b.op("Transpose", [apart], perm=[0, 1, 3, 5, 2, 4]), x)]


def power(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """onnx-ad's, which refuses an exponent of another type than the base, also a constant one."""
    base, exponent = node.input
    if ctx.dtype(base) == ctx.shapes.dtype(exponent) or ctx.asked_for(exponent):
        return THEIRS["Pow"](ctx, node, grads)
    cast = ctx.b.op("Cast", [exponent], to=ctx.dtype(base))
    ctx.shapes.declare(cast, ctx.shapes.shape(exponent), ctx.dtype(base))
    alike = helper.make_node("Pow", [base, cast], list(node.output))
    return THEIRS["Pow"](ctx, alike, grads)


def unsqueeze(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """G as it is if there are no axes: the Squeeze of none would take all of size 1."""
    axes = ctx.integers(node.input[1]) if len(node.input) > 1 else None
    return [grads[0], None] if axes == [] else THEIRS["Unsqueeze"](ctx, node, grads)


THEIRS: dict[str, Rule] = dict(REVERSE)
RULES: dict[str, Rule] = {
    "AveragePool": average_pool,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "GatherND": gather_nd,
    "Gemm": gemm,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Pad": pad,
    "Pow": power,
    "Resize": resize,
    "Slice": slice_or_pad,
    "Tile": tile,
    "Unsqueeze": unsqueeze,
}
