"""Reverse rules of the operators that move a window over spatial axes: see `_rules`.

Batch and extents may be of any size, but where pads depend on them. A pooling that averages is a
convolution with filters of ones, and a transposed convolution is the adjoint of one: so all of them
are made of ConvTranspose, for what the window moves over, and `conv_weights`, for the filters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnx_ad import UnsupportedOperator
from onnx_ad._build import attribute
from onnx_ad.rules import REVERSE

from gce.onnx.training._seed_axis import Grads, plain, seeded

__all__ = ["average_pool", "conv", "conv_transpose", "max_pool", "resize"]

THEIRS = {name: REVERSE[name] for name in ("MaxPool", "Resize")}


class Window(NamedTuple):
    """How filters move over an input."""

    group: int
    strides: list[int]
    dilations: list[int]
    pads: list[int]  # all beginnings, then all ends
    rest: list[int] | None  # what the strides do not reach, at the end of each axis, if known

    @classmethod
    def of(
        cls, node: onnx.NodeProto, name: str, sizes: Sequence[Any], kernel: Sequence[int]
    ) -> Window:
        """From a node, for spatial extents of what the window moves over, which has a name."""
        axes = range(len(sizes))
        strides = list(attribute(node, "strides", [1] * len(sizes)))
        dilations = list(attribute(node, "dilations", [1] * len(sizes)))
        pads = list(attribute(node, "pads", [0] * 2 * len(sizes)))
        auto_pad = attribute(node, "auto_pad", "NOTSET")
        reach = [dilations[i] * (kernel[i] - 1) + 1 for i in axes]
        group = int(attribute(node, "group", 1))
        if auto_pad == "VALID":
            pads = [0] * 2 * len(sizes)
        elif auto_pad != "NOTSET" and None in sizes:
            known = ["?" if size is None else size for size in sizes]
            raise UnsupportedOperator(
                f"{name!r} has the extents {known}, expected known ones for its auto_pad"
            )
        elif auto_pad != "NOTSET":  # as many results as strides in the input
            steps = [-(-sizes[i] // strides[i]) - 1 for i in axes]
            total = [max(steps[i] * strides[i] + reach[i] - sizes[i], 0) for i in axes]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = [*less, *more] if auto_pad == "SAME_UPPER" else [*more, *less]
        if None in sizes and set(strides) != {1}:
            return cls(group, strides, dilations, pads, None)
        padded = [(sizes[i] or 0) + pads[i] + pads[i + len(sizes)] for i in axes]
        rest = [(padded[i] - reach[i]) % strides[i] for i in axes]
        return cls(group, strides, dilations, pads, rest)

    @property
    def attributes(self) -> dict[str, Any]:
        """Those that Conv and ConvTranspose share."""
        return {key: value for key, value in self._asdict().items() if key != "rest"}

    def counts(self, sizes: Sequence[int], kernel: Sequence[int]) -> npt.NDArray[np.float64]:
        """How many elements of the input, without its pads, the filters are on: [1, 1, ...]."""
        by_axis = []
        for i, (size, taps) in enumerate(zip(sizes, kernel, strict=True)):
            padded = size + self.pads[i] + self.pads[i + len(sizes)]
            reach = self.dilations[i] * (taps - 1) + 1
            starts = np.arange(0, padded - reach + 1, self.strides[i]) - self.pads[i]
            positions = starts[:, None] + self.dilations[i] * np.arange(taps)
            by_axis.append(((positions >= 0) & (positions < size)).sum(axis=1))
        return functools.reduce(np.multiply.outer, by_axis, np.ones((1, 1)))


def conv(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """The derivative of the input is the transposed convolution of g with the same weights."""
    x, w = node.input[:2]
    g = plain(ctx, grads[0])
    sizes, filters = sizes_of(ctx, x), known_filters(ctx, w)
    window = Window.of(node, x, sizes[2:], filters[2:])
    grad_x = grad_w = None
    if ctx.asked_for(x):
        grad_x = seeded(ctx, spread(ctx, g, w, x, window))
    if ctx.asked_for(w):
        grad_w = seeded(ctx, conv_weights(ctx, x, g, sizes, filters, window))
    return [grad_x, grad_w, *bias_of(ctx, node, g)]


def spread(ctx: Any, g: str, w: str, x: str, window: Window) -> str:
    """The transposed convolution of g, which has the shape of x."""
    if window.rest is not None:
        padding = {"output_padding": window.rest}
        return str(ctx.b.op("ConvTranspose", [g, w], **padding, **window.attributes))
    begins = window.pads[: len(window.strides)]
    uncut = window._replace(pads=[*begins, *[0] * len(begins)])
    made = ctx.b.op("ConvTranspose", [g, w], **uncut.attributes)
    # What is beyond x was pads, and what the strides do not reach is zero.
    missing = ctx.b.op("Sub", [ctx.shape_of(x), ctx.b.op("Shape", [made])])
    pads = ctx.b.op("Concat", [ctx.b.ints([0] * ctx.rank(x)), missing], axis=0)
    return str(ctx.b.op("Pad", [made, pads]))


def conv_transpose(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """The adjoint of a convolution: input and g have changed places."""
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or attribute(node, "output_shape"):
        raise UnsupportedOperator("it has auto_pad or output_shape, expected pads")
    x, w = node.input[:2]
    g = plain(ctx, grads[0])
    sizes, filters = sizes_of(ctx, node.output[0]), known_filters(ctx, w)
    window = Window.of(node, node.output[0], sizes[2:], filters[2:])
    padding = list(attribute(node, "output_padding", [0] * len(window.strides)))
    if any(p >= stride for p, stride in zip(padding, window.strides, strict=True)):
        raise UnsupportedOperator("its output_padding is not below its strides")
    grad_x = grad_w = None
    if ctx.asked_for(x):
        grad_x = seeded(ctx, ctx.b.op("Conv", [g, w], **window.attributes))
    if ctx.asked_for(w):
        grad_w = seeded(ctx, conv_weights(ctx, g, x, sizes, filters, window))
    return [grad_x, grad_w, *bias_of(ctx, node, g)]


def conv_weights(
    ctx: Any, x: str, g: str, sizes: Sequence[int], filters: Sequence[int], window: Window
) -> str:
    """Derivative of a convolution's weights: the correlation of input and g over the batch.

    It is a convolution of the input, whose batch takes the place of the channels, with g as the
    filters, strides and dilations changing places. With groups, each group's channels (times the
    batch) are a group of that convolution.
    """
    inner = list(range(2, len(sizes)))
    swap = [1, 0, *inner]
    if window.group == 1:
        turned = ctx.b.op("Transpose", [x], perm=swap)
    else:  # [N, group channels, ...] -> [channels, group N, ...]
        apart = ctx.b.op("Reshape", [x, shape_of(ctx, x, sizes, [-1, window.group, filters[1]])])
        turned = ctx.b.op("Transpose", [apart], perm=[2, 1, 0, *(i + 1 for i in inner)])
        turned = ctx.b.op("Reshape", [turned, shape_of(ctx, x, sizes, [filters[1], -1])])
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


def shape_of(ctx: Any, x: str, sizes: Sequence[Any], first: list[int]) -> str:
    """A shape of the first sizes, and then the spatial ones of x."""
    if None not in sizes[2:]:
        return str(ctx.b.ints([*first, *sizes[2:]]))
    spatial = ctx.slice(ctx.b.op("Shape", [x]), [2], [len(sizes)], [0])
    return str(ctx.b.op("Concat", [ctx.b.ints(first), spatial], axis=0))


def bias_of(ctx: Any, node: onnx.NodeProto, g: str) -> Grads:
    """Derivative of a bias: g summed over batch and positions."""
    if len(node.input) < 3 or not ctx.asked_for(node.input[2]):
        return [None] * (len(node.input) - 2)
    axes = [0, *range(2, ctx.rank(node.output[0]))]
    return [seeded(ctx, ctx.reduce_sum(g, axes, keepdims=0))]


def average_pool(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """Each window's g over the number of its elements, spread over these."""
    if attribute(node, "ceil_mode", 0):
        raise UnsupportedOperator("it has ceil_mode, expected windows inside the padded input")
    x = node.input[0]
    sizes, kernel = sizes_of(ctx, x), list(attribute(node, "kernel_shape"))
    if sizes[1] is None:
        raise UnsupportedOperator(f"{x!r} has an unknown number of channels, expected a known one")
    window = Window.of(node, x, sizes[2:], kernel)
    dtype = ctx.dtype(x)
    if attribute(node, "count_include_pad", 0) or not any(window.pads):
        counts = ctx.constant(np.prod(kernel), dtype)
    elif None not in sizes[2:]:
        counts = ctx.constant(window.counts(sizes[2:], kernel), dtype)
    else:
        one, taps = (ctx.constant(np.ones(shape), dtype) for shape in ((), (1, 1, *kernel)))
        inside = ctx.b.op("Expand", [one, shape_of(ctx, x, sizes, [1, 1])])
        counts = ctx.b.op("Conv", [inside, taps], **window.attributes)
    share = ctx.b.op("Div", [plain(ctx, grads[0]), counts])
    ones = ctx.constant(np.ones((sizes[1], 1, *kernel)), dtype)
    return [seeded(ctx, spread(ctx, share, ones, x, window._replace(group=sizes[1])))]


def max_pool(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """onnx-ad's, with pads in numbers."""
    if attribute(node, "auto_pad", "NOTSET").startswith("SAME"):
        kernel = list(attribute(node, "kernel_shape"))
        x = node.input[0]
        window = Window.of(node, x, sizes_of(ctx, x)[2:], kernel)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        attributes |= {"auto_pad": "NOTSET", "pads": window.pads}
        node = helper.make_node("MaxPool", list(node.input), list(node.output), **attributes)
    made: Grads = THEIRS["MaxPool"](ctx, node, grads)
    return made


def resize(ctx: Any, node: onnx.NodeProto, grads: Grads) -> Grads:
    """onnx-ad's, which wants the size of the batch, and leaves that axis alone."""
    known = {name: ctx.shapes.shape(name) for name in (node.input[0], node.output[0])}
    batches = {shape[0] for shape in known.values() if shape}
    if batches != {None}:
        made: Grads = THEIRS["Resize"](ctx, node, grads)
        return made
    try:
        for name, shape in known.items():
            ctx.shapes.declare(name, (1, *shape[1:]))
        made = THEIRS["Resize"](ctx, node, grads)
    finally:
        for name, shape in known.items():
            ctx.shapes.declare(name, shape)
    return made


def sizes_of(ctx: Any, name: str) -> Any:
    """The shape of what a window moves over, None for sizes that are unknown."""
    shape = ctx.shapes.shape(name)
    return [None] * ctx.rank(name) if shape is None else shape


def known_filters(ctx: Any, name: str) -> Any:
    """The shape of weights."""
    shape = ctx.shapes.static(name)
    if shape is None:
        raise UnsupportedOperator("its weights have no known shape")
    return shape
