"""Mixed calls from several threads of one process; each result is compared with what it must be.

Now and then the number of threads changes, and the process forks: the child makes calls of its own.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import signal
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable

import gce
from reliability.workers import bad, cases, doors
from reliability.workers.cases import Case, bits
from reliability.workers.messages import report_until, say, say_wrong

FORK_EVERY = 3.0  # seconds
CHILD_LASTS = 120.0  # at most: calls of milliseconds, on a machine that has other work
SHOWN = 20  # of what goes wrong; all of it is counted


class Soak:
    """What all threads share."""

    def __init__(self, made: list[Case], wrong: list[bad.BadCall], deadline: float, leak: int):
        self.cases, self.bad, self.deadline, self.leak = made, wrong, deadline, leak
        self.leaked: list[bytearray] = []
        kinds = sorted({case.kind for case in made})
        others = ("bad", "forks", "set_num_threads", "failures")
        # A counter for each thread, with all its keys: others read them while it counts.
        self.counters: list[Counter[str]] = []
        self.zeros = dict.fromkeys((*kinds, *others), 0)

    def figures(self) -> dict[str, object]:
        total: Counter[str] = Counter()
        for counter in self.counters:
            total.update(counter)
        others = {name: total.pop(name, 0) for name in ("forks", "set_num_threads", "failures")}
        errors = total.pop("bad", 0)
        return {
            "calls": sum(total.values()),
            "by_kind": dict(sorted(total.items())),
            "errors_as_expected": errors,
            **others,
        }

    def failed(self, counter: Counter[str], text: str) -> None:
        counter["failures"] += 1
        if counter["failures"] <= SHOWN:
            say_wrong(text)

    def work(self, number: int, chooser: random.Random) -> None:
        """One thread, to the end."""
        counter = Counter(self.zeros)
        self.counters.append(counter)
        try:
            self.call_until_the_end(counter, number, chooser)
        except BaseException:  # nobody else would know that this thread has ended
            self.failed(counter, f"thread {number}: {traceback.format_exc()}")

    def call_until_the_end(
        self, counter: Counter[str], number: int, chooser: random.Random
    ) -> None:
        next_fork = time.monotonic()
        while (now := time.monotonic()) < self.deadline:
            draw = chooser.random()
            if number == 0 and now >= next_fork:
                next_fork = now + FORK_EVERY
                self.fork(counter, chooser)
            elif draw < 0.002:
                gce.set_num_threads(chooser.choice((1, 2, 3, 4)))
                counter["set_num_threads"] += 1
            elif draw < 0.1:
                self.misuse(counter, chooser)
            else:
                self.use(counter, chooser)
            if self.leak:
                self.leaked.append(bytearray(self.leak))

    def use(self, counter: Counter[str], chooser: random.Random) -> None:
        i = chooser.randrange(len(self.cases))
        case = self.cases[i]
        try:
            same = bits(case.run(chooser)) == case.want
        except Exception:
            self.failed(counter, f"case {i}, {case.kind}: {traceback.format_exc()}")
            return
        counter[case.kind] += 1
        if not same:
            self.failed(counter, f"case {i}, {case.kind}: other bits than on one thread")

    def misuse(self, counter: Counter[str], chooser: random.Random) -> None:
        text = bad.outcome(chooser.choice(self.bad))
        if text:
            self.failed(counter, text)
        else:
            counter["bad"] += 1

    def fork(self, counter: Counter[str], chooser: random.Random) -> None:
        """Have a child make calls of numpy's face: other packages do not promise to survive it."""
        chosen = [
            case for case in chooser.choices(self.cases, k=20) if case.kind not in doors.DOORS
        ]
        text = in_child(lambda: all(bits(case.run(chooser)) == case.want for case in chosen))
        counter["forks"] += 1
        if text:
            self.failed(counter, text)


def in_child(work: Callable[[], bool]) -> str:
    """What is wrong with a child that does the work, in words; or nothing."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            code = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    ends = time.monotonic() + CHILD_LASTS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "", 2: "a child has other bits"}.get(code, f"a child ended with {code}")
        if time.monotonic() > ends:
            os.kill(child, signal.SIGABRT)  # faulthandler says where it is
            time.sleep(1.0)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"a child had no end after {CHILD_LASTS:.0f} s"
        time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--cases", type=int, default=330, help="of numpy's face")
    parser.add_argument("--doors", nargs="*", choices=list(doors.DOORS), default=[])
    parser.add_argument("--leak", type=int, default=0, help="bytes to keep of each call: a test")
    options = parser.parse_args()
    faulthandler.enable()
    # Python and jax warn of forks of processes with threads: that is what is to be survived.
    warnings.filterwarnings("ignore", message=".*fork")
    made = cases.pool(options.seed, options.cases)
    made += doors.cases(options.seed, options.doors, 12)
    wrong = bad.calls(options.doors)
    deadline = time.monotonic() + options.seconds
    soak = Soak(made, wrong, deadline, options.leak)
    choosers = [random.Random(1000 * options.seed + i) for i in range(options.threads)]
    threads = [threading.Thread(target=soak.work, args=given) for given in enumerate(choosers)]
    for thread in threads:
        thread.start()
    report_until(deadline, soak.figures)
    for thread in threads:
        thread.join()
    say(**soak.figures(), done=True)


if __name__ == "__main__":
    main()
