"""One run, in a process of its own: ``python -m benchmarks.worker RUN.json RESULTS.json``.

What is decided when a process starts (the allocator, the CPUs) holds for all that it measures.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import gce
from benchmarks.plans import Run, contenders_of
from gce.bench import report
from gce.bench.cpus import restrict_to
from gce.bench.runner import measure


def main(run_path: str, results_path: str) -> None:
    """Measure all cases of the run."""
    run = Run.of(json.loads(Path(run_path).read_text(encoding="utf-8")))
    facts = report.surroundings(run.threads, restrict_to(run.threads))
    gce.set_num_threads(run.threads)
    results = []
    for case in run.cases:
        start = time.perf_counter()
        measured = measure(case, run.threads, contenders_of(run, case), run.effort, run.peaks)
        measured.allocator = run.allocator
        results.append(measured)
        took = time.perf_counter() - start
        print(f"  {case.name}: {took:.1f} s, {progress(measured)}", file=sys.stderr, flush=True)
        report.save_json(Path(results_path), facts, results)  # what was measured is not lost


def progress(measured: report.Measured) -> str:
    """gce's time and, if there are any, the best peer's."""
    text = f"gce {report.time_text(measured.median('gce'))}"
    peer = report.best_peer(measured)
    return text if peer is None else f"{text}, {peer} {report.time_text(measured.median(peer))}"


if __name__ == "__main__":
    main(*sys.argv[1:])
