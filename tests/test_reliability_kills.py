"""reliability/kills.py: that it finds trainings which do not survive, and that gce's does."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reliability import kills, processes
from reliability.checks import CHECKS
from reliability.workers import killed
from support import require

pytestmark = pytest.mark.filterwarnings("ignore:.*fork")  # of a process with threads


class Sound:
    """A training without a runtime: a number that each step changes, in a file of few lines."""

    def __init__(self, folder: Path, config: Any) -> None:
        self.losses: list[float] = []
        self.state = 1.0

    def step(self) -> None:
        time.sleep(0.0005)
        self.state = 1.5 * self.state % 1.0 + len(self.losses)
        self.losses.append(self.state)

    def text(self) -> str:
        return " ".join(map(str, [self.state, *self.losses])) + " " * 20_000

    def save(self, path: Path) -> None:
        beside = path.with_name(killed.BESIDE["stock"])
        with open(beside, "w") as file:
            file.write(self.text())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)

    def load(self, path: Path) -> None:
        self.state, *self.losses = map(float, path.read_text().split())

    def values(self) -> dict[str, Any]:
        return {"state": np.array(self.state)}


class Forgetful(Sound):
    def load(self, path: Path) -> None:
        super().load(path)
        self.state = 1.0


class InPlace(Sound):
    def save(self, path: Path) -> None:
        with open(path, "w") as file:
            for part in self.text().split(" "):
                file.write(part + " ")
            file.flush()


class Late(Sound):
    def save(self, path: Path) -> None:
        if len(self.losses) % 5 == 0:
            super().save(path)


class Untidy(Sound):
    def save(self, path: Path) -> None:
        super().save(path)
        path.with_name(f"backup of {len(self.losses)}").write_text("")


class Blind(Sound):
    def save(self, path: Path) -> None:
        try:
            super().save(path)
        except OSError:
            path.with_name(killed.BESIDE["stock"]).unlink()


def survived(
    training: type[Sound], folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 30
) -> dict[str, int]:
    monkeypatch.setitem(killed.WAYS, "stock", training)
    killing = killed.Killing("stock", folder, random.Random(0))
    for number in range(count):
        if killing.counter["kills"] < count and not killing.counter["failures"]:
            killing.train(folder / f"training {number}", count)
    return dict(killing.counter)


def test_a_sound_training_survives(tmp_path, monkeypatch):
    found = survived(Sound, tmp_path, monkeypatch)
    assert found["failures"] == found["mismatches"] == found["leftovers"] == 0
    assert found["kills"] == 30 and found["trainings"] >= 2 and found["resumes"] > 10
    phases = [found[f"in_{doing}"] for doing in ("start", "load", "step", "save", "end")]
    assert sum(phases) == 30
    assert 0 < found["sigterm"] + found["sigint"] < 30


def test_after_a_machine_paused(tmp_path, monkeypatch):
    monkeypatch.setitem(killed.WAYS, "stock", Sound)
    killing = killed.Killing("stock", tmp_path, random.Random(0))
    # What a pause has it believe, by which it would meet none of a hundred trainings.
    killing.step_lasts = 60.0
    while killing.counter["kills"] < 10 and killing.counter["trainings"] < 100:
        killing.train(tmp_path / f"training {killing.counter['trainings']}", 10)
    assert killing.counter["kills"] == 10 and killing.counter["failures"] == 0


@pytest.mark.parametrize("training", [Forgetful, InPlace, Late])
def test_trainings_that_do_not_go_on_as_they_should(tmp_path, monkeypatch, training):
    found = survived(training, tmp_path, monkeypatch, 200)
    assert found["mismatches"] == found["failures"] == 1


def test_files_that_pile_up(tmp_path, monkeypatch):
    monkeypatch.setattr(killed, "STEPS", 60)
    found = survived(Untidy, tmp_path, monkeypatch)
    assert found["failures"] == 0  # each of its names is in the whole training's folder too

    class Numbered(Untidy):
        def save(self, path: Path) -> None:
            super().save(path)
            path.with_name(f"backup of process {os.getpid()}").write_text("")

    (tmp_path / "numbered").mkdir()
    assert survived(Numbered, tmp_path / "numbered", monkeypatch)["leftovers"] > 0


@pytest.mark.parametrize("kind", ["full", "limit"])
@pytest.mark.parametrize(("training", "failures"), [(Sound, 0), (Blind, 1), (InPlace, 1)])
def test_writes_that_fail(tmp_path, monkeypatch, kind, training, failures):
    monkeypatch.setitem(killed.WAYS, "stock", training)
    killing = killed.Killing("stock", tmp_path, random.Random(0))
    killing.fail_to_write(kind)
    assert (killing.counter["failed_writes"], killing.counter["failures"]) == (1, failures)


def test_signals_that_a_background_process_ignores(tmp_path, monkeypatch):
    monkeypatch.setattr(killed, "SIGNALS", [killed.signal.SIGINT])
    before = killed.signal.signal(killed.signal.SIGINT, killed.signal.SIG_IGN)
    try:
        found = survived(Sound, tmp_path, monkeypatch, 10)
    finally:
        killed.signal.signal(killed.signal.SIGINT, before)
    assert found["sigint"] == found["kills"] == 10 and found["failures"] == 0


def test_a_training_that_fails_by_itself(tmp_path, monkeypatch):
    class Failing(Sound):
        def step(self) -> None:
            raise ValueError("not today")

    monkeypatch.setitem(killed.WAYS, "stock", Failing)
    with pytest.raises(RuntimeError, match="a training that nobody has killed fails"):
        killed.Killing("stock", tmp_path, random.Random(0))


def test_gce_survives():
    require(processes.available("onnxruntime"), "onnxruntime is not installed")
    found = kills.kill("stock", sys.executable, 4, 1)
    assert found["kills"] == 4 and found["failures"] == 0
    assert found["failed_writes"] == 2 and found["trainings"] >= 1
    figures = {"stock": found, "failures": 0}
    ((_, _, text),) = CHECKS["kills"].rows(figures)
    assert text.startswith("4 kills, ") and text.endswith("0 mismatches, 0 files left")


def test_a_worker_that_does_not_end_well(tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "not well" >&2\nexit 3\n')
    python.chmod(0o755)
    assert kills.kill("stock", str(python), 4, 1) == {"failures": 1}
    assert "not well" in capsys.readouterr().out
