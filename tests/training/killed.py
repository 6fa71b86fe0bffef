"""Trainings that are killed, each in a process of its own: forks of this one, which has no threads.

``python killed.py FOLDER`` writes what became of them to its standard output, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_models import batch, perceptron

from gce import schedules
from gce.onnx.training import Trainer

CALLS = 60
LONGEST = 0.06  # seconds of work before a kill


def make_trainer() -> Trainer:
    return Trainer(
        perceptron(), gamma=schedules.linear(30), learning_rate=lambda step: 0.1 / (step + 1),
        accumulate=3, clip_norm=0.5,
    )  # fmt: skip


def forked(work: Callable[[], Any]) -> int:
    """The process of a fork that does the work."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def go_on(path: Path, ready: int) -> None:
    """Train from the checkpoint to the end, with a new one after each call."""
    trainer = make_trainer()
    losses = trainer.load(path) if path.exists() else []
    os.write(ready, b"!")
    for call in range(len(losses), CALLS):
        losses.append(float(trainer.step(*batch(6, call))))
        trainer.save(path, extra=losses)


def at_random_moments(path: Path) -> dict[str, Any]:
    """A training that is killed until it has come to its end."""
    rng = random.Random(0)
    killed = torn = 0  # torn: it was writing
    while True:
        waiting, ready = os.pipe()
        pid = forked(lambda ready=ready: go_on(path, ready))
        os.close(ready)
        began = os.read(waiting, 1)
        os.close(waiting)
        # At first too early for any machine to be done.
        time.sleep(rng.uniform(0, LONGEST) * min(killed + 1, 20) / 20)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        torn += path.with_name(f"{path.name}.gce-tmp").exists()
        if not os.WIFSIGNALED(status):
            return {"began": bool(began), "code": status, "killed": killed, "torn": torn}
        killed += 1


def at_one_call(path: Path, kill: Callable[[], None]) -> dict[str, Any]:
    """A training that writes its second checkpoint, in which `kill` makes it die."""

    def work() -> None:
        trainer = make_trainer()
        trainer.step(*batch(6, 0))
        trainer.save(path, extra="old")
        trainer.step(*batch(6, 1))
        kill()
        trainer.save(path, extra="new")

    _, status = os.waitpid(forked(work), 0)
    beside = path.with_name(f"{path.name}.gce-tmp")
    return {
        "signal": os.WTERMSIG(status),
        "found": make_trainer_in_fork(path),
        "beside": beside.stat().st_size if beside.exists() else None,
    }


def make_trainer_in_fork(path: Path) -> str:
    """The extra of the checkpoint; a session has threads, and this process must not."""
    reading, writing = os.pipe()
    pid = forked(lambda: os.write(writing, make_trainer().load(path).encode()))
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def after_bytes(count: int) -> None:
    """Die of the write that would make a file longer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))


def in_call_of(name: str, after: bool) -> None:
    """Die in the next call of a function of `os`, before or after it has done its work."""
    original = getattr(os, name)

    def deadly(*arguments: Any) -> None:
        if after:
            original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, deadly)


def main(folder: Path) -> None:
    results: dict[str, Any] = {"random": at_random_moments(folder / "random")}
    for count in (0, 1, 1000, 4000):
        path = folder / f"after {count} bytes"
        results[path.name] = at_one_call(path, lambda count=count: after_bytes(count))
    for name in ("fsync", "replace"):
        for after in (False, True):
            path = folder / f"{'after' if after else 'before'} {name}"
            results[path.name] = at_one_call(
                path, lambda name=name, after=after: in_call_of(name, after)
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
