"""The gradient of every operator that matters, against differences and against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small_graphs import (
    SHAPES,
    Case,
    case,
    differences,
    gradients_of,
    largest_error,
    model_of,
    session_of,
    torch_gradients,
    with_seed,
)

from gce.onnx.training import UnsupportedOperator

F = torch.nn.functional

# Central differences with steps of 1e-5 in float64: an error of 1e-10 by the third derivative, and
# one of 1e-11 by rounding, times what the few values of a case make of it.
DIFFERENCES = 1e-8

MATRICES = [
    *(
        case("y = MatMul(a, b)", a=a, b=b)
        for a, b in [
            ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((1, 3), (3, 1)),
            ((5, 2, 3), (3, 4)), ((2, 5, 1, 3), (3, 2)), ((1, 1, 3), (3, 2)),
            ((5, 2, 3), (5, 3, 4)), ((5, 2, 3), (1, 3, 4)), ((1, 2, 3), (5, 3, 4)),
            ((2, 3), (5, 3, 4)), ((3,), (5, 3, 4)), ((5, 2, 3), (3,)),
            ((5, 1, 2, 3), (4, 3, 2)), ((2, 1, 2, 3), (1, 3, 3, 2)), ((5, 1, 3), (5, 3, 1)),
        ]
    ),
    case("y = MatMul(a, a)", a=(3, 3)),
    *(
        case(
            f"y = Gemm <transA = {a}, transB = {b}, alpha = 0.5, beta = -1.5> (a, b, c)",
            a=(3, 2) if a else (2, 3),
            b=(4, 3) if b else (3, 4),
            c=c,
        )
        for a in (0, 1)
        for b in (0, 1)
        for c in [(), (1,), (4,), (1, 1), (1, 4), (2, 1), (2, 4)]
    ),
    case("y = Gemm(a, b)", a=(2, 3), b=(3, 4)),
    *(
        case(f'y = Einsum <equation = "{equation}"> ({", ".join(shapes)})', **shapes)
        for equation, shapes in [
            ("ij,jk->ik", {"a": (2, 3), "b": (3, 4)}),
            ("bhid,bhjd->bhij", {"a": (2, 2, 3, 2), "b": (2, 2, 4, 2)}),
            ("...ij,...jk", {"a": (2, 2, 3), "b": (2, 3, 4)}),
            ("ij,j->ij", {"a": (2, 3), "b": (3,)}),
            ("i,i->", {"a": (3,), "b": (3,)}),
            ("ij->ji", {"a": (2, 3)}),
        ]
    ),
]  # fmt: skip

BROADCASTS = [
    ((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 3), (1, 3)), ((2, 1), (1, 3)),
    ((2, 3), ()), ((), (2, 3)), ((4, 2, 1), (2, 3)), ((1,), (1,)), ((1, 3), (1, 1, 3)),
    ((1, 1), (2, 3)),
]  # fmt: skip

ELEMENTWISE = [
    *(
        case(f"y = {op}(a, b)", positive="ab" if op == "Pow" else "b", a=a, b=b)
        for op in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min")
        for a, b in BROADCASTS
    ),
    *(
        case("c = Greater(a, b)\n y = Where(c, a, b)", a=a, b=b)
        for a, b in BROADCASTS
    ),
    *(
        case(f"y = {op}(a)", a=(2, 3))
        for op in ("Abs", "Cos", "Exp", "Identity", "Neg", "Relu", "Sigmoid", "Sin", "Tanh")
    ),
    *(case(f"y = {op}(a)", positive="a", a=(2, 3)) for op in ("Log", "Reciprocal", "Sqrt")),
    case("y = Mul(a, a)", a=(2, 3)),
    case("y = Sum(a, b, c)", a=(2, 3), b=(3,), c=(2, 1)),
    case("y = Max(a, b, c)", a=(2, 3), b=(3,), c=(2, 1)),
    case("y = Min(a)", a=(2, 3)),
    case("c = Less(a, zero)\n y = Where(c, a, b)", "FLOAT zero = {0}", a=(2, 1), b=(3,)),
    case("y = Clip(a, low, high)", "FLOAT low = {-0.5}, FLOAT high = {0.5}", a=(2, 3)),
    case("y = Clip(a, , b)", a=(2, 3), b=()),
    # Exponents that are no parameters: of any type, and of a base that is not positive.
    case("y = Pow(a, k)", "FLOAT k = {2}", a=(2, 3)),
    case("y = Pow(a, k)", "FLOAT[3] k = {1, 2, 3}", a=(2, 3)),
    case("y = Pow(a, k)", "int64 k = {3}", a=(2, 3)),
    case("y = Pow(a, k)", "float k = {3}", a=(2, 3)),
    case("y = Pow(k, a)", "FLOAT k = {3}", a=(2, 3)),
    case("y = Cast <to = 11> (a)", a=(2, 3)),
    case("y = CastLike(a, a)", a=(2, 3)),
    case("y = Dropout(a)", a=(2, 3)),
    case("y, mask = Dropout(a, ratio, no)", "float ratio = {0.3}, bool no = {0}", a=(2, 3)),
]  # fmt: skip

REDUCTIONS = [
    *(
        case(f"y = {op} <axis = {axis}> (a)", a=(2, 3, 4))
        for op in ("Softmax", "LogSoftmax")
        for axis in (-1, 0, 1, -2)
    ),
    *(
        case(f"y = Reduce{op} <keepdims = {keepdims}> {rest}", given, positive="a", a=shape)
        for op in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp",
                   "SumSquare")
        for keepdims in (0, 1)
        for rest, given, shape in [
            ("(a, axes)", "int64[2] axes = {0, -1}", (2, 3, 4)),
            ("(a, axes)", "int64[1] axes = {-1}", (2, 1)),
            ("(a)", "", (2, 3)),
        ]
    ),
    case("y = ReduceSum <noop_with_empty_axes = 1> (a)", a=(2, 3)),
    case("y = ReduceMean <axes = [1], keepdims = 0> (a)", opset=17, a=(2, 3)),
    case("y = CumSum <exclusive = 1, reverse = 1> (a, axis)", "int64 axis = {-1}", a=(2, 3)),
    case("y, indices = TopK(a, k)", "int64[1] k = {2}", a=(2, 5)),
    case("y, mean, scale = LayerNormalization(a, g, b)", a=(2, 3, 4), g=(4,), b=(4,)),
    case("y = LayerNormalization(a, g)", a=(2, 3, 4), g=(4,)),
    case("y = LayerNormalization <axis = 1> (a, g, b)", a=(2, 3, 4), g=(3, 4), b=(3, 4)),
    case("y = LayerNormalization <axis = -2> (a, g)", opset=17, a=(2, 3, 4), g=(3, 4)),
    case(
        "y = BatchNormalization(a, g, b, mean, var)",
        "FLOAT[3] mean = {0.1, 0.2, 0.3}, FLOAT[3] var = {1, 2, 3}",
        a=(2, 3, 4), g=(3,), b=(3,),
    ),
    case("y = LpNormalization <axis = 0> (a)", a=(2, 3)),
]  # fmt: skip

LAST = "int64[1] last = {-1}"
BIG = 2**63 - 1

STRUCTURE = [
    case("y = Reshape(a, s)", "int64[3] s = {0, 2, -1}", a=(2, 6)),
    case("s = Shape(b)\n y = Reshape(a, s)", parameters=("a",), a=(2, 6), b=(3, 4)),
    case("y = Transpose(a)", a=(2, 3, 4)),
    case("y = Transpose <perm = [1, 0, 2]> (a)", a=(2, 3, 1)),
    case("y = Squeeze(a, last)", LAST, a=(2, 3, 1)),
    case("y = Squeeze(a, axes)", "int64[2] axes = {0, 2}", a=(1, 3, 1)),
    case("y = Unsqueeze(a, last)", LAST, a=(2, 3)),
    case("y = Unsqueeze(a, axes)", "int64[2] axes = {0, -1}", a=(2, 3)),
    case("y = Unsqueeze(a, axes)", "int64[0] axes = {}", a=(2, 3)),
    *(case(f"y = Flatten <axis = {axis}> (a)", a=(2, 3, 4)) for axis in (0, 1, 2, -1)),
    case("y = Expand(a, s)", "int64[3] s = {2, 3, 4}", a=(3, 1)),
    case("s = Shape(b)\n y = Expand(a, s)", parameters=("a",), a=(1, 3), b=(2, 3)),
    case("y, z = Split <num_outputs = 2> (a)", a=(5, 3)),
    case("z, y = Split <axis = -1> (a, s)", "int64[2] s = {2, 3}", a=(2, 5)),
    case(
        "u, v = Split <axis = 1> (a, s)\n w = Mul(v, v)\n y = Concat <axis = -1> (w, u)",
        "int64[2] s = {2, 3}",
        a=(2, 5),
    ),
    *(case("y = Tile(a, r)", f"int64[2] r = {r}", a=(2, 3)) for r in ("{2, 1}", "{3, 2}")),
    case("r = Shape(b)\n y = Tile(a, r)", parameters=("a",), a=(1, 3), b=(3, 2)),
    *(
        case(f'y = DepthToSpace <blocksize = {b}, mode = "{mode}"> (a)', a=(2, 2 * b**2, 2, 3))
        for b in (1, 2, 3)
        for mode in ("DCR", "CRD")
    ),
    case("y = Concat <axis = 1> (a, b)", a=(2, 3), b=(2, 4)),
    case("y = Concat <axis = -1> (a, b, a)", a=(2, 3), b=(2, 4)),
    case("y = Concat <axis = 0> (a)", a=(2, 3)),
    case("y = Trilu(a, k)", "int64 k = {1}", a=(3, 3)),
    *(
        case(
            "y = Slice(a, s, e, x, t)",
            ", ".join(f"int64[{len(v)}] {n} = {{{str(v)[1:-1]}}}" for n, v in bounds.items()),
            a=(3, 5),
        )
        for bounds in [
            {"s": [1], "e": [3], "x": [0], "t": [1]},
            {"s": [1], "e": [BIG], "x": [1], "t": [1]},
            {"s": [-2], "e": [BIG], "x": [-1], "t": [1]},
            {"s": [0], "e": [-1], "x": [0], "t": [1]},
            {"s": [0, 1], "e": [2, 4], "x": [0, 1], "t": [1, 2]},
            {"s": [-1], "e": [-BIG], "x": [1], "t": [-1]},
            {"s": [4], "e": [0], "x": [1], "t": [-2]},
            {"s": [-100], "e": [100], "x": [1], "t": [3]},
            {"s": [2], "e": [2], "x": [0], "t": [1]},  # nothing
            {"s": [2], "e": [1], "x": [0], "t": [1]},
        ]
    ),
    case("y = Slice(a, s, e)", "int64[2] s = {1, -3}, int64[2] e = {2, 4}", a=(3, 5)),
    case(
        "e = Shape <start = 1, end = 2> (b)\n y = Slice(a, s, e, x)",
        "int64[1] s = {1}, int64[1] x = {1}",
        parameters=("a",), a=(3, 5), b=(2, 4),
    ),
    *(  # bounds that are computed, as exporters write a chunk or a split
        case(
            f"n = Shape <start = 0, end = {count}> (b)\n s = {start}\n e = Add(s, two)\n"
            f"y = Slice(a, s, e{rest})",
            f"int64[1] two = {{2}}, int64[1] far = {{9}}, {given}",
            parameters=("a",), a=(3, 5), b=(1, 2),
        )
        for count, start, rest, given in [
            (1, "Identity(n)", ", x", "int64[1] x = {-1}"),
            (1, "Neg(n)", ", x", "int64[1] x = {1}"),
            (1, "Sub(n, far)", ", x", "int64[1] x = {1}"),
            (1, "Add(n, far)", ", x", "int64[1] x = {1}"),  # nothing
            (2, "Identity(n)", ", x", "int64[2] x = {1, 0}"),
            (2, "Identity(n)", "", "int64 unused = {0}"),
            (1, "Identity(n)", ", x, t", "int64[1] x = {1}, int64[1] t = {2}"),
            (1, "Identity(n)", ", x, k", "int64[1] x = {1}, int64[1] k = {1}"),
        ]
    ),
    case(
        "s = Cast <to = 6> (n)\n y = Slice(a, s, e, x)",
        "int64[1] n = {1}, int32[1] e = {4}, int32[1] x = {1}",
        a=(3, 5),
    ),
    case("y = Pad(a, p)", "int64[4] p = {1, 0, 2, 1}", a=(2, 3)),
    case("y = Pad(a, p, v)", "int64[4] p = {1, -1, 2, 1}, FLOAT v = {3}", a=(2, 3)),
    case("y = Pad(a, p, , last)", f"int64[2] p = {{1, 2}}, {LAST}", a=(2, 3)),
    *(
        case(f'y = Pad <mode = "{mode}"> (a, p)', "int64[4] p = {1, 2, 2, 1}", a=(3, 4))
        for mode in ("reflect", "edge", "wrap")
    ),
]  # fmt: skip

INDEXING = [
    *(
        case(f"y = Gather <axis = {axis}> (a, i)", given, a=(4, 3))
        for axis in (0, 1, -1)
        for given in (
            "int64[4] i = {0, -1, 0, 2}",
            "int64 i = {-1}",
            "int32[2, 2] i = {0, 2, 0, 2}",
            "int64[0] i = {}",
        )
    ),
    case("y = Gather <axis = 1> (a, i)", "int64[2, 2] i = {0, -1, 0, 2}", a=(2, 4, 3)),
    case("y = Gather(a, i)", "int64[3] i = {1, 1, -2}", a=(4,)),
    case("y = GatherND(a, i)", "int64[3, 1] i = {0, -1, 0}", a=(4, 3)),
    case("y = GatherND(a, i)", "int64[3, 2] i = {0, 1, -1, 0, 0, 1}", a=(4, 3, 2)),
    case("y = GatherND(a, i)", "int64[2, 2, 2] i = {0, 1, -1, 0, 0, 1, 0, 1}", a=(4, 3)),
    case("y = GatherND <batch_dims = 1> (a, i)", "int64[2, 1] i = {0, -1}", a=(2, 3, 2)),
    case("y = GatherElements <axis = 1> (a, i)", "int64[2, 3] i = {0, -1, 0, 2, 2, 1}", a=(2, 4)),
    case("y = GatherElements(a, i)", "int64[3, 2] i = {0, -1, 0, 2, 2, 1}", a=(4, 2)),
    case("y = ScatterND(a, i, b)", "int64[2, 1] i = {1, 3}", a=(4, 3), b=(2, 3)),
    case(
        's = ScatterND <reduction = "add"> (a, i, b)\n y = Mul(s, s)',
        "int64[3, 2] i = {0, 1, -1, 0, 0, -2}",
        a=(4, 3, 2), b=(3, 2),
    ),
    case(
        "y = ScatterElements <axis = 1> (a, i, b)",
        "int64[2, 2] i = {0, -1, 2, 1}",
        a=(2, 4), b=(2, 2),
    ),
]  # fmt: skip

# A last axis of size 1 that is the forward model's own, and none of a derivative.
LAST_AXES = [
    *(
        case(f"u = Unsqueeze(a, last)\n {rest}", f"{LAST}, {given}", a=(2, 6))
        for rest, given in [
            ("v = Exp(u)\n y = Reshape(v, s)", "int64[2] s = {3, -1}"),
            ("v = Exp(u)\n w = Squeeze(v, s)\n y = Mul(w, w)", "int64[1] s = {2}"),
            ("v = Exp(u)\n w = Unsqueeze(v, s)\n y = Mul(w, w)", "int64[1] s = {3}"),
            ("v = Exp(u)\n y = Expand(v, s)", "int64[3] s = {2, 6, 3}"),
            ("v = ReduceSum <keepdims = 0> (u, s)\n y = Mul(v, a)", "int64[2] s = {0, 2}"),
        ]
    ),
    *(
        case(f"u = Unsqueeze(a, last)\n {rest}", LAST, a=(2, 6), b=b)
        for rest, b in [
            ("v = Add(u, b)\n y = Mul(v, v)", (6, 3)),
            ("v = Exp(u)\n y = MatMul(v, b)", (1, 3)),
            ("v = Transpose <perm = [1, 0, 2]> (u)\n y = Mul(v, b)", (4,)),
        ]
    ),
]

SUBGRAPHS = [
    case(
        "c = Greater(b, zero)\n y = If (c) <"
        "then_branch = yes () => (FLOAT[4, 3] t)"
        "{ u = Gather(a, i)\n t = Concat <axis = 0> (u, u) },"
        "else_branch = no () => (FLOAT[4, 3] f) { f = Mul(a, a) }>",
        "FLOAT zero = {0}, int64[2] i = {1, 1}",
        positive="b", parameters=("a",), a=(4, 3), b=(),
    ),
]  # fmt: skip

GROUPS = {
    "matrices": MATRICES,
    "elementwise": ELEMENTWISE,
    "reductions": REDUCTIONS,
    "structure": STRUCTURE,
    "indexing": INDEXING,
    "last axes": LAST_AXES,
    "subgraphs": SUBGRAPHS,
}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{group}: {c}") for group, cases in GROUPS.items() for c in cases],
)
def test_equals_differences(case: Case, shapes: str) -> None:
    arrays = case.arrays()
    grad, expected = differences(case, arrays)
    found = gradients_of(case, shapes, "double", arrays, grad)
    assert largest_error(found, expected) <= DIFFERENCES


def heads(x: Any) -> Any:
    """[batch, length, 8] to [batch, 2 heads, length, 4]."""
    return x.unflatten(-1, (2, 4)).transpose(1, 2)


def attention(*arguments: Any, **options: Any) -> Any:
    return F.scaled_dot_product_attention(*arguments, **options)


HEADS: dict[str, tuple[int, ...]] = {"q": (2, 2, 3, 4), "k": (2, 2, 5, 4), "v": (2, 2, 5, 4)}

# What ONNX Runtime has for float32 alone.
SINGLE: list[tuple[Case, Callable[..., Any]]] = [
    (case("y = Gelu(a)", a=(2, 3)), F.gelu),
    (
        case('y = Gelu <approximate = "tanh"> (a)', a=(2, 3)),
        lambda a: F.gelu(a, approximate="tanh"),
    ),
    (case("y = Gelu(a)", opset=20, a=(2, 1, 3)), F.gelu),
    (case("y = Erf(a)", a=(2, 3)), torch.erf),
    (case("y = Softplus(a)", a=(2, 3)), F.softplus),
    (case("y = Elu(a)", a=(2, 3)), F.elu),
    (case("y = Selu(a)", a=(2, 3)), F.selu),
    (case("y = LeakyRelu(a)", a=(2, 3)), F.leaky_relu),
    (case("y = HardSigmoid(a)", a=(2, 3)), lambda a: (0.2 * a + 0.5).clip(0, 1)),
    (case("y = HardSwish(a)", a=(2, 3)), F.hardswish),
    (case("y = Mish(a)", a=(2, 3)), F.mish),
    (case("y = Swish(a)", opset=24, a=(2, 3)), F.silu),
    (case("y = PRelu(a, b)", a=(2, 3), b=(3,)), lambda a, b: torch.where(a < 0, a * b, a)),
    (case("y = Mean(a, b)", a=(2, 3), b=(3,)), lambda a, b: (a + b) / 2),
    (
        case("y = InstanceNormalization(a, g, b)", a=(2, 3, 4, 2), g=(3,), b=(3,)),
        lambda a, g, b: F.instance_norm(a, weight=g, bias=b),
    ),
    (
        case(
            "y = GroupNormalization <num_groups = 2> (a, g, b)",
            opset=21,
            a=(2, 4, 3),
            g=(4,),
            b=(4,),
        ),
        lambda a, g, b: F.group_norm(a, 2, g, b),
    ),
    (
        case("y = RMSNormalization(a, g)", opset=23, a=(2, 4, 3), g=(3,)),
        lambda a, g: F.rms_norm(a, (3,), g, eps=1e-5),
    ),
    (case("y = GlobalAveragePool(a)", a=(2, 3, 4, 5)), lambda a: a.mean((2, 3), keepdim=True)),
    (case("y = GlobalMaxPool(a)", a=(2, 3, 4, 5)), lambda a: a.amax((2, 3), keepdim=True)),
    (case("y = Attention(q, k, v)", opset=23, **HEADS), attention),
    (
        case("y = Attention <scale = 0.3> (q, k, v, m)", opset=23, **HEADS, m=(3, 5)),
        lambda q, k, v, m: attention(q, k, v, attn_mask=m, scale=0.3),
    ),
    (
        case(
            "y = Attention <is_causal = 1> (q, k, v)", opset=23, **dict.fromkeys("qkv", HEADS["q"])
        ),
        lambda *qkv: attention(*qkv, is_causal=True),
    ),
    (
        case(
            "y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)",
            opset=23,
            **dict.fromkeys("qkv", (2, 3, 8)),
        ),
        lambda *qkv: attention(*map(heads, qkv)).transpose(1, 2).flatten(2),
    ),
]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(
    ("case", "function"), [pytest.param(*row, id=str(row[0])) for row in SINGLE]
)
def test_equals_torch(case: Case, function: Callable[..., Any], shapes: str) -> None:
    arrays = case.arrays()
    y, grad, expected = torch_gradients(
        function, arrays, lambda shape: np.asarray(case.rng.normal(size=shape))
    )
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    (run,) = session_of(model_of(case, shapes, "float")).run(["y"], single)
    # Some tens of roundings to float32, 6e-8 each.
    np.testing.assert_allclose(run, y, atol=2e-6)
    assert largest_error(gradients_of(case, shapes, "float", arrays, grad), expected) <= 2e-6


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            case("y = Pad(a, p, b)", "int64[4] p = {1, 0, 2, 1}", a=(2, 3), b=()),
            "Pad node 'y': its constant_value depends on a parameter",
        ),
        (
            case('y = Einsum <equation = "ii->i"> (a)', a=(3, 3)),
            "Einsum node 'y': Einsum with a repeated index",
        ),
        (
            case("y = Pow(a, b)", a=(2,), b=(2,)),
            "Pow node 'y': Pow with a differentiated integer exponent",
        ),
    ],
    ids=["Pad", "Einsum", "Pow"],
)
def test_refused(graph: Case, message: str) -> None:
    model = model_of(graph, "static", "double")
    if "Pow" in graph.body:  # of another type
        model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    with pytest.raises(UnsupportedOperator, match=message):
        with_seed(model, graph.names)
