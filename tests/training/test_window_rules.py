"""Gradients of convolutions and poolings, against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from small_graphs import (
    Case,
    case,
    gradients_of,
    largest_error,
    model_of,
    session_of,
    torch_gradients,
)

from gce.onnx.training import UnsupportedOperator

F = torch.nn.functional
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
Sizes = tuple[int, ...]


def node_of(op_type: str, inputs: str, **attributes: Any) -> str:
    texts = {
        name: f'"{value}"' if isinstance(value, str) else str(value)
        for name, value in attributes.items()
    }
    inside = ", ".join(f"{name} = {text}" for name, text in texts.items())
    return f"y = {op_type} {f'<{inside}>' if inside else ''} ({inputs})"


def window(x: Sizes, kernel: Sizes, **attributes: Any) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and pads as `F.pad` takes them: the last axis first."""
    n = len(kernel)
    strides = list(attributes.get("strides", [1] * n))
    dilations = list(attributes.get("dilations", [1] * n))
    pads = list(attributes.get("pads", [0] * 2 * n))
    auto_pad = attributes.get("auto_pad", "")
    if auto_pad.startswith("SAME"):
        for i in range(n):
            reach = dilations[i] * (kernel[i] - 1) + 1
            total = max((-(-x[2 + i] // strides[i]) - 1) * strides[i] + reach - x[2 + i], 0)
            odd = total % 2
            pads[i] = total // 2 + (odd if auto_pad == "SAME_LOWER" else 0)
            pads[i + n] = total - pads[i]
    flat = [pad for i in reversed(range(n)) for pad in (pads[i], pads[i + n])]
    return strides, dilations, flat


# Input, weights, and attributes of Conv.
CONVS: list[tuple[Sizes, Sizes, dict[str, Any]]] = [
    ((3, 2, 7), (4, 2, 3), {}),
    ((3, 2, 8), (4, 2, 3), {"strides": [2], "pads": [1, 0], "dilations": [2]}),
    ((2, 4, 9), (6, 2, 3), {"strides": [3], "pads": [2, 1], "group": 2}),
    ((2, 4, 6), (4, 1, 2), {"group": 4}),
    ((2, 4, 6), (8, 1, 2), {"group": 4, "strides": [4]}),
    ((3, 2, 7, 5), (4, 2, 3, 2), {}),
    ((3, 2, 7, 8), (4, 2, 3, 2), {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    ((2, 4, 7, 8), (6, 2, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2}),
    ((2, 4, 7, 8), (4, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 4}),
    ((1, 1, 5, 5), (1, 1, 1, 1), {}),
    ((2, 3, 5, 5), (2, 3, 5, 5), {}),
    ((2, 3, 6, 7), (2, 3, 1, 1), {"strides": [2, 2]}),
    ((2, 2, 5, 4, 6), (3, 2, 2, 3, 2), {"strides": [2, 1, 2], "pads": [0, 1, 1, 1, 0, 0]}),
    ((2, 4, 5, 4, 6), (4, 2, 2, 2, 2), {"group": 2, "dilations": [1, 1, 2]}),
    *(
        ((2, 2, 7, 8), weights, {"auto_pad": auto_pad, "strides": strides})
        for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for weights, strides in [((3, 2, 3, 2), [1, 1]), ((3, 2, 4, 3), [2, 3])]
    ),
]  # fmt: skip


KNOWN = [("static", False), ("batch", True), ("spatial", True)]


def known(cases: Sequence[Any]) -> list[Any]:
    """Each case with what is known of its sizes: those of SAME_... need the extents."""
    return [
        pytest.param(*sizes, attributes, *how, id=f"{sizes}-{attributes}-{how[0]}")
        for *sizes, attributes in cases
        for how in KNOWN
        if how[0] != "spatial" or not attributes.get("auto_pad", "").startswith("SAME")
    ]


@pytest.mark.parametrize(("x", "w", "attributes", "shapes", "bias"), known(CONVS))
def test_conv(x: Sizes, w: Sizes, attributes: dict[str, Any], bias: bool, shapes: str) -> None:
    strides, dilations, pads = window(x, w[2:], **attributes)

    def conv(x: Any, *rest: Any) -> Any:
        options = {"stride": strides, "dilation": dilations, "groups": attributes.get("group", 1)}
        return CONVOLUTIONS[len(strides)](F.pad(x, pads), *rest, **options)

    inputs = {"x": x, "w": w, **({"b": w[:1]} if bias else {})}
    check(case(node_of("Conv", ",".join(inputs), **attributes), **inputs), conv, shapes)


@pytest.mark.parametrize(("shapes", "bias"), KNOWN)
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 4), (3, 2, 3), {}),
        ((2, 3, 4, 5), (3, 2, 2, 2), {"strides": [2, 2]}),
        ((2, 4, 4, 5), (4, 2, 3, 3),
         {"strides": [2, 3], "pads": [1, 1, 1, 1], "group": 2, "output_padding": [1, 2]}),
        ((2, 3, 4, 5), (3, 2, 3, 2),
         {"strides": [1, 2], "pads": [1, 0, 1, 0], "dilations": [2, 1]}),
        ((2, 3, 2, 3, 2), (3, 2, 2, 2, 2), {"strides": [2, 1, 2], "output_padding": [1, 0, 0]}),
    ],
    ids=str,
)  # fmt: skip
def test_conv_transpose(
    x: Sizes, w: Sizes, attributes: dict[str, Any], bias: bool, shapes: str
) -> None:
    strides, dilations, pads = window(x, w[2:], **attributes)
    group = attributes.get("group", 1)

    def conv_transpose(*arguments: Any) -> Any:
        return TRANSPOSED[len(strides)](
            *arguments,
            stride=strides,
            padding=pads[::-2],  # the same on both sides
            dilation=dilations,
            groups=group,
            output_padding=attributes.get("output_padding", 0),
        )

    inputs = {"x": x, "w": w, **({"b": (w[1] * group,)} if bias else {})}
    node = node_of("ConvTranspose", ",".join(inputs), **attributes)
    check(case(node, **inputs), conv_transpose, shapes)


# Input, window, and attributes of the poolings.
POOLS: list[tuple[Sizes, Sizes, dict[str, Any]]] = [
    ((2, 3, 8), (2,), {"strides": [2]}),
    ((2, 3, 7), (3,), {"strides": [2], "pads": [1, 1]}),
    ((2, 3, 7, 6), (3, 2), {"strides": [2, 1], "pads": [1, 0, 0, 1]}),
    ((2, 3, 7, 6), (3, 3), {}),  # each element is in nine windows
    ((2, 2, 9, 8), (2, 3), {"dilations": [2, 3]}),
    ((2, 2, 5, 4, 6), (2, 2, 3), {"strides": [2, 1, 2]}),
    *(
        ((2, 2, 7, 8), (3, 2), {"strides": [2, 3], "auto_pad": auto_pad})
        for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
]


CEIL = ((2, 3, 7, 6), (2, 2), {"strides": [2, 2], "ceil_mode": 1})


@pytest.mark.parametrize(("x", "kernel", "attributes", "shapes", "_"), known([*POOLS, CEIL]))
def test_max_pool(
    x: Sizes, kernel: Sizes, attributes: dict[str, Any], shapes: str, _: bool
) -> None:
    strides, dilations, pads = window(x, kernel, **attributes)
    ceil = bool(attributes.get("ceil_mode"))

    def max_pool(x: Any) -> Any:
        padded = F.pad(x, pads, value=-1e9)
        return MAXIMA[len(kernel)](padded, kernel, strides, 0, dilations, ceil_mode=ceil)

    node = node_of("MaxPool", "x", kernel_shape=list(kernel), **attributes)
    check(case(node, x=x), max_pool, shapes, values="distinct")


@pytest.mark.parametrize("with_pads", [0, 1])
@pytest.mark.parametrize(("x", "kernel", "attributes", "shapes", "_"), known(POOLS))
def test_average_pool(
    x: Sizes, kernel: Sizes, attributes: dict[str, Any], shapes: str, _: bool, with_pads: int
) -> None:
    strides, dilations, pads = window(x, kernel, **attributes)

    def average_pool(x: Any) -> Any:
        def sums(x: Any, value: float) -> Any:
            padded = F.pad(x, pads, value=value)
            ones = torch.ones((x.shape[1], 1, *kernel), dtype=torch.float64)
            options = {"stride": strides, "dilation": dilations, "groups": x.shape[1]}
            return CONVOLUTIONS[len(kernel)](padded, ones, **options)

        return sums(x, 0.0) / sums(torch.ones_like(x), float(with_pads))

    attributes = {**attributes, "count_include_pad": with_pads, "kernel_shape": list(kernel)}
    # Quotients of small integers, added up: some roundings to float32, 6e-8 each.
    check(case(node_of("AveragePool", "x", **attributes), x=x), average_pool, shapes, error=1e-6)


@pytest.mark.parametrize("shapes", ["static", "batch"])
@pytest.mark.parametrize(
    ("attributes", "options"),
    [
        (
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"mode": "nearest"},
        ),
        ({"mode": "linear"}, {"mode": "bilinear", "align_corners": False}),
        (
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            {"mode": "bilinear", "align_corners": True},
        ),
    ],
)
def test_resize(attributes: dict[str, Any], options: dict[str, Any], shapes: str) -> None:
    made = case(
        node_of("Resize", "x, , scales", **attributes),
        "float[4] scales = {1, 1, 2, 3}",
        x=(2, 3, 4, 5),
    )
    # Interpolation weights are rounded to float32.
    check(made, lambda x: F.interpolate(x, scale_factor=(2, 3), **options), shapes, error=1e-6)


def check(
    case: Case, function: Any, shapes: str, values: str = "integers", error: float = 0.0
) -> None:
    """By default exactly: sums of products of small integers have no rounding error."""
    arrays = case.integers()
    if values == "distinct":
        arrays = {
            name: case.rng.permutation(array.size).reshape(array.shape).astype(float)
            for name, array in arrays.items()
        }

    def integers(shape: Sequence[int]) -> Any:
        return case.rng.integers(-4, 5, shape).astype(float)

    y, grad, expected = torch_gradients(function, arrays, integers)
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    (run,) = session_of(model_of(case, shapes, "float")).run(["y"], single)
    np.testing.assert_allclose(run, y, atol=error)
    assert any(array.any() for array in expected.values())
    assert largest_error(gradients_of(case, shapes, "float", arrays, grad), expected) <= error


@pytest.mark.parametrize(
    ("body", "shapes", "message"),
    [
        (
            "y = Conv(x, w)",
            "unnamed",
            r"Conv node 'y': its weights have no known shape",
        ),
        (
            'y = Conv <auto_pad = "SAME_LOWER"> (x, w)',
            "spatial",
            r"Conv node 'y': 'x' has the extents \['\?', '\?'\], expected known ones for its auto",
        ),
        (
            "y = AveragePool <kernel_shape = [2, 2]> (x)",
            "unnamed",
            r"AveragePool node 'y': 'x' has an unknown number of channels",
        ),
        (
            "y = ConvTranspose <output_shape = [5, 5]> (x, w)",
            "static",
            "ConvTranspose node 'y': it has auto_pad or output_shape, expected pads",
        ),
        (
            "y = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)",
            "static",
            "AveragePool node 'y': it has ceil_mode",
        ),
    ],
)
def test_refused(body: str, shapes: str, message: str) -> None:
    weights = {"w": (2, 2, 2, 2)} if "w" in body else {}
    refused = case(body, x=(2, 2, 5, 5), **weights)
    with pytest.raises(UnsupportedOperator, match=message):
        gradients_of(refused, shapes, "float", {}, np.zeros(()))
