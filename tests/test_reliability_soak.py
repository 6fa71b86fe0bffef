"""reliability/soak.py and kills.py: that they find what they look for, in seconds."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gce
from engines import python
from gce import shards
from reliability import growth, kills, soak
from reliability.checks import CHECKS
from reliability.workers import bad, calls, cases, doors, steps
from support import require

MIB = growth.MIB


def samples(memory: Any, threads: int = 9, files: int = 5) -> list[growth.Sample]:
    return [growth.Sample(int(each), threads, files) for each in memory]


# --- what is flat ---------------------------------------------------------------------------------


def test_growth_is_not_that_of_the_warm_up_or_of_single_samples():
    assert growth.growth(growth.rest([0] * 10 + [100] * 90)) == 0
    assert growth.growth(growth.rest([0] * 40 + [100] * 60, warm_up=40)) == 0
    assert len(growth.rest([1] * 100, warm_up=70)) == 50
    noisy = [100 + (500 if i % 10 == 0 else i % 3) for i in range(200)]
    assert abs(growth.growth(noisy)) <= 1
    assert growth.growth(growth.rest(list(range(1000)))) == pytest.approx(675, abs=2)
    assert growth.growth(growth.rest([7])) == 0


def test_a_slow_leak_is_no_flat_memory():
    # An hour's samples: 12 MiB more, a tenth of what noise moves single ones.
    rng = np.random.default_rng(0)
    flat = 500 * MIB + rng.normal(size=720) * 4 * MIB
    assert growth.figures(samples(flat))["failures"] == 0
    rising = flat + np.linspace(0, 16 * MIB, 720)
    found = growth.figures(samples(rising))
    assert found["failures"] == 1 and found["memory_mib"]["growth"] > 8


def test_threads_and_files_count_too():
    start, end = samples([MIB] * 50), samples([MIB] * 50, threads=12, files=9)
    found = growth.figures(start + end)
    assert (found["failures"], found["threads"]["growth"], found["files"]["growth"]) == (2, 3, 4)
    assert growth.figures([])["failures"] == 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells in /proc")
def test_a_sample_of_a_process():
    # A new one: what this one has freed could hold the bytes.
    done = python(
        """
import os
from reliability import growth
before = growth.sample(os.getpid())
held = bytearray(os.urandom(1000)) * 50_000
with open(os.devnull):
    now = growth.sample(os.getpid())
print(now.memory - before.memory, now.files - before.files)
"""
    )
    assert done.returncode == 0, done.stderr
    memory, files = map(int, done.stdout.split())
    assert 40 * MIB < memory < 60 * MIB
    assert files == 1
    with pytest.raises(OSError):
        growth.sample(2**22 + 1)


# --- cases ----------------------------------------------------------------------------------------


def test_every_public_function_has_cases():
    functions = {name for name in gce.__all__ if callable(getattr(gce, name))}
    functions -= {"LossStats", "RowStats", "get_include", "show_config"}  # no computation
    functions -= {"get_num_threads", "set_num_threads"}  # called between the others
    assert functions == set(cases.MAKERS) - {"shards"}
    assert set(shards.__all__) == {"loss_and_grad", "merge", "partial_stats"}  # all in one case
    assert set(doors.DOORS) == set(bad.DOORS) == set(soak.DOORS)


def test_the_pool_is_what_the_reference_says_and_stays_so():
    before = gce.get_num_threads()
    try:
        made = cases.pool(5, 4 * len(cases.MAKERS))
        gce.set_num_threads(3)
        for case in made:
            for seed in range(3):
                assert cases.bits(case.run(random.Random(seed))) == case.want, case.kind
    finally:
        gce.set_num_threads(before)
    assert set(Counter(case.kind for case in made).values()) == {4}


def test_a_result_beyond_the_promise_makes_no_pool():
    exact = np.array([0.5, 2.0])
    double, single = np.dtype("f8"), np.dtype("f4")
    cases.require_close("loss", exact.astype("f4"), exact, single, 1.0, 1.0)
    for wrong, dtype in (
        (exact * (1 + 3e-6), single),
        (exact + 1e-12, double),
        (exact[:1], double),
    ):
        with pytest.raises(cases.PoolError, match=r"^loss: not what the reference says"):
            cases.require_close("loss", wrong, exact, dtype, 1.0, 1.0)
    with pytest.raises(cases.PoolError):
        cases.require_close("loss", np.array([0.5, np.nan]), exact, double, 1.0, 1.0)


def test_bad_calls_raise_what_they_should():
    for call in bad.of_numpy():
        assert bad.outcome(call) == ""
    none = bad.BadCall(lambda: None, ValueError, "gamma")
    assert bad.outcome(none) == "no error, expected ValueError with 'gamma'"
    wanted = "gamma[1] = 1.5"
    other = bad.BadCall(lambda: gce.loss(bad.LOGITS, bad.TARGETS, 2.0), ValueError, wanted)
    assert "expected 'gamma[1] = 1.5' in it" in bad.outcome(other)
    kind = bad.BadCall(lambda: gce.loss(bad.LOGITS, bad.TARGETS, 2.0), IndexError, "gamma")
    assert bad.outcome(kind).endswith("expected IndexError")


@pytest.mark.parametrize("door", doors.DOORS)
def test_cases_of_a_door(door):
    require(soak.processes.available(door), f"{door} is not installed")
    if door == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    try:
        for case in doors.cases(1, [door], 1):
            assert cases.bits(case.run(random.Random(0))) == case.want
        for call in bad.DOORS[door]():
            assert bad.outcome(call) == ""
    finally:
        if door == "jax":
            jax.config.update("jax_enable_x64", False)


def soaked(made: list[cases.Case], wrong: list[bad.BadCall]) -> dict[str, Any]:
    """Figures of half a second of one thread."""
    one = calls.Soak(made, wrong, time.monotonic() + 0.5, 0)
    one.work(1, random.Random(0))
    return dict(one.figures())


def test_what_is_wrong_is_counted(capfd):
    right = cases.Case("loss", lambda how: [np.ones(2)], cases.bits([np.ones(2)]))
    other = cases.Case("hvp", lambda how: [np.ones(2)], cases.bits([np.zeros(2)]))
    raising = cases.Case("shards", lambda how: [np.ones(2) @ np.ones(3)], ())
    good = bad.BadCall(lambda: gce.loss(1.0, 0, 0.5), ValueError, "logits")
    found = soaked([right], [good])
    assert found["failures"] == 0 < min(found["calls"], found["errors_as_expected"])
    for broken in (other, raising):
        assert soaked([broken], [good])["failures"] > 0
    assert soaked([right], [good._replace(error=TypeError)])["failures"] > 0
    text = capfd.readouterr().err
    assert "case 0, hvp: other bits than on one thread" in text and "matmul" in text


def test_a_thread_that_ends_is_counted(monkeypatch, capfd):
    def no_child(*_: object) -> bool:
        raise OSError("no child today")

    monkeypatch.setattr(calls, "in_child", no_child)
    right = cases.Case("loss", lambda how: [np.ones(2)], cases.bits([np.ones(2)]))
    one = calls.Soak([right], [], time.monotonic() + 60.0, 0)
    one.work(0, random.Random(0))
    assert one.figures()["failures"] == 1
    assert "no child today" in capfd.readouterr().err


def die() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


@pytest.mark.filterwarnings("ignore:.*fork")  # of a process with threads
def test_children_that_fail_are_found(monkeypatch):
    assert calls.in_child(lambda: True) == ""
    assert calls.in_child(lambda: False) == "a child has other bits"
    assert calls.in_child(lambda: bool(os._exit(7))) == "a child ended with 7"
    assert calls.in_child(die) == "a child ended with -9"
    monkeypatch.setattr(calls, "CHILD_LASTS", 0.1)
    assert calls.in_child(lambda: bool(os.read(os.pipe()[0], 1))) == "a child had no end after 0 s"


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("leak", "failures"), [(0, 0), (1024, 1)])
def test_a_leak_of_a_kilobyte_a_call_is_found(tmp_path, leak, failures):
    # Numpy's face alone, which makes thousands of calls a second: no other package's warm-up.
    command = [sys.executable, "-m", "reliability.workers.calls", "--seconds", "8"]
    command += ["--cases", "11", "--threads", "8", "--leak", str(leak)]
    worker = soak.Worker("calls", command, tmp_path / "log")
    found = soak.watch([worker], 8.0)["calls"]
    assert found["failures"] == failures, found
    assert (found["memory_mib"]["growth"] > found["memory_mib"]["bound"]) is bool(failures)
    assert found["calls"] > 1000


def test_what_cannot_run_is_said(monkeypatch, capsys):
    monkeypatch.delenv("GCE_REQUIRE_ALL", raising=False)
    monkeypatch.setattr(soak.processes, "available", lambda package: package != "jax")
    monkeypatch.setattr(soak.processes, "has_release", lambda: True)
    assert list(soak.commands(1.0, 0, None)) == ["calls", "stock"]
    said = capsys.readouterr().out
    assert said == "SKIPPED jax: not installed\nSKIPPED release: no --training-python\n"
    monkeypatch.setenv("GCE_REQUIRE_ALL", "1")
    with pytest.raises(SystemExit, match="without jax: not installed"):
        soak.commands(1.0, 0, "python")
    monkeypatch.setattr(soak.processes, "available", lambda package: True)
    assert list(soak.commands(1.0, 0, "python")) == ["calls", "stock", "release"]
    monkeypatch.setattr(soak.processes, "has_release", lambda: False)
    assert list(soak.commands(1.0, 0, None)) == ["calls", "stock"]
    assert "SKIPPED release: it has no wheel" in capsys.readouterr().out
    monkeypatch.setattr(soak.processes, "has_release", lambda: True)
    with pytest.raises(SystemExit, match="without release: no --training-python"):
        kills.run(argparse.Namespace(kills=1, seed=0, training_python=None))


def test_a_process_that_ends_early_is_a_failure(tmp_path, capsys):
    script = "print('{\"steps\": 3, \"failures\": 0}'); raise SystemExit('not well')"
    worker = soak.Worker("steps", [sys.executable, "-c", script], tmp_path / "log")
    found = soak.watch([worker], 5.0)["steps"]
    assert found["failures"] >= 1 and found["exit_code"] == 1 and found["steps"] == 3
    assert "not well" in capsys.readouterr().out


def test_losses_that_do_not_fall():
    falling = list(np.linspace(2.3, 0.3, 60))
    assert steps.wrong_with(falling) == ""
    assert "do not fall" in steps.wrong_with([0.9] * 60)
    assert "not finite" in steps.wrong_with([*falling[:-1], float("nan")])


def test_rows_of_the_report():
    memory = {"start": 100.0, "end": 101.0, "growth": 1.25, "bound": 8.0}
    counts = {"steps": 1500, "checkpoints": 20, "failures": 0, "memory_mib": memory}
    calls_of = {"calls": 1_000_000, "errors_as_expected": 5, "forks": 3, "failures": 0}
    figures = {"minutes": 60.0, "calls": {**calls_of, "memory_mib": memory}, "stock": counts,
               "release": counts, "failures": 0}  # fmt: skip
    rows = CHECKS["soak"].rows(figures)
    assert rows[0][2].startswith("1,000,000 calls, 5 errors as expected, 3 forks, 0 failures")
    assert rows[1][2] == "3,000 steps, 40 checkpoints, 0 failures"
    assert rows[2][2].count("+1.2 MiB of 100") == 3
