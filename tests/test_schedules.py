"""Schedules: their formulas, ends, range and errors."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gce import schedules

ALL = [
    schedules.constant(0.3),
    schedules.linear(10, start=0.1, end=0.9, warmup_steps=2),
    schedules.cosine(10, start=0.1, end=0.9, warmup_steps=2),
    schedules.exponential(10, start=0.1, end=0.9, warmup_steps=2),
]
each = pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)


def test_constant():
    assert [schedules.constant(0.3)(step) for step in (0, 1, 10**9)] == [0.3] * 3


@pytest.mark.parametrize(
    ("factory", "curve"),
    [
        (schedules.linear, lambda t: t),
        (schedules.cosine, lambda t: (1 - math.cos(math.pi * t)) / 2),
    ],
)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.2, 0.7), (1.0, 0.0)])
def test_ramps_follow_their_curve(factory, curve, start, end):
    schedule = factory(50, start=start, end=end, warmup_steps=10)
    for step in range(60):
        t = min(max((step - 10) / 40, 0.0), 1.0)
        # Numbers up to 1, a few roundings.
        assert schedule(step) == pytest.approx(start + (end - start) * curve(t), abs=1e-15)


def test_exponential_halves_its_distance():
    schedule = schedules.exponential(7, start=0.2, end=0.8, warmup_steps=3)
    for halvings in range(20):
        # As above.
        assert 0.8 - schedule(3 + 7 * halvings) == pytest.approx(0.6 * 0.5**halvings, abs=1e-15)
    assert schedule(10**9) == 0.8


@each
def test_starts_at_start_and_holds_the_end(schedule):
    start = getattr(schedule, "start", 0.3)
    end = getattr(schedule, "end", 0.3)
    assert [schedule(step) for step in (0, 1, 2)] == [start] * 3
    assert schedule(10**6) == schedule(10**300) == end


@pytest.mark.parametrize("factory", [schedules.linear, schedules.cosine, schedules.exponential])
@pytest.mark.parametrize(("start", "end"), [(0.3, 0.1), (0.1, 0.46), (0.1, 0.1)])
def test_ends_are_exact(factory, start, end):
    schedule = factory(10, start=start, end=end)
    assert schedule(0) == start
    assert schedule(10_000) == end
    if factory is not schedules.exponential:
        assert schedule(10) == end


def test_exponential_warms_up_whatever_its_half_life():
    # 2^(10 / 1e-3) would overflow.
    assert schedules.exponential(1e-3, start=0.2, warmup_steps=10)(0) == 0.2


@each
def test_rises_without_a_step_back(schedule):
    values = [schedule(step) for step in np.arange(0, 200, 0.25)]
    assert values == sorted(values)


@given(
    st.sampled_from([schedules.linear, schedules.cosine, schedules.exponential]),
    st.integers(1, 10**9),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1e12),
)
def test_never_leaves_the_range_from_start_to_end(factory, steps, start, end, step):
    gamma = factory(steps, start=start, end=end)(step)
    assert type(gamma) is float
    assert min(start, end) <= gamma <= max(start, end)


@each
def test_prints_compares_hashes_copies_and_pickles(schedule):
    assert eval(repr(schedule), vars(schedules)) == schedule
    for twin in (copy.copy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert twin(5) == schedule(5)
    with pytest.raises(AttributeError):
        schedule.end = 0.5


def test_schedules_of_different_kinds_or_settings_differ():
    assert schedules.linear(10) != schedules.cosine(10)
    assert schedules.linear(10) != schedules.linear(11)


@each
def test_takes_the_integers_and_floats_of_numpy(schedule):
    want = schedule(5)
    for step in (np.int32(5), np.uint8(5), np.float32(5), 5.0):
        got = schedule(step)
        assert type(got) is float
        assert got == want


@each
@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ValueError, r"step = -1, expected a finite number of at least 0"),
        (-0.5, ValueError, r"step = -0\.5, expected"),
        (math.nan, ValueError, r"step = nan, expected"),
        (math.inf, ValueError, r"step = inf, expected"),
        ("3", TypeError, r"step = '3', expected a real number"),
        (None, TypeError, r"step = None, expected"),
        (True, TypeError, r"step = True, expected"),
        (10**400, ValueError, r"step is larger than any float, expected"),
    ],
)
def test_bad_step(schedule, step, error, message):
    with pytest.raises(error, match=message):
        schedule(step)


@pytest.mark.parametrize("factory", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((0,), {}, ValueError, r"total_steps = 0, expected an integer of at least 1"),
        ((-3,), {}, ValueError, r"total_steps = -3, expected"),
        ((2.5,), {}, TypeError, r"total_steps = 2\.5, expected an integer"),
        ((True,), {}, TypeError, r"total_steps = True, expected an integer"),
        ((10**5000,), {}, ValueError, r"total_steps has 16610 bits, expected a 64-bit integer"),
        ((np.array([1]),), {}, TypeError, r"total_steps = array\(\[1\]\), expected an integer"),
        ((9,), {"end": 10**400}, ValueError, r"end is larger than any float, expected"),
        ((9,), {"warmup_steps": -1}, ValueError, r"warmup_steps = -1, expected .* at least 0"),
        ((9,), {"warmup_steps": 9}, ValueError, r"warmup_steps = 9, .* total_steps = 9"),
        ((9,), {"warmup_steps": 1.0}, TypeError, r"warmup_steps = 1\.0, expected an integer"),
    ],
)
def test_bad_ramp(factory, args, kwargs, error, message):
    with pytest.raises(error, match=message):
        factory(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((0,), {}, ValueError, r"half_life = 0\.0, expected a finite number of steps above 0"),
        ((-1.0,), {}, ValueError, r"half_life = -1\.0, expected"),
        ((math.inf,), {}, ValueError, r"half_life = inf, expected"),
        ((math.nan,), {}, ValueError, r"half_life = nan, expected"),
        (("9",), {}, TypeError, r"half_life = '9', expected a real number"),
        ((9,), {"warmup_steps": -1}, ValueError, r"warmup_steps = -1, expected"),
    ],
)
def test_bad_exponential(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        schedules.exponential(*args, **kwargs)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf])
def test_gamma_outside_its_range(bad):
    expected = r"expected a number in \[0, 1\]"
    with pytest.raises(ValueError, match=f"gamma = {bad}, {expected}"):
        schedules.constant(bad)
    for factory in (schedules.linear, schedules.cosine, schedules.exponential):
        for name in ("start", "end"):
            with pytest.raises(ValueError, match=f"{name} = {bad}, {expected}"):
                factory(10, **{name: bad})
            with pytest.raises(TypeError, match=f"{name} = '0', expected a real number"):
                factory(10, **{name: "0"})


def test_options_are_keyword_only():
    for factory in (schedules.linear, schedules.cosine, schedules.exponential):
        with pytest.raises(TypeError):
            factory(10, 0.5)
