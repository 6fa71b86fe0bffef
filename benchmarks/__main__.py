"""The suite: ``python -m benchmarks`` (or ``make bench``) on an otherwise idle machine.

Several processes, each with its own threads and allocator, measure the named cases of
`gce.bench.cases`; all that they found goes to one JSON file, from which the tables and the picture
are made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import plans, tables
from benchmarks.plans import ALLOCATORS, Run
from gce.bench import report
from gce.bench.command import count, duration
from gce.bench.cpus import count_of_cpus
from gce.bench.peers import PEERS
from gce.bench.picture import save_picture
from gce.bench.runner import Effort, Measured

ROOT = Path(__file__).resolve().parent.parent
JSON, MARKDOWN, PNG = "benchmark.json", "benchmark.md", "benchmark.png"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--full", action="store_true", help="all cases, threads and allocators: half an hour")
    add("--case", default="", help="only cases whose name contains this")
    add("--peer", action="append", choices=PEERS, help="only this (default: all)")
    add("--rounds", type=count, default=15, help="turns of each contender (default: %(default)s)")
    add("--seconds", type=duration, help="for a case's rounds (default: 2.5; 4 with --full)")
    add("--training-python", help="a Python with onnxruntime-training-cpu 1.19.2")
    add("--output", type=Path, default=ROOT / "docs", help="folder for what is found")
    add("--readme", action="store_true", help="measure nothing: put the tables into README.md")
    options = parser.parse_args(arguments)
    names = [case.name for case in plans.CASES]
    if not any(options.case in name for name in names):
        parser.error(f"--case {options.case!r} is in none of: {', '.join(names)}")
    if not options.readme and not options.output.absolute().parent.is_dir():
        parser.error(f"--output {options.output}: not in a directory that exists")
    if options.readme and not (options.output / JSON).is_file():
        parser.error(f"--readme: there is no {options.output / JSON}; measure first")
    return options


def runs_of(options: argparse.Namespace) -> list[Run]:
    """The processes that were asked for."""
    effort = Effort(options.rounds, options.seconds or (4.0 if options.full else 2.5))
    wanted = []
    for run in (plans.full if options.full else plans.quick)(count_of_cpus(), effort):
        cases = tuple(case for case in run.cases if options.case in case.name)
        peers = tuple(options.peer or run.peers)
        if cases:
            python = options.training_python
            wanted.append(replace(run, cases=cases, peers=peers, training_python=python))
    return wanted


def execute(run: Run) -> tuple[dict[str, Any], list[Measured]]:
    """Facts and results of one run, from its process."""
    with tempfile.TemporaryDirectory() as name:
        asked, found = Path(name, "run.json"), Path(name, "results.json")
        asked.write_text(json.dumps(run.as_json()), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.worker", str(asked), str(found)]
        environment = os.environ | {"GLIBC_TUNABLES": ALLOCATORS[run.allocator]}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return report.load_json(found)


def measure(runs: Sequence[Run]) -> tuple[dict[str, Any], list[Measured]]:
    """What all runs found; in the facts, what differs between them is a list."""
    facts: dict[str, Any] = {}
    results: list[Measured] = []
    settings = []
    for run in runs:
        print(f"threads: {run.threads}, allocator: {run.allocator}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        found, measured = execute(run)
        settings.append({
            "threads": found.pop("threads"),
            "allocator": run.allocator,
            "GLIBC_TUNABLES": ALLOCATORS[run.allocator],
            "seconds": round(time.perf_counter() - start),
        })  # fmt: skip
        facts |= found
        results += measured
    return {**facts, "runs": settings}, results


def write(folder: Path, facts: dict[str, Any], results: Sequence[Measured]) -> None:
    """JSON, Markdown and picture."""
    folder.mkdir(exist_ok=True)
    report.save_json(folder / JSON, facts, results)
    text = tables.document(facts, results)
    without = report.left_out(results)
    if without:
        text += f"\n## Left out\n\n{without}\n"
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    print(text)
    drawn = tables.select(results, 1) or tables.select(results, tables.most_threads(results))
    title = report.picture_title({**facts, "threads": str(drawn[0].threads)})
    save_picture(folder / PNG, drawn, title)


def fill_readme(folder: Path, readme: Path) -> None:
    """Put the tables into a text that has their marks."""
    facts, results = report.load_json(folder / JSON)
    text = tables.fill(readme.read_text(encoding="utf-8"), facts, results)
    readme.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write, or put the tables of what was measured into the README."""
    options = parse(arguments)
    try:
        if options.readme:
            fill_readme(options.output, ROOT / "README.md")
        else:
            write(options.output, *measure(runs_of(options)))
    except (KeyError, tables.NothingMeasured) as error:
        print(f"python -m benchmarks: {error.args[0]}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"python -m benchmarks: a run ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
