"""Trainings that are killed at random moments, and go on from their checkpoints, to the end.

Each life of one is a fork of this process, which has imported all and has no threads. What a life
is doing is in a file, written before it does it: so it is known in what a signal has met it.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reliability.workers.messages import say, say_wrong
from reliability.workers.trainings import WAYS, Config

STEPS = 40
CONFIG = Config(0, "adamw", hidden=8192)  # a checkpoint takes as long as a step, or longer
LIFE = 8  # steps of a life at most, by the time that they take
INTERRUPTED = 130
LASTS = 300.0  # seconds, at most, of a life
SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT]
BESIDE = {"stock": "latest.gce-tmp", "release": "latest.new"}  # where a checkpoint is written first


def is_full(fd: Any) -> None:
    """What `os.fsync` does on a disk that is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def forked(work: Callable[[], Any]) -> int:
    """The process of a fork that does the work."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = 1
    try:
        try:
            # Which a shell's background processes ignore.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            work()
        finally:
            # From here on nothing may raise: this process would go on as the one that forked it.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        code = 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class Diary:
    """What a life is doing, and how many steps its last checkpoint has, in a file."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)

    def write(self, doing: str, saved: int) -> None:
        os.pwrite(self.file, f"{doing:6} {saved:6}".encode(), 0)

    def read(self) -> tuple[str, int]:
        doing, saved = os.pread(self.file, 13, 0).decode().split() or ("start", "0")
        return doing, int(saved)


def live(way: str, folder: Path, diary: Diary, ready: int) -> None:
    """Go on with the training, with a checkpoint after each step."""
    saved = diary.read()[1]
    diary.write("start", saved)
    training, latest = WAYS[way](folder, CONFIG), folder / "latest"
    diary.write("load", saved)
    os.write(ready, b"!")
    if latest.exists():
        training.load(latest)
        if len(training.losses) not in (saved, saved + 1):
            raise AssertionError(f"{len(training.losses)} steps, expected {saved} or one more")
    elif saved:
        raise AssertionError(f"there is no checkpoint, expected one of {saved} steps")
    while len(training.losses) < STEPS:
        diary.write("step", len(training.losses))
        training.step()
        diary.write("save", len(training.losses) - 1)
        training.save(latest)
    diary.write("end", STEPS)
    np.savez(folder / "outcome.npz", losses=np.array(training.losses), **training.values())


def outcome(folder: Path) -> dict[str, bytes]:
    with np.load(folder / "outcome.npz") as file:
        return {name: array.tobytes() for name, array in file.items()}


def ended(pid: int, within: float) -> int | None:
    """How the process ended, as in `subprocess`; None where it still runs after so many seconds."""
    ends = time.monotonic() + within
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        left = ends - time.monotonic()
        if left <= 0.0:
            return None
        time.sleep(min(left, 0.001))


def end_of(pid: int) -> int:
    """How the process ended, which it must."""
    code = ended(pid, LASTS)
    if code is not None:
        return code
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"a process had no end after {LASTS:.0f} s")


class Killing:
    """Trainings one after the other, until as many were killed as asked for."""

    def __init__(self, way: str, folder: Path, chooser: random.Random) -> None:
        self.way, self.folder, self.chooser = way, folder, chooser
        names = ["kills", "sigterm", "sigint"]
        names += [f"in_{doing}" for doing in ("start", "load", "step", "save", "end")]
        names += ["half_written", "resumes", "trainings", "failed_writes"]
        names += ["mismatches", "leftovers", "failures"]
        self.counter = Counter(dict.fromkeys(names, 0))
        whole = folder / "whole"
        whole.mkdir()
        diary = Diary(folder / "diary of the whole")
        start = time.monotonic()
        pid, began = self.begin(whole, diary)
        if end_of(pid) != 0:
            raise RuntimeError("a training that nobody has killed fails")
        self.step_lasts = (time.monotonic() - (began or start)) / STEPS
        self.want = outcome(whole)
        self.files = {path.name for path in whole.iterdir()}

    def begin(self, folder: Path, diary: Diary, wait: bool = True) -> tuple[int, float | None]:
        """A life, and when it was ready to train."""
        reading, writing = os.pipe()
        pid = forked(lambda: live(self.way, folder, diary, writing))
        os.close(writing)
        began = time.monotonic() if wait and os.read(reading, 1) else None
        os.close(reading)
        return pid, began

    def failed(self, name: str, text: str) -> None:
        self.counter[name] += 1
        self.counter["failures"] += 1
        say_wrong(text)

    def train(self, folder: Path, kills: int) -> None:
        """One training, killed while there are kills left, to its end."""
        folder.mkdir()
        diary = Diary(self.folder / f"diary of {folder.name}")
        while True:
            may_kill = self.counter["kills"] < kills
            # A tenth of the lives is killed before they train, maybe.
            ready = self.chooser.random() < 0.9 or not may_kill
            saved, sent, code = diary.read()[1], 0, None
            pid, began = self.begin(folder, diary, ready)
            if may_kill:
                code = ended(pid, self.chooser.uniform(0.0, LIFE * self.step_lasts))
                if code is None:
                    sent = self.chooser.choice(SIGNALS)
                    os.kill(pid, sent)
            if code is None:
                code = end_of(pid)
            if began is not None:
                self.learn(time.monotonic() - began, diary.read()[1] - saved, code == 0)
            if code == 0:
                break
            self.note(folder, diary, sent, code)
            if code not in (-sent, INTERRUPTED if sent == signal.SIGINT else -sent):
                self.failed("mismatches", f"a life ended with {code} after signal {sent}")
                return
        self.counter["trainings"] += 1
        if outcome(folder) != self.want:
            self.failed("mismatches", "other losses or parameters than those of the whole")
        for left in sorted({path.name for path in folder.iterdir()} - self.files):
            self.failed("leftovers", f"{left} is left of a training that came to its end")

    def learn(self, lasted: float, steps: int, to_its_end: bool) -> None:
        """How long steps take, on a machine that may have other work or be rid of it."""
        if steps and to_its_end:  # nothing that it learned before has killed it: that was too long
            self.step_lasts = lasted / steps
        elif steps:
            self.step_lasts = 0.5 * (self.step_lasts + lasted / steps)
        else:
            self.step_lasts *= 1.1

    def note(self, folder: Path, diary: Diary, sent: int, code: int) -> None:
        """Count a life that did not come to its end."""
        doing, saved = diary.read()
        self.counter["kills"] += 1
        self.counter["sigterm"] += sent == signal.SIGTERM
        self.counter["sigint"] += sent == signal.SIGINT
        self.counter[f"in_{doing}"] += 1
        self.counter["resumes"] += saved > 0
        files = {path.name for path in folder.iterdir()} - self.files
        self.counter["half_written"] += BESIDE[self.way] in files
        files -= {BESIDE[self.way], "outcome.npz"}
        if files:
            self.failed("leftovers", f"{sorted(files)} beside the checkpoint")

    def fail_to_write(self, kind: str) -> None:
        """A checkpoint that cannot be written: an error, the old one stays, the next one works."""
        folder = self.folder / "whole"
        latest, beside = folder / "latest", folder / BESIDE[self.way]
        before = latest.read_bytes()
        size = self.chooser.randrange(len(before))
        fsync = os.fsync

        def work() -> None:
            training = WAYS[self.way](folder, CONFIG)
            training.load(latest)
            if kind == "full" and self.way == "release":
                beside.symlink_to("/dev/full")
            elif kind == "full":  # gce writes to no device; a file system can say it so late, too
                os.fsync = is_full
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                training.save(latest)
            except (OSError, RuntimeError) as error:
                wanted = errno.ENOSPC if kind == "full" else errno.EFBIG
                if isinstance(error, OSError) and error.errno != wanted:
                    raise
            else:
                raise AssertionError(f"no error of a checkpoint that was not written ({kind})")
            os.fsync = fsync
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            if latest.read_bytes() != before:
                raise AssertionError(f"a write that failed has changed the checkpoint ({kind})")
            beside.unlink(missing_ok=True)
            training.save(latest)
            training.load(latest)
            if len(training.losses) != STEPS:
                raise AssertionError(f"{len(training.losses)} steps after a write that failed")

        self.counter["failed_writes"] += 1
        if (code := end_of(forked(work))) != 0:
            self.failed("mismatches", f"a write that failed ({kind}, {size} bytes): {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    WAYS[options.way].prepare()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        killing = Killing(options.way, Path(name), random.Random(options.seed))
        for kind in ("full", "limit") * max(options.kills // 20, 1):
            killing.fail_to_write(kind)
        number = 0
        while killing.counter["kills"] < options.kills and not killing.counter["failures"]:
            killing.train(Path(name, f"training {number}"), options.kills)
            number += 1
            say(**killing.counter)
    say(**killing.counter, done=True)


if __name__ == "__main__":
    main()
