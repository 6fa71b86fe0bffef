"""What is run: processes with their threads and allocator, their cases, and who takes part."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from gce import _native
from gce.bench.cases import (
    BACKWARD,
    CASES,
    FORMS,
    FORWARD,
    GAMMAS,
    IN_PLACE,
    PLAIN,
    WEIGHTS,
    Case,
    Data,
)
from gce.bench.contender import Contender, Work, gce_itself, gce_new_gradient
from gce.bench.limits import limit
from gce.bench.peers import PEERS
from gce.bench.runner import Effort

DEFAULT, TUNED = "default", "tuned"
# With the second, what is freed stays with the process: no page is faulted in twice.
ALLOCATORS = {
    DEFAULT: "",
    TUNED: "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296",
}
ONE_THREAD, FLOAT32 = "gce [1 thread]", "gce [float32]"
LIMIT_ON_ONE_THREAD = "limit [1 thread]"
TRAINING = "onnxruntime training"


@dataclass(frozen=True)
class Run:
    """One process."""

    threads: int
    allocator: str
    cases: tuple[Case, ...]
    effort: Effort
    peaks: bool = False
    peers: tuple[str, ...] = tuple(PEERS)
    training_python: str | None = None
    alone: bool = False  # gce and the limit, both on one thread too

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Run:
        cases = tuple(Case(**{**case, "shape": tuple(case["shape"])}) for case in document["cases"])
        effort, peers = Effort(**document["effort"]), tuple(document["peers"])
        return cls(**{**document, "cases": cases, "effort": effort, "peers": peers})


def isa_name(isa: str) -> str:
    """What gce is called on another instruction set than the best."""
    return f"gce [{isa}]"


def on_one_thread(contender: Contender, name: str) -> Contender:
    return replace(contender, name=name, make=lambda data, threads: contender.make(data, 1))


def in_float32(data: Data, threads: int) -> Work:
    return gce_itself.make(Data(replace(data.case, dtype="float32")), threads)


def contenders_of(run: Run, case: Case) -> list[Contender]:
    """Who works on a case in a run."""
    contenders = [gce_itself, limit]
    if run.alone:
        return [
            *contenders,
            on_one_thread(gce_itself, ONE_THREAD),
            on_one_thread(limit, LIMIT_ON_ONE_THREAD),
        ]
    if case.work == BACKWARD:
        contenders.append(gce_new_gradient)
    if case.dtype != "float32":
        contenders.append(Contender(FLOAT32, in_float32, checked=False))
    if run.allocator == TUNED:
        contenders += [
            Contender(isa_name(isa), gce_itself.make, isa=isa)
            for isa in _native.available_isas()
            if isa != _native.isa_name()
        ]
    contenders += [PEERS[name] for name in run.peers]
    if run.training_python is not None:
        from benchmarks.training_loss import training_loss

        contenders.append(training_loss(run.training_python))
    return contenders


def is_large(case: Case) -> bool:
    """What outgrows the caches: where allocators matter."""
    return case.nbytes >= 2**25 and case.options == PLAIN


def is_quick(case: Case) -> bool:
    """Enough for the tables of the README."""
    if case.options in FORMS:
        return True
    if case.options in (GAMMAS, WEIGHTS):
        return case.shape == (4096, 1000) and case.work == BACKWARD
    if case.dtype != "float32":
        return case.shape == (512, 32000) and case.work == BACKWARD
    return case.shape != (512, 50257) or case.work == FORWARD


def quick(cpus: int, effort: Effort) -> list[Run]:
    """Minutes: one thread, all of them, the same without peers, and the allocator untuned."""
    cases = tuple(case for case in CASES if is_quick(case))
    wide = tuple(case for case in cases if case.dtype == "float32" and case.options == PLAIN)
    once = {(512, 128256), (512, 50257), (50000, 7), (32, 10)}
    again = tuple(case for case in wide if case.work != IN_PLACE and case.shape not in once)
    large = tuple(case for case in again if is_large(case) and case.work == BACKWARD)
    runs = [Run(1, TUNED, cases, effort, peaks=True)]
    if cpus > 1:
        runs += [Run(cpus, TUNED, again, effort), Run(cpus, TUNED, wide, effort, alone=True)]
    return [*runs, Run(1, DEFAULT, large, effort)]


def full(cpus: int, effort: Effort) -> list[Run]:
    """Tens of minutes: every case with each number of threads and both allocators."""
    threads = sorted({1, cpus, *(2**i for i in range(1, cpus.bit_length()) if 2**i < cpus)})
    runs = [
        Run(n, allocator, CASES, effort, peaks=True)
        for n in threads
        for allocator in (TUNED, DEFAULT)
    ]
    return runs + [Run(n, TUNED, CASES, effort, alone=True) for n in threads if n > 1]
