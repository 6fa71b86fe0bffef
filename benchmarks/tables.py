"""The tables of the suite, from the JSON, and their places in a text.

``<!-- benchmark:NAME -->`` and ``<!-- /benchmark:NAME -->`` stand around the table NAME.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.plans import (
    DEFAULT,
    FLOAT32,
    LIMIT_ON_ONE_THREAD,
    ONE_THREAD,
    TRAINING,
    TUNED,
    isa_name,
)
from gce.bench.cases import DTYPES, FORMS
from gce.bench.contender import gce_new_gradient
from gce.bench.peers import OPERATOR, PACKAGES
from gce.bench.report import (
    LIMIT,
    cell,
    compared,
    markdown,
    peers_table,
    speed_table,
    time_text,
)
from gce.bench.runner import Measured

Facts = dict[str, Any]
Results = Sequence[Measured]


LARGE = 10_000_000  # bytes: what the kernel counts is right to some hundred thousand


class NothingMeasured(Exception):
    """A table has no rows: the run did not measure what is in it."""


def select(results: Results, threads: int, allocator: str = TUNED) -> list[Measured]:
    """What was measured beside peers with so many threads and this allocator."""
    return [
        m for m in results
        if (m.threads, m.allocator) == (threads, allocator) and ONE_THREAD not in m.seconds
    ]  # fmt: skip


def most_threads(results: Results) -> int:
    return max(measured.threads for measured in results)


def where(facts: Facts, results: Results) -> str:
    """CPU, instruction set, compiler, versions."""
    parts = [facts["cpu"], facts["isa"], facts["compiler"], facts["python"]]
    parts += [
        f"{name} {facts[name]}"
        for name in ("numpy", *PACKAGES)
        if facts.get(name, "not installed") != "not installed"
    ]
    return f"{', '.join(parts)}; commit {facts['commit']}."


def one_thread(facts: Facts, results: Results) -> str:
    """The limit is one pass over the memory that the work cannot do without. Ratios are medians of
    the rounds', with their 10 % and 90 % points.
    """
    return speed_table([m for m in select(results, 1) if m.case.options not in FORMS])


def forms(facts: Facts, results: Results) -> str:
    """What takes passes of its own, on one thread. The limit counts logits and gradient alone."""
    return speed_table([m for m in select(results, 1) if m.case.options in FORMS])


def all_threads(facts: Facts, results: Results) -> str:
    threads = most_threads(results)
    return speed_table(select(results, threads)) if threads > 1 else ""


def peers(facts: Facts, results: Results) -> str:
    return peers_table(select(results, 1))


def operator(facts: Facts, results: Results) -> str:
    """gce's operator in a session, and what ONNX Runtime has itself over it."""
    rows = []
    for measured in select(results, 1):
        if OPERATOR not in measured.seconds:
            continue
        theirs = [n for n in ("onnxruntime", TRAINING) if n in measured.seconds]
        rows.append([
            measured.case.name,
            time_text(measured.median(OPERATOR)),
            cell(measured.ratio(OPERATOR)),
            cell(measured.ratio(theirs[0], to=OPERATOR)) if theirs else "-",
        ])  # fmt: skip
    heading = ["case", "operator", "over gce from numpy", "ONNX Runtime's own loss / operator"]
    return markdown(heading, rows) if rows else ""


def allocators(facts: Facts, results: Results) -> str:
    """Times with the allocator as it is, and tuned, of whoever makes new gradients."""
    tuned = {measured.case: measured for measured in select(results, 1)}
    default = [m for m in select(results, 1, DEFAULT) if m.case in tuned]
    names = ["gce", gce_new_gradient.name, *compared(default)]
    rows = []
    for measured in default:
        other = tuned[measured.case]
        row = [
            f"{time_text(measured.median(n))}, {time_text(other.median(n))}"
            if n in measured.seconds and n in other.seconds else "-"
            for n in names
        ]  # fmt: skip
        rows.append([measured.case.name, *row])
    return markdown(["default, tuned", *names], rows) if rows else ""


def isas(facts: Facts, results: Results) -> str:
    """Time on each instruction set over that on the best."""
    ours = select(results, 1)
    available = [isa for isa in facts["isas_available"].split(", ") if isa != facts["isa"]]
    rows = [
        [m.case.name, *(cell(m.ratio(isa_name(isa))) for isa in available)]
        for m in ours
        if available and all(isa_name(isa) in m.seconds for isa in available)
    ]
    return markdown([f"time / {facts['isa']}'s", *available], rows) if rows else ""


def thread_scaling(facts: Facts, results: Results) -> str:
    """Speed on several threads over that on one, of gce and of the limit: one memory serves all.

    Without peers in the process: threads of theirs that wait for work, which some do by spinning,
    take CPUs from whoever is next.
    """
    rows = [
        [
            measured.case.name,
            str(measured.threads),
            time_text(measured.median("gce")),
            cell(measured.ratio(ONE_THREAD)),
            cell(measured.ratio(LIMIT_ON_ONE_THREAD, to=LIMIT)),
            cell(measured.ratio(LIMIT)),
        ]
        for measured in results
        if ONE_THREAD in measured.seconds
    ]
    heading = ["case", "threads", "gce", "gce's speed-up", "the limit's", "limit / gce"]
    return markdown(heading, rows) if rows else ""


def dtypes(facts: Facts, results: Results) -> str:
    """Time of an element over that of a float32."""
    rows = [
        [m.case.name, time_text(m.median("gce")), cell(inverse(m.ratio(FLOAT32)))]
        for m in select(results, 1)
        if m.case.dtype in DTYPES and FLOAT32 in m.seconds
    ]
    return markdown(["case", "gce", "over float32's"], rows) if rows else ""


def inverse(ratio: tuple[float, float, float]) -> tuple[float, float, float]:
    middle, low, high = ratio
    return 1 / middle, 1 / high, 1 / low


def peaks(facts: Facts, results: Results) -> str:
    """The peak of memory of a call, as a share of the logits' bytes, where these are large."""
    measured = [m for m in select(results, 1) if m.peaks and m.case.nbytes >= LARGE]
    names = dict.fromkeys(n for m in measured for n in m.peaks if n != LIMIT and "[" not in n)

    def share(measured: Measured, name: str) -> str:
        if name not in measured.peaks:
            return "-"
        return f"{measured.peaks[name] / measured.case.nbytes:.2f}"

    rows = [[m.case.name, *(share(m, name) for name in names)] for m in measured]
    return markdown(["peak / logits", *names], rows) if rows else ""


TABLES: dict[str, Callable[[Facts, Results], str]] = {
    "where": where,
    "one-thread": one_thread,
    "forms": forms,
    "all-threads": all_threads,
    "peers": peers,
    "operator": operator,
    "allocators": allocators,
    "isas": isas,
    "threads": thread_scaling,
    "dtypes": dtypes,
    "memory": peaks,
}
TITLES = {
    "where": "Where it ran",
    "one-thread": "One thread",
    "forms": "Probability targets, softcap, Hessian products, the binary form",
    "all-threads": "All threads",
    "peers": "Every peer, one thread",
    "operator": "The operator in an ONNX Runtime session",
    "allocators": "Allocators",
    "isas": "Instruction sets",
    "threads": "Threads",
    "dtypes": "Dtypes",
    "memory": "Memory of a call",
}


def document(facts: Facts, results: Results) -> str:
    """All tables that have something in them, with what each is."""
    parts = ["# Benchmarks"]
    for name, table in TABLES.items():
        text = table(facts, results)
        about = inspect.cleandoc(table.__doc__ or "")
        if text:
            parts += [f"## {TITLES[name]}", *([about] if about else []), text]
    return "\n\n".join(parts) + "\n"


def fill(text: str, facts: Facts, results: Results) -> str:
    """Put the tables between their marks in a text.

    Raises
    ------
    KeyError
        If a mark names no table, or does not end.
    NothingMeasured
        If a table that is wanted is empty.
    """

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise KeyError(f"benchmark:{name} is none of {', '.join(TABLES)}")
        table = TABLES[name](facts, results)
        if not table:
            raise NothingMeasured(f"nothing for benchmark:{name} was measured")
        return f"<!-- benchmark:{name} -->\n{table}\n<!-- /benchmark:{name} -->"

    mark = r"<!-- benchmark:([\w-]+) -->.*?<!-- /benchmark:\1 -->"
    begun = re.findall(r"<!-- benchmark:([\w-]+) -->", text)
    ended = re.findall(mark, text, re.DOTALL)
    if begun != ended:
        raise KeyError(f"marks that do not end: {sorted(set(begun) - set(ended))}")
    return re.sub(mark, filled, text, flags=re.DOTALL)
