"""The functions of log-probabilities: their values, and that they are ufuncs in every respect."""

from __future__ import annotations

import functools
import itertools
import math
import pickle
import warnings
from typing import Any

import mpmath as mp
import numpy as np
import pytest

import gce
import oracle
from gce import reference

UFUNCS = {"loss_from_log_prob": 3, "grad_weight": 3, "gamma_grad": 2}
GAMMAS = [0.0, 1e-300, 1e-30, 1e-7, 0.1, 0.5, 0.9, 1 - 1e-7, 1.0]
THRESHOLDS = [0.0, 1e-10, 0.2, 0.7, 1.0]
LOG_PS = np.array(
    [
        *[0.0, -1e-300, -1e-30, -1e-16, -1e-8, -1e-3, -0.1, -0.49, -0.5, -0.51, -0.69, -0.7, -1.0],
        *[-3.0, -16.0, -37.0, -69.0, -300.0, -700.0, -709.0, -745.0, -746.0, -1500.0, -1e5, -1e30],
        *np.linspace(-6.0, -0.2, 12).tolist(),
    ]
)
every_ufunc = pytest.mark.parametrize("name", UFUNCS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def ufunc_of(name: str) -> np.ufunc:
    ufunc = getattr(gce, name)
    assert isinstance(ufunc, np.ufunc)
    return ufunc


def arguments_of(name: str, log_p: Any, gamma: Any, threshold: Any) -> tuple[Any, ...]:
    return (log_p, gamma, threshold)[: UFUNCS[name]]


def random_arguments(name: str, shape: tuple[int, ...], dtype: str = "float64") -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    log_p = -rng.exponential(3.0, shape).astype(dtype)
    return arguments_of(name, log_p, rng.random(shape), rng.random(shape) ** 3)


# --- values ---------------------------------------------------------------------------------------


@functools.cache  # for the next ISA
def exact(name: str, log_p: float, gamma: float, threshold: float) -> Any:
    if name == "loss_from_log_prob":
        return oracle.value_from_log_prob(log_p, gamma, threshold)
    if name == "grad_weight":
        return oracle.weight_from_log_prob(log_p, gamma, threshold)
    return oracle.gamma_grad(log_p, gamma)


@pytest.mark.parametrize("gamma", GAMMAS)
@every_dtype
@every_ufunc
def test_values_against_50_digits(isa, name, dtype, gamma):
    log_p = LOG_PS.astype(dtype)
    for threshold in THRESHOLDS if UFUNCS[name] == 3 else [0.0]:
        found = ufunc_of(name)(*arguments_of(name, log_p, gamma, threshold))
        assert found.dtype == dtype
        for l_p, got in zip(log_p, found, strict=True):
            want = exact(name, float(l_p), gamma, threshold)
            # In double with errors of at most 4 ulp, then half an ulp of float32. In dL/dγ two
            # terms agree to a part, which trebles them (9 ulp measured).
            ulps = 12 if name == "gamma_grad" else 4
            slack = ulps * 2.3e-16 * abs(want) + (6e-8 * abs(want) if dtype == "float32" else 0)
            # What is below the normal numbers may be denormal or 0.
            slack += float(np.finfo(dtype).tiny)
            if mp.isinf(want) or abs(want) > np.finfo(dtype).max:
                assert got == math.copysign(math.inf, want)
            else:
                assert abs(mp.mpf(float(got)) - want) <= slack, (l_p, threshold, got, mp.nstr(want))


@every_dtype
@every_ufunc
def test_values_against_the_reference(isa, name, dtype):
    arguments = random_arguments(name, (4, 1003), dtype)
    found = ufunc_of(name)(*arguments)
    want = getattr(reference, name)(*arguments)
    # A handful of roundings in each, then half an ulp of float32.
    relative = 5e-15 if dtype == "float64" else 6.1e-8
    np.testing.assert_allclose(found, want, rtol=relative, atol=0.0)


@every_dtype
def test_the_loss_of_logits_from_their_log_probabilities(isa, dtype):
    rng = np.random.default_rng(1)
    logits, targets = (3 * rng.normal(size=(200, 30))).astype(dtype), rng.integers(0, 30, 200)
    log_p = gce.row_stats(logits, targets).target_log_prob
    gamma, threshold = rng.random(200), rng.random(200) ** 2
    loss, grad = gce.loss_and_grad(logits, targets, gamma, threshold=threshold, reduction="none")
    # log_p is rounded before it comes here: 3 roundings, as ℓ's derivative of L is at most -ℓ.
    relative = 3e-15 if dtype == "float64" else 1e-6
    found = gce.loss_from_log_prob(log_p, gamma, threshold)
    np.testing.assert_allclose(found, loss, rtol=relative, atol=relative / 5)
    # The gradient at the target is -w_b (1 - p).
    at_target = np.take_along_axis(grad, targets[:, None], 1)[:, 0]
    found = -gce.grad_weight(log_p, gamma, threshold) * -np.expm1(log_p)
    np.testing.assert_allclose(found, at_target, rtol=5 * relative, atol=relative)


def test_gamma_keeps_its_double(isa):
    # As float32, 1 - 1e-9 is 1 and 1 - γ is lost; 1 - 1e-7 would be 1 - 1.19e-7.
    log_p = np.float32(-3.0)
    for gamma in (1 - 1e-7, 1 - 1e-9, 1e-300, 1e-50):
        loss = gce.loss_from_log_prob(log_p, gamma, 0.0)
        assert type(loss) is np.float32
        assert loss == np.float32(reference.loss_from_log_prob(-3.0, gamma))
    # These differ in double by more than a float32 ulp, and would be equal with γ in float32.
    small = np.float32(-1e4)
    assert gce.loss_from_log_prob(small, 1e-300, 0.0) != gce.loss_from_log_prob(small, 1e-50, 0.0)
    assert gce.loss_from_log_prob(small, 1e-50, 0.0) != gce.loss_from_log_prob(small, 0.0, 0.0)


def test_ends(isa):
    inf = np.float64(np.inf)
    assert gce.loss_from_log_prob(-inf, [0.0, 0.5, 1.0], 0.0).tolist() == [inf, 2 * np.log(2), 1.0]
    assert gce.loss_from_log_prob(-inf, [0.0, 0.5, 1.0], 0.1).tolist() == [inf, inf, inf]
    assert gce.loss_from_log_prob(0.0, GAMMAS, 0.3).tolist() == [0.0] * len(GAMMAS)
    assert gce.grad_weight(-inf, [0.0, 0.5, 1.0], 0.0).tolist() == [1.0, 0.0, 0.0]
    assert gce.grad_weight(-inf, [0.0, 0.5, 1.0], 0.25).tolist() == [1.0, 0.25, 0.25]
    assert gce.grad_weight(0.0, GAMMAS, 0.3).tolist() == [1.0] * len(GAMMAS)
    assert gce.gamma_grad(-inf, [0.0, 1.0]).tolist() == [-inf, -0.5]
    assert not gce.gamma_grad(0.0, GAMMAS).any()


@every_ufunc
def test_zeros_have_the_sign_that_the_reference_gives(isa, name):
    # A loss of -0.0 prints badly and divides worse.
    found = ufunc_of(name)(*arguments_of(name, 0.0, np.array(GAMMAS), 0.0))
    if name == "loss_from_log_prob":
        assert not np.signbit(found).any()
    assert (
        found == getattr(reference, name)(*arguments_of(name, 0.0, np.array(GAMMAS), 0.0))
    ).all()


# --- NaN and ranges -------------------------------------------------------------------------------


@every_dtype
@every_ufunc
def test_nan_in_nan_out_without_a_warning(isa, name, dtype):
    nan = np.dtype(dtype).type(np.nan)
    ufunc = ufunc_of(name)
    with np.errstate(all="raise"):
        for log_p, gamma, threshold in [(nan, 0.5, 0.3), (-1.0, np.nan, 0.3), (-1.0, 0.5, np.nan)]:
            arguments = arguments_of(name, np.dtype(dtype).type(log_p), gamma, threshold)
            if any(np.isnan(arguments)):
                assert np.isnan(ufunc(*arguments))
        for gamma, threshold in itertools.product((0.0, 0.5, 1.0), (0.0, 0.3, 1.0)):
            assert np.isnan(ufunc(*arguments_of(name, nan, gamma, threshold)))
        log_p = np.full(37, -1.0, dtype)
        log_p[::5] = np.nan
        found = ufunc(*arguments_of(name, log_p, 0.5, 0.3))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(log_p))


OUTSIDE = [-1e-300, -0.5, 1 + 2.0**-52, 2.0, np.inf, -np.inf]


@pytest.mark.parametrize("bad", OUTSIDE)
@every_ufunc
def test_parameters_out_of_range_are_invalid(isa, name, bad):
    ufunc = ufunc_of(name)
    log_p = np.array([-1.0, -2.0], np.float32)
    for position in range(1, UFUNCS[name]):
        arguments = [log_p, 0.5, 0.3][: UFUNCS[name]]
        arguments[position] = bad
        message = f"invalid value encountered in {name}"
        with pytest.warns(RuntimeWarning, match=message):  # numpy's default
            found = ufunc(*arguments)
        assert np.isnan(found).all()
        with np.errstate(invalid="raise"), pytest.raises(FloatingPointError, match=message):
            ufunc(*arguments)
        with np.errstate(invalid="ignore"):
            assert np.isnan(ufunc(*arguments)).all()
        # Only where it is out of range.
        arguments[position] = np.array([0.5, bad])
        with np.errstate(all="raise", invalid="ignore"):
            assert np.isnan(ufunc(*arguments)).tolist() == [False, True]


@every_ufunc
def test_a_flag_does_not_outlive_its_call(name):
    ufunc = ufunc_of(name)
    with np.errstate(all="ignore"):
        ufunc(*arguments_of(name, -1.0, 2.0, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ufunc(*arguments_of(name, -1.0, 0.5, 0.0))
        ufunc(*arguments_of(name, -1e308, 1e-300, 0.0))


# --- as a ufunc -----------------------------------------------------------------------------------


@every_ufunc
def test_types(name):
    ufunc, inputs = ufunc_of(name), UFUNCS[name]
    doubles = "d" * (inputs - 1)
    assert ufunc.types == [f"f{doubles}->f", f"d{doubles}->d"]
    assert (ufunc.nin, ufunc.nout, ufunc.__name__) == (inputs, 1, name)
    assert ufunc.identity is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        (">f4", "float32"),
        (">f8", "float64"),
        ("int32", "float64"),
        ("int64", "float64"),
        ("uint64", "float64"),
        ("int8", "float32"),  # numpy's rule: what float32 holds exactly
        ("bool", "float32"),
    ],
)
@every_ufunc
def test_casting_of_log_p(isa, name, given, expected):
    log_p = np.zeros(5, given) if given in ("bool", "uint64") else -np.arange(5).astype(given)
    found = ufunc_of(name)(*arguments_of(name, log_p, 0.5, 0.3))
    assert found.dtype == expected
    want = ufunc_of(name)(*arguments_of(name, log_p.astype(expected), 0.5, 0.3))
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "int64", "bool"])
@every_ufunc
def test_parameters_of_any_dtype(name, dtype):
    gamma = np.array([0, 1, 1, 0]).astype(dtype)
    found = ufunc_of(name)(*arguments_of(name, np.float32(-2.0), gamma, gamma))
    want = ufunc_of(name)(
        *arguments_of(name, np.float32(-2.0), gamma.astype(float), gamma.astype(float))
    )
    assert found.dtype == np.float32  # a float64 γ does not make the result float64
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("bad", [1j, "x", np.array([None]), np.timedelta64(1, "s")], ids=repr)
@every_ufunc
def test_types_that_do_not_fit(name, bad):
    for position in range(UFUNCS[name]):
        arguments = list(arguments_of(name, -1.0, 0.5, 0.3))
        arguments[position] = bad
        with pytest.raises(TypeError):
            ufunc_of(name)(*arguments)
    with pytest.raises(TypeError):
        ufunc_of(name)(-1.0)


@every_ufunc
def test_scalars_in_scalar_out(name):
    ufunc = ufunc_of(name)
    assert type(ufunc(*arguments_of(name, -1.0, 0.5, 0.3))) is np.float64
    assert type(ufunc(*arguments_of(name, -1, 0, 1))) is np.float64
    assert type(ufunc(*arguments_of(name, np.float32(-1), 0.5, 0.3))) is np.float32
    assert type(ufunc(*arguments_of(name, np.array(-1.0), 0.5, 0.3))) is np.float64
    assert type(ufunc(*arguments_of(name, [-1.0], 0.5, 0.3))) is np.ndarray


@every_dtype
@every_ufunc
def test_broadcasting(isa, name, dtype):
    ufunc = ufunc_of(name)
    log_p, gamma, threshold = -np.arange(5.0).astype(dtype), np.array(GAMMAS), np.array(THRESHOLDS)
    arguments = arguments_of(
        name, log_p[:, None, None], gamma[:, None], threshold if UFUNCS[name] == 3 else 0.0
    )
    found = ufunc(*arguments)
    shape = np.broadcast_shapes(*map(np.shape, arguments))
    assert found.shape == shape
    each = np.broadcast_arrays(*arguments)
    for index in np.ndindex(shape):
        # One by one or all at once: the same bits.
        alone = ufunc(*(array[index] for array in each))
        assert alone.tobytes() == found[index].tobytes()
    with pytest.raises(ValueError, match="broadcast"):
        ufunc(*arguments_of(name, log_p, gamma, 0.0))


@every_ufunc
def test_no_elements(name):
    for shape in [(0,), (3, 0), (0, 3)]:
        empty = np.empty(shape, np.float32)
        found = ufunc_of(name)(*arguments_of(name, empty, 0.5, 0.3))
        assert found.shape == shape and found.dtype == np.float32


@every_dtype
@every_ufunc
def test_out(isa, name, dtype):
    arguments = random_arguments(name, (6, 7), dtype)
    want = ufunc_of(name)(*arguments)
    out = np.empty((6, 7), dtype)
    assert ufunc_of(name)(*arguments, out=out) is out
    assert out.tobytes() == want.tobytes()
    assert ufunc_of(name)(*arguments, out).tobytes() == want.tobytes()  # by position
    spread = np.zeros((12, 21), dtype)
    ufunc_of(name)(*arguments, out=spread[::2, ::3])
    np.testing.assert_array_equal(spread[::2, ::3], want)
    assert np.count_nonzero(spread) == np.count_nonzero(want)
    other = np.empty((6, 7), "float32" if dtype == "float64" else "float64")
    ufunc_of(name)(*arguments, out=other, casting="same_kind")
    np.testing.assert_array_equal(other, want.astype(other.dtype))
    with pytest.raises(ValueError, match="shape"):
        ufunc_of(name)(*arguments, out=np.empty((7, 6), dtype))
    with pytest.raises(ValueError, match="read-only"):
        ufunc_of(name)(*arguments, out=np.broadcast_to(np.zeros(1, dtype), (6, 7)))
    with pytest.raises(TypeError, match="cast"):
        ufunc_of(name)(*arguments, out=np.empty((6, 7), np.int64))


@every_dtype
@every_ufunc
def test_where(isa, name, dtype):
    arguments = random_arguments(name, (6, 7), dtype)
    want = ufunc_of(name)(*arguments)
    where = np.arange(42).reshape(6, 7) % 3 == 0
    out = np.full((6, 7), 99, dtype)
    ufunc_of(name)(*arguments, out=out, where=where)
    np.testing.assert_array_equal(out, np.where(where, want, 99))
    # What is left out is not looked at: no flag for a γ that does not count.
    bad = list(arguments)
    bad[1] = np.where(where, arguments[1], 7.0)
    with np.errstate(all="raise"):
        ufunc_of(name)(*bad, out=out, where=where)
    np.testing.assert_array_equal(out, np.where(where, want, 99))


@every_dtype
@every_ufunc
def test_strides(isa, name, dtype):
    for size in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33):
        arguments = random_arguments(name, (size,), dtype)
        want = ufunc_of(name)(*arguments)
        for step in (-1, 2, 3, -2, -5):
            spread = []
            for array in arguments:
                memory = np.full(size * abs(step), np.nan, array.dtype)
                view = memory[:: abs(step)]
                view = view[::-1] if step < 0 else view
                view[...] = array
                spread.append(view)
            assert ufunc_of(name)(*spread).tobytes() == want.tobytes()
        unaligned = np.empty(size * 8 + 1, np.uint8)[1:][: size * arguments[0].itemsize]
        unaligned = unaligned.view(dtype)
        unaligned[...] = arguments[0]
        assert not unaligned.flags.aligned
        assert ufunc_of(name)(unaligned, *arguments[1:]).tobytes() == want.tobytes()
        broadcast = np.broadcast_to(np.float64(0.3), (size,))
        np.testing.assert_array_equal(
            ufunc_of(name)(*arguments_of(name, arguments[0], broadcast, broadcast)),
            ufunc_of(name)(*arguments_of(name, arguments[0], 0.3, 0.3)),
        )


@every_ufunc
def test_memory_orders(name):
    arguments = random_arguments(name, (5, 6, 7))
    want = ufunc_of(name)(*arguments)
    for axes in itertools.permutations(range(3)):
        moved = [array.transpose(axes) for array in arguments]
        np.testing.assert_array_equal(ufunc_of(name)(*moved), want.transpose(axes))
        copied = [array.copy() for array in moved]
        mixed = [copied[0], *moved[1:]]
        np.testing.assert_array_equal(ufunc_of(name)(*mixed), want.transpose(axes))


@every_dtype
@every_ufunc
def test_overlapping_memory(isa, name, dtype):
    for size in (5, 40, 20_000):  # 20,000: more than numpy's buffer of 8192
        arguments = random_arguments(name, (size,), dtype)
        want = ufunc_of(name)(*arguments)
        # In place, exactly.
        log_p = arguments[0].copy()
        ufunc_of(name)(log_p, *arguments[1:], out=log_p)
        assert log_p.tobytes() == want.tobytes()
        # Shifted by one, either way, and backwards: numpy makes the copies that are needed.
        for shift in (1, -1):
            memory = np.zeros(size + 2, dtype)
            memory[1:-1] = arguments[0]
            out = memory[1 + shift : size + 1 + shift]
            ufunc_of(name)(memory[1:-1], *arguments[1:], out=out)
            assert out.tobytes() == want.tobytes()
        memory = arguments[0].copy()
        ufunc_of(name)(memory, *arguments[1:], out=memory[::-1])
        assert memory[::-1].tobytes() == want.tobytes()
        if dtype == "float64":  # over γ itself
            gamma = arguments[1].copy()
            ufunc_of(name)(arguments[0], gamma, *arguments[2:], out=gamma)
            assert gamma.tobytes() == want.tobytes()


@every_ufunc
def test_more_elements_than_numpys_buffer(isa, name):
    arguments = random_arguments(name, (100_003,), "float32")
    want = ufunc_of(name)(*arguments)
    pieces = [
        ufunc_of(name)(*(array[i : i + 777] for array in arguments)) for i in range(0, 100_003, 777)
    ]
    assert np.concatenate(pieces).tobytes() == want.tobytes()
    # Through the buffer, for log_p and γ are cast.
    cast = [arguments[0].astype(">f4"), *(array.astype(">f8") for array in arguments[1:])]
    assert ufunc_of(name)(*cast).tobytes() == want.tobytes()


class Wrapped:
    """An array-like with ufuncs of its own."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return ufunc, method, len(inputs), options


@every_ufunc
def test_array_ufunc_is_honoured(name):
    ufunc = ufunc_of(name)
    arguments = arguments_of(name, Wrapped(), 0.5, 0.3)
    assert ufunc(*arguments, where=True) == (ufunc, "__call__", UFUNCS[name], {"where": True})


@every_ufunc
def test_subclasses_keep_their_class(name):
    masked = np.ma.masked_array([-1.0, -2.0], [False, True])
    found = ufunc_of(name)(*arguments_of(name, masked, 0.5, 0.3))
    assert type(found) is np.ma.MaskedArray


@every_ufunc
def test_pickle(name):
    assert pickle.loads(pickle.dumps(ufunc_of(name))) is ufunc_of(name)


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_reduce_and_accumulate_take_one_element_after_the_other(size):
    values = np.concatenate([[-0.5], np.linspace(0.1, 0.9, size - 1)])
    steps = [values[0]]
    for value in values[1:]:
        steps.append(gce.gamma_grad(steps[-1], value))
    np.testing.assert_array_equal(gce.gamma_grad.accumulate(values), steps)
    np.testing.assert_array_equal(gce.gamma_grad.reduce(values), steps[-1])
    both = np.stack([values, values], axis=1)
    np.testing.assert_array_equal(gce.gamma_grad.reduce(both, axis=0), [steps[-1]] * 2)


def test_an_output_that_is_an_input():
    log_p, gamma = np.linspace(-9.0, 0.0, 41), np.linspace(0.0, 1.0, 41)
    want = gce.gamma_grad(log_p, gamma)
    np.testing.assert_array_equal(gce.gamma_grad(log_p, gamma, out=log_p), want)
    log_p = np.linspace(-9.0, 0.0, 41)
    np.testing.assert_array_equal(gce.gamma_grad(log_p, gamma, out=gamma), want)
