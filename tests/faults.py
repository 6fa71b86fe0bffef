"""Bad input of every kind, and what is to be said about it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pytest

FLOATS = "expected float16, bfloat16, float32 or float64"
INTEGER = "expected an integer dtype, or a float dtype for probabilities"
INDICES = (
    "expected an integer dtype for one class per row, "
    "or probabilities of the shape of logits (4, 5)"
)


def arguments() -> dict[str, Any]:
    """A problem without fault: 4 rows of 5 classes."""
    return {
        "logits": np.linspace(-2, 2, 20, dtype=np.float32).reshape(4, 5),
        "targets": np.array([0, 1, 2, 3]),
        "gamma": 0.5,
    }


def with_element(at: Any, value: Any, array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


def memory_of(array: np.ndarray) -> np.ndarray:
    """The array whose memory this one is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def call_in_vain(
    function: Any, error: type[Exception], message: str, given: dict[str, Any]
) -> None:
    """Call; expect this error, and every byte in reach of the arguments as it was."""
    memory = [memory_of(item) for item in given.values() if isinstance(item, np.ndarray)]
    before = [array.tobytes() for array in memory if not array.dtype.hasobject]
    with pytest.raises(error, match=message) as caught:
        function(**given)
    assert caught.type is error
    assert [array.tobytes() for array in memory if not array.dtype.hasobject] == before


class Wrong(NamedTuple):
    """Arguments that replace those of `arguments`, and what is to be said about them."""

    given: dict[str, Any]
    error: type[Exception]
    message: str  # the whole of it, or a pattern where it starts with "re:"

    @property
    def pattern(self) -> str:
        is_pattern = self.message.startswith("re:")
        return f"^{self.message[3:] if is_pattern else re.escape(self.message)}$"


ROWS = np.full(4, 0.5)
CUBE = np.zeros((2, 2, 5), np.float32)
SQUARE = np.array([[0, 1], [2, 3]])
EYE = np.ones((4, 5), np.float32)

WRONG_DTYPES = [
    *(
        Wrong({"logits": EYE.astype(dtype)}, TypeError, f"logits has dtype {name}, {FLOATS}")
        for dtype, name in [
            ("int8", "int8"),
            ("int64", "int64"),
            ("uint32", "uint32"),
            ("bool", "bool"),
            ("complex64", "complex64"),
            ("object", "object"),
            ("U3", "<U3"),
            ("S3", "|S3"),
            ("M8[s]", "datetime64[s]"),
            ("V4", "|V4"),
            (">f4", ">f4"),
            (">f8", ">f8"),
            (">f2", ">f2"),
        ]
    ),
    Wrong(
        {"logits": np.zeros((4, 5), [("a", "f4")])},
        TypeError,
        f"logits has dtype [('a', '<f4')], {FLOATS}",
    ),
    *(  # where it is another type than double
        [
            Wrong(
                {"logits": EYE.astype("longdouble")},
                TypeError,
                rf"re:logits has dtype .*, {FLOATS}",
            )
        ]
        if np.dtype("longdouble").itemsize > 8
        else []
    ),
    Wrong({"logits": [[1, 2], [3, 4]]}, TypeError, f"logits has dtype int64, {FLOATS}"),
    Wrong({"logits": "logits"}, TypeError, f"logits has dtype <U6, {FLOATS}"),
    Wrong({"logits": None}, TypeError, f"logits has dtype object, {FLOATS}"),
    Wrong({"logits": {}}, TypeError, f"logits has dtype object, {FLOATS}"),
    *(
        Wrong({"targets": np.zeros(4, dtype)}, TypeError, f"targets has dtype {dtype}, {INDICES}")
        for dtype in ("float32", "float64")
    ),
    *(
        Wrong({"targets": np.zeros(4, dtype)}, TypeError, f"targets has dtype {name}, {INTEGER}")
        for dtype, name in [
            ("bool", "bool"),
            ("complex128", "complex128"),
            ("object", "object"),
            ("U1", "<U1"),
            ("m8[s]", "timedelta64[s]"),
            (">i4", ">i4"),
            (">u8", ">u8"),
        ]
    ),
    Wrong({"targets": [0.0, 1.0, 2.0, 3.0]}, TypeError, f"targets has dtype float64, {INDICES}"),
    Wrong({"targets": None}, TypeError, f"targets has dtype object, {INTEGER}"),
    *(
        Wrong({option: item}, TypeError, f"{option} has dtype {name}, {FLOATS}")
        for option in ("gamma", "threshold", "weight", "sample_weight", "grad_output")
        for item, name in [
            ("0.1", "<U3"),
            (b"0.1", "|S3"),
            (0.5j, "complex128"),
            (np.full(4, 0.5, object), "object"),
            (["a"] * 4, "<U1"),
            (object, "object"),
            (np.zeros(4, "M8[D]"), "datetime64[D]"),
        ]
    ),
    Wrong({"gamma": None}, TypeError, f"gamma has dtype object, {FLOATS}"),
]

WRONG_SHAPES = [
    Wrong(
        {"logits": np.float32(1.0), "targets": 0},
        ValueError,
        "logits has 0 dimensions, expected 1 to 64",
    ),
    Wrong(
        {"logits": np.empty((4, 0), np.float32)},
        ValueError,
        "logits has shape (4, 0), expected at least 1 class along axis 1",
    ),
    Wrong(
        {"logits": np.empty((0, 4), np.float32), "axis": 0},
        ValueError,
        "logits has shape (0, 4), expected at least 1 class along axis 0",
    ),
    Wrong(
        {"logits": np.empty(0), "targets": 0},
        ValueError,
        "logits has shape (0,), expected at least 1 class along axis 0",
    ),
    Wrong(
        {"targets": np.array([0, 1, 2])},
        ValueError,
        "targets has shape (3,), expected (4,): the shape of logits (4, 5) without axis 1",
    ),
    Wrong(
        {"targets": np.zeros((4, 1), np.int64)},
        ValueError,
        "targets has shape (4, 1), expected (4,): the shape of logits (4, 5) without axis 1",
    ),
    Wrong(
        {"targets": 0},
        ValueError,
        "targets has shape (), expected (4,): the shape of logits (4, 5) without axis 1",
    ),
    Wrong(
        {"axis": 0},
        ValueError,
        "targets has shape (4,), expected (5,): the shape of logits (4, 5) without axis 0",
    ),
    Wrong(
        {"targets": np.eye(4, 5, dtype=int)},
        ValueError,
        "targets has shape (4, 5), expected (4,): the shape of logits (4, 5) without axis 1, "
        "or a float dtype for probabilities",
    ),
    Wrong(
        {"logits": CUBE, "targets": SQUARE[0]},
        ValueError,
        "targets has shape (2,), expected (2, 2): the shape of logits (2, 2, 5) without axis 2",
    ),
    Wrong(
        {"logits": np.zeros(5), "targets": [0]},
        ValueError,
        "targets has shape (1,), expected (): the shape of logits (5,) without axis 0",
    ),
    *(
        Wrong(
            {name: np.full(shape, 0.5)},
            ValueError,
            f"{name} has shape {shape}, expected a scalar or (4,), the shape of targets",
        )
        for name in ("gamma", "threshold")
        for shape in [(1,), (3,), (5,), (4, 1), (1, 4), (0,)]
    ),
    *(
        Wrong(
            {"sample_weight": np.ones(shape)},
            ValueError,
            f"sample_weight has shape {shape}, expected (4,), the shape of targets",
        )
        for shape in [(), (1,), (5,), (4, 1), (4, 5)]
    ),
    *(
        Wrong(
            {"weight": np.ones(shape)},
            ValueError,
            f"weight has shape {shape}, expected (5,): one per class of logits (4, 5)",
        )
        for shape in [(), (1,), (4,), (5, 1), (1, 5), (0,)]
    ),
    *(
        Wrong(
            {"grad_output": np.ones(shape), "reduction": "none"},
            ValueError,
            f"grad_output has shape {shape}, expected a scalar or (4,), the shape of targets",
        )
        for shape in [(1,), (3,), (4, 5)]
    ),
    *(
        Wrong(
            {"grad_output": ROWS, "reduction": reduction},
            ValueError,
            'grad_output has shape (4,), expected a scalar unless reduction is "none"',
        )
        for reduction in ("mean", "sum")
    ),
    Wrong({"logits": [[1.0], [2.0, 3.0]]}, ValueError, "re:.*inhomogeneous shape.*"),
]

WRONG_RANGES = [
    *(
        Wrong({name: item}, ValueError, f"re:{name} = {text}, expected 0 <= {name} <= 1")
        for name in ("gamma", "threshold")
        for item, text in [
            (-1, "-1"),
            (2, "2"),
            (-1e-320, r"-9\.99\d+e-321"),
            (1.5, r"1\.5"),
            (1.1, r"1\.1"),  # and not 1.1000000000000001
            (1 + 2**-52, r"1\.0000000000000002"),  # enough digits to see what is wrong
            (np.float32(1.5), r"1\.5"),
            (np.inf, "inf"),
            (-np.inf, "-inf"),
            (np.nan, "-?nan"),
            (-np.nan, "-?nan"),
            (np.array(-0.5), r"-0\.5"),
            (10**30, r"1e\+30"),
        ]
    ),
    *(
        Wrong(
            {name: with_element(at, item, ROWS.astype(dtype))},
            ValueError,
            rf"re:{name}\[{at}\] = {text}, expected 0 <= {name} <= 1",
        )
        for name in ("gamma", "threshold")
        for dtype in ("float16", "float32", "float64")
        for at, item, text in [
            (0, -0.5, r"-0\.5"),
            (2, np.nan, "-?nan"),
            (3, 1.5, r"1\.5"),
            (3, np.inf, "inf"),
        ]
    ),
    Wrong({"gamma": [0, 0, 0, 7]}, ValueError, "gamma[3] = 7, expected 0 <= gamma <= 1"),
    *(
        Wrong(
            {
                "logits": CUBE,
                "targets": SQUARE,
                name: with_element((1, 0), 3.0, ROWS.reshape(2, 2)),
            },
            ValueError,
            f"{name}[1, 0] = 3, expected 0 <= {name} <= 1",
        )
        for name in ("gamma", "threshold")
    ),
    Wrong(
        {"gamma": np.array([0.5, 2.0, -3.0, 0.5])[::-1]},
        ValueError,
        "gamma[1] = -3, expected 0 <= gamma <= 1",
    ),
    # Of no rows the scalars are wrong nevertheless.
    Wrong(
        {"logits": np.empty((0, 5)), "targets": np.empty(0, int), "gamma": 2.0},
        ValueError,
        "gamma = 2, expected 0 <= gamma <= 1",
    ),
    *(
        Wrong({"normalizer": item}, ValueError, f"re:normalizer = {text}, expected a finite .* > 0")
        for item, text in [
            (0, "0"),
            (0.0, "0"),
            (-0.0, "-0"),
            (-1.5, r"-1\.5"),
            (np.nan, "-?nan"),
            (np.inf, "inf"),
            (-np.inf, "-inf"),
        ]
    ),
    *(
        Wrong(
            {"normalizer": 2.0, "reduction": reduction},
            ValueError,
            'normalizer = 2, expected none unless reduction is "mean"',
        )
        for reduction in ("sum", "none")
    ),
    *(
        Wrong(
            {"axis": axis},
            ValueError,
            f"axis = {axis}, expected -2 <= axis < 2 for logits of shape (4, 5)",
        )
        for axis in (2, -3, 64, 2**31 - 1, -(2**31))
    ),
    Wrong({"axis": 2**31}, ValueError, "axis = 2147483648, expected a 32-bit integer"),
    *(
        Wrong({"num_threads": n}, ValueError, f"num_threads = {n}, expected at least 1")
        for n in (0, -1, -(2**31), -(2**40))
    ),
    *(
        Wrong({name: n}, ValueError, f"{name} = {n}, expected a 64-bit integer")
        for name in ("axis", "num_threads", "ignore_index")
        for n in (2**63, -(2**63) - 1, 10**30)
    ),
]

WRONG_WORDS = [
    *(
        Wrong(
            {"reduction": item},
            ValueError,
            f'reduction = "{item!s}", expected "mean", "sum" or "none"',
        )
        for item in ("avg", "", "Mean", "mean ", "γ", 3, ["mean"], True)
    ),
    *(
        Wrong({"value": item}, ValueError, f'value = "{item}", expected "primitive" or "surrogate"')
        for item in ("primal", "", "PRIMITIVE", 0, ("primitive",))
    ),
    *(
        Wrong({name: item}, TypeError, f"{name} has type {kind}, expected int")
        for name in ("axis", "num_threads", "ignore_index")
        for item, kind in [("x", "str"), (1.0, "float"), ([1], "list"), (1j, "complex")]
    ),
    *(
        Wrong({name: None}, TypeError, f"re:{name} = None, expected .+")
        for name in ("threshold", "value", "reduction", "axis", "grad_output")
    ),
    *(
        Wrong(
            {"out": item}, TypeError, f"out has type {type(item).__name__}, expected numpy.ndarray"
        )
        for item in ([[0.0] * 5] * 4, 1.0, "out", (1, 2))
    ),
]


def wrong_targets() -> list[Wrong]:
    cases = []
    for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        bounds = np.iinfo(dtype)
        for found in sorted({5, 6, 100, bounds.max - 1, bounds.max, bounds.min or 12, 127}):
            targets = np.array([0, 1, 2, 3], dtype)
            targets[2] = targets[3] = found  # the first is named
            message = f"targets[2] = {found}, expected 0 <= target < 5"
            cases.append(Wrong({"targets": targets}, IndexError, message))
    for found in (2**63, 2**63 + 5, 2**64 - 1, 2**64 - 100):
        targets = np.array([0, 1, 2, found], np.uint64)
        message = f"targets[3] = {found}, expected 0 <= target < 5"
        cases.append(Wrong({"targets": targets}, IndexError, message))
    # As int64, 2**64 - 100 (above) and 2**64 - 1 would be the default and this ignore_index.
    cases.append(
        Wrong(
            {"targets": np.array([0, 2**64 - 1, 0, 0], np.uint64), "ignore_index": -1},
            IndexError,
            "targets[1] = 18446744073709551615, expected 0 <= target < 5",
        )
    )
    cases += [
        Wrong(
            {"targets": np.array([0, 2, -100, 1]), "ignore_index": ignored},
            IndexError,
            "targets[2] = -100, expected 0 <= target < 5",
        )
        for ignored in (None, 2, 255)
    ]
    wide = np.arange(8).reshape(2, 4) % 5
    logits = np.zeros((2, 4, 5), np.float32)
    cases += [
        Wrong(
            {"logits": logits, "targets": with_element((1, 3), 12, wide)},
            IndexError,
            "targets[1, 3] = 12, expected 0 <= target < 5",
        ),
        Wrong(
            {"logits": logits, "targets": with_element((0, 1), -1, wide).T.copy().T},
            IndexError,
            "targets[0, 1] = -1, expected 0 <= target < 5",
        ),
        Wrong(
            {"logits": np.zeros((2, 1, 1, 3)), "targets": np.array([[[0]], [[3]]])},
            IndexError,
            "targets[1, 0, 0] = 3, expected 0 <= target < 3",
        ),
        Wrong(
            {
                "logits": np.zeros((2, 5, 3), np.float32),
                "axis": 1,
                "targets": [[0, 1, 2], [3, 9, 0]],
            },
            IndexError,
            "targets[1, 1] = 9, expected 0 <= target < 5",
        ),
        Wrong(
            {"logits": np.zeros(5, np.float32), "targets": 7},
            IndexError,
            "targets = 7, expected 0 <= target < 5",
        ),
        # Beyond the rows that fit one vector, and in the last row of many.
        *(
            Wrong(
                {
                    "logits": np.zeros((1000, 3)),
                    "targets": with_element(at, 3, np.zeros(1000, int)),
                },
                IndexError,
                f"targets[{at}] = 3, expected 0 <= target < 3",
            )
            for at in (0, 15, 16, 17, 512, 998, 999)
        ),
    ]
    return cases


TABLE = [*WRONG_DTYPES, *WRONG_SHAPES, *WRONG_RANGES, *WRONG_WORDS, *wrong_targets()]
