"""Training steps on one runtime: new trainers again and again, checkpoints written and read.

Every training is one of a few; its losses and parameters must have the bits that they had the
first time, though it goes on in a new trainer, from a checkpoint, at another step each time.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from reliability.workers.messages import report_until, say, say_wrong
from reliability.workers.trainings import WAYS, Config, Training

STEPS = 60
CONFIGS = [Config(seed, optimizer) for seed in (0, 1) for optimizer in ("sgd", "adamw")]

Outcome = tuple[list[float], dict[str, bytes]]


def outcome(training: Training) -> Outcome:
    return training.losses, {name: value.tobytes() for name, value in training.values().items()}


def train(way: str, folder: Path, config: Config, resume_at: int, counter: Counter[str]) -> Outcome:
    """A training that goes on in a new trainer at this step; 0: it does not."""
    training = WAYS[way](folder, config)
    counter["trainers"] += 1
    for step in range(STEPS):
        if step and step == resume_at:
            training.save(folder / "latest")
            training = WAYS[way](folder, config)
            training.load(folder / "latest")
            counter["trainers"] += 1
            counter["checkpoints"] += 1
        training.step()
        counter["steps"] += 1
    return outcome(training)


def wrong_with(losses: list[float]) -> str:
    """What is wrong with losses by themselves."""
    if not np.isfinite(losses).all():
        return f"losses that are not finite: {losses}"
    first, last = np.mean(losses[:10]), np.mean(losses[-10:])
    # γ rises, and with it the loss of a model that learns nothing falls: from log(10) to 0.9.
    return "" if last < 0.8 * min(first, 0.9) else f"losses that do not fall: {first}, then {last}"


def work(
    way: str,
    folder: Path,
    expected: dict[Config, Outcome],
    chooser: random.Random,
    deadline: float,
    counter: Counter[str],
) -> None:
    """Train again and again, with a checkpoint somewhere in between."""
    while time.monotonic() < deadline:
        config, resume_at = chooser.choice(CONFIGS), chooser.randrange(STEPS)
        try:
            found = train(way, folder, config, resume_at, counter)
            text = wrong_with(found[0])
            if found != expected[config]:
                text = f"{config}, resumed at {resume_at}: other bits than the first time"
        except Exception:
            text = f"{config}, resumed at {resume_at}: {traceback.format_exc()}"
        counter["failures"] += bool(text)
        if text:
            say_wrong(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faulthandler.enable()
    counter = Counter({"trainers": 0, "steps": 0, "checkpoints": 0, "failures": 0})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Before the time begins, as packages are imported here.
        expected = {config: train(options.way, folder, config, 0, Counter()) for config in CONFIGS}
        deadline = time.monotonic() + options.seconds
        chooser = random.Random(options.seed)
        given = (options.way, folder, expected, chooser, deadline, counter)
        thread = threading.Thread(target=work, args=given)
        thread.start()
        report_until(deadline, lambda: dict(counter))
        thread.join()
    say(**counter, done=True)


if __name__ == "__main__":
    main()
