"""Run the benchmarks: ``python -m benchmarks`` (or ``make bench``) on an otherwise idle machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import gce
from benchmarks import report
from benchmarks.cases import CASES
from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.runner import measure
from gce import _native


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="for every contender (default 1)")
    parser.add_argument("--isa", choices=_native.available_isas(), help="force gce's ISA")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--peer", action="append", choices=sorted(set(CONTENDERS) - set(OURS)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="folder for benchmark.json and benchmark.png")
    options = parser.parse_args(arguments)
    if not any(options.case in case.name for case in CASES):
        parser.error(f"--case {options.case!r} is in none of: {', '.join(c.name for c in CASES)}")
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write JSON and picture where asked to."""
    options = parse(arguments)
    _native.select_isa(options.isa)
    gce.set_num_threads(options.threads)
    facts = report.surroundings(options.threads)
    for name, fact in facts.items():
        print(f"{name:15} {fact}")
    names = [*OURS, *(options.peer or [name for name in CONTENDERS if name not in OURS])]
    results = []
    for case in CASES:
        if options.case not in case.name:
            continue
        measured = measure(case, options.threads, names, options.rounds)
        results.append(measured)
        times = ", ".join(f"{n} {measured.median(n) * 1e3:.4g} ms" for n in measured.seconds)
        print(f"{case.name}: {times}", file=sys.stderr, flush=True)
        for name, why in measured.left_out.items():
            print(f"  without {name}: {why}", file=sys.stderr)
    print()
    print(report.table(results))
    print()
    print(report.operator_table(results))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        report.save_json(options.output / "benchmark.json", facts, results)
        report.save_picture(options.output / "benchmark.png", facts, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
