"""The passes at the machine's limit, which benchmarks compare with: they must do what they say."""

from __future__ import annotations

import numpy as np
import pytest

from gce import _native

PIECE = 64 * 1024  # of native/python/limits.cpp: what a thread takes at a time
SIZES = [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 257, 1021, PIECE, 2 * PIECE + 1]


def floats(size: int, shift: int) -> np.ndarray:
    """Floats that begin `shift` floats after a vector's boundary, nearly enough."""
    return np.random.default_rng(size).normal(size=size + shift).astype(np.float32)[shift:]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 1, 5])
def test_they_do_what_numpy_does(size: int, shift: int, cached: bool, threads: int) -> None:
    array = floats(size, shift)
    largest = _native.limit_read(array, threads, cached)
    assert largest == (array.max() if size else -np.inf)
    around = np.full(size + 2 * shift + 2, 7, np.float32)
    out = around[shift + 1 : shift + 1 + size]
    _native.limit_copy(out, array, threads, cached)
    np.testing.assert_array_equal(out, array)
    _native.limit_scale(out, 3.0, threads)
    np.testing.assert_array_equal(out, array * np.float32(3))
    assert (around[: shift + 1] == 7).all()
    assert (around[shift + 1 + size :] == 7).all()


@pytest.mark.parametrize("place", [0, 15, 16, 63, 64, 1020, 2 * PIECE])
def test_the_largest_is_found_everywhere(isa: str, place: int) -> None:
    assert isa == _native.isa_name()
    array = np.full(2 * PIECE + 1, -2, np.float32)
    array[place] = -1
    assert _native.limit_read(array, 2) == -1


GOOD = np.zeros(4, np.float32)
LOCKED = np.zeros(4, np.float32)
LOCKED.flags.writeable = False
BAD = {
    "list": ([1.0], TypeError, "expected a contiguous array of float32"),
    "dtype": (np.zeros(4), TypeError, "expected a contiguous array of float32"),
    "byte order": (np.zeros(4, ">f4"), TypeError, "expected a contiguous array of float32"),
    "unaligned": (
        np.zeros(17, np.uint8)[1:].view(np.float32), TypeError, "contiguous array of float32"
    ),
    "strided": (np.zeros(8, np.float32)[::2], ValueError, "contiguous array of float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_array_of_floats_is_named(name: str) -> None:
    array, error, message = BAD[name]
    for call in (
        lambda: _native.limit_read(array),
        lambda: _native.limit_copy(GOOD.copy(), array),
        lambda: _native.limit_scale(array, 2.0),
    ):
        with pytest.raises(error, match=f"array: .*{message}"):
            call()
    with pytest.raises(error, match=f"out: .*{message}"):
        _native.limit_copy(array, GOOD)


def test_other_mistakes() -> None:
    with pytest.raises(ValueError, match="array is read-only"):
        _native.limit_scale(LOCKED, 2.0)
    with pytest.raises(ValueError, match="out is read-only"):
        _native.limit_copy(LOCKED, GOOD)
    with pytest.raises(ValueError, match="out has 4 elements, array has 3"):
        _native.limit_copy(GOOD.copy(), GOOD[:3])
    shared = np.zeros(9, np.float32)
    with pytest.raises(ValueError, match="share memory"):
        _native.limit_copy(shared[:5], shared[4:])
    with pytest.raises(ValueError, match="num_threads = 0, expected at least 1"):
        _native.limit_read(GOOD, 0)
