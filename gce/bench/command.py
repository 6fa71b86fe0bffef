"""The command ``python -m gce bench``: the user's machine, shapes and packages."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gce
from gce import _native
from gce._command_line import CommandError, check_output
from gce.bench.cases import CASES, DTYPES, PLAIN, WORKS, Case
from gce.bench.cpus import count_of_cpus, restrict_to

__all__ = ["add_arguments", "run"]

SHAPES = ((512, 32000), (4096, 1000), (65536, 10), (32, 10))  # what is measured by default
PEERS = ("numpy", "numba", "torch", "jax", "onnxruntime")  # packages, each with its contenders
COPIES = 5  # of the logits, that a case may need: buffers, and gradients of a peer


def shape(text: str) -> tuple[int, ...]:
    """Parse ``512,32000``."""
    parts = text.replace("x", ",").split(",")
    is_shape = all(part.strip().isdecimal() and int(part) > 0 for part in parts)
    if not is_shape or len(parts) > 64:  # more axes than an array has
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shape: expected positive integers, as in 512,32000"
        )
    return tuple(map(int, parts))


def count(text: str) -> int:
    """Parse a number that counts something."""
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1 and below 2^31")
    return int(text)


def duration(text: str) -> float:
    """Parse a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--shape", type=shape, action="append", metavar="N,V",
        help="of the logits; may be given several times (default: "
        f"{', '.join('x'.join(map(str, s)) for s in SHAPES)})",
    )  # fmt: skip
    parser.add_argument("--axis", type=int, help="the class axis of --shape (default: the last)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the logits (default: %(default)s)"
    )
    parser.add_argument(
        "--work", choices=WORKS, action="append",
        help="the loss; with its gradient; with the gradient in place of the logits; "
        "may be given several times (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=count, help="for everyone (default: gce's, or one for each CPU)"
    )
    parser.add_argument(
        "--isa", choices=_native.available_isas(), help="gce's instruction set (default: the best)"
    )
    parser.add_argument(
        "--peer", choices=(*PEERS, "none"), action="append",
        help="package to compare with; may be given several times (default: those installed)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=count, default=9, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=duration, default=4.0,
        help="for the turns of a case, about (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIRECTORY",
        help="write benchmark.json, benchmark.md and benchmark.png there",
    )  # fmt: skip


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """What is to be measured."""
    works = arguments.work or WORKS
    if arguments.shape is None:
        if arguments.axis is not None:
            raise CommandError("--axis goes with --shape")
        named = [c for c in CASES if c.dtype == "float32" and c.options == PLAIN]
        cases = [replace(c, dtype=arguments.dtype) for c in named if c.shape in SHAPES]
        cases = [case for case in cases if case.work in works]
        return cases or [Case(SHAPES[0], work, arguments.dtype) for work in works]
    axis = -1 if arguments.axis is None else arguments.axis
    for one in arguments.shape:
        if not -len(one) <= axis < len(one):
            raise CommandError(
                f"--axis {axis}: the shape {','.join(map(str, one))} has {len(one)} axes"
            )
    return [
        Case(one, work, arguments.dtype, axis) for one in arguments.shape for work in WORKS
        if work in works
    ]  # fmt: skip


def check(arguments: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Find out now what would fail after a minute."""
    from gce.bench import memory

    if arguments.output is not None:
        check_output(arguments.output)
    if arguments.dtype == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
        raise CommandError("--dtype bfloat16 needs ml_dtypes: pip install 'gamma-ce[bfloat16]'")
    for package in arguments.peer or ():
        if package != "none" and importlib.util.find_spec(package) is None:
            raise CommandError(f"--peer {package}: it is not installed")
    available = memory.available()
    needed = COPIES * max(case.nbytes for case in cases)
    if available is not None and needed > available:
        largest = max(cases, key=lambda case: case.nbytes)
        raise CommandError(
            f"{largest.name} may need {needed / 2**30:.1f} GiB of memory, "
            f"of which {available / 2**30:.1f} GiB are free"
        )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print facts and tables, and write the files that were asked for."""
    cases = cases_of(arguments)
    check(arguments, cases)
    try:
        _native.select_isa(arguments.isa)
        _native.isa_name()  # GCE_FORCE_ISA may name what is not there
        threads = arguments.threads or min(gce.get_num_threads(), count_of_cpus())
    except (RuntimeError, ValueError) as error:
        raise CommandError(str(error)) from error

    from gce.bench import report
    from gce.bench.check import Disagreement
    from gce.bench.contender import gce_itself
    from gce.bench.limits import limit
    from gce.bench.peers import PEERS as CONTENDERS
    from gce.bench.runner import Effort, measure

    facts = report.surroundings(threads, restrict_to(threads))
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items()), end="\n\n")
    chosen = arguments.peer or PEERS
    peers = [p for p in CONTENDERS.values() if (p.package or p.name) in chosen]
    effort = Effort(arguments.rounds, arguments.seconds)
    results = []
    for case in cases:
        print(f"measuring {case.name}", file=sys.stderr, flush=True)
        try:
            results.append(measure(case, threads, [gce_itself, limit, *peers], effort))
        except (Disagreement, MemoryError) as error:
            raise CommandError(f"{case.name}: {error}") from error
    text = report.summary(results)
    print(text)
    if arguments.output is not None:
        report.write(arguments.output, facts, results, text)
    return 0
