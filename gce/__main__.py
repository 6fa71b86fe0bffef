"""The command line: ``python -m gce {demo,info,bench}``."""

from __future__ import annotations

import argparse
import dataclasses
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import gce
from gce._command_line import CommandError, check_output
from gce.bench import command as bench
from gce.demo.config import TASKS, DemoConfig

__all__ = ["main"]

PACKAGE = "'gamma-ce[demo]'"


def positive_int(text: str) -> int:
    """Parse a number that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def share(text: str) -> float:
    """Parse a number between 0 and 1."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def shown(value: object) -> str:
    """A default for people."""
    return " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def build_parser() -> argparse.ArgumentParser:
    """The three commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m gce", description="The gamma-cross-entropy.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{demo,info,bench}")

    demo = commands.add_parser("demo", help="train models on partly wrong data, for several gammas")
    demo.add_argument(
        "--task", choices=TASKS, default=TASKS[0], help="what is learnt (default: %(default)s)"
    )
    tasks = [DemoConfig.of(task) for task in TASKS]
    numbers = {
        "seeds": (positive_int, "repetitions"),
        "epochs": (positive_int, "passes over the training data"),
        "noise": (share, "shares of the training data that are made wrong"),
        "gammas": (share, "constant values of gamma; one more run lets it rise from 0 to 1"),
        "thresholds": (share, "lower bounds on the weight of the gradient"),
    }
    for name, (kind, text) in numbers.items():
        several = kind is share
        defaults = "; ".join(f"{task.task}: {shown(getattr(task, name))}" for task in tasks)
        demo.add_argument(
            f"--{name}",
            type=kind,
            nargs="+" if several else None,
            metavar="X" if several else "N",
            help=f"{text} (default: {defaults})",
        )
    demo.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        default=tasks[0].output,
        help="where the figures (JSON) and the pictures (PNG) go (default: %(default)s)",
    )
    demo.add_argument(
        "--quick", action="store_true", help="a run of seconds, unless other numbers are given"
    )

    commands.add_parser("info", help="show the versions, instruction sets and threads in use")
    bench.add_arguments(
        commands.add_parser(
            "bench", help="how fast this machine is, next to its limits and to other packages"
        )
    )
    return parser


def run_demo(arguments: argparse.Namespace, command: str) -> int:
    """Train, print the table and write figures and pictures; `command` is said in them."""
    names = ("seeds", "epochs", "noise", "gammas", "thresholds")
    given = {name: getattr(arguments, name) for name in names}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    config = dataclasses.replace(
        DemoConfig.of(arguments.task, arguments.quick), output=arguments.output, **given
    )
    check_output(config.output)
    try:
        from gce.demo.run import problem_of, run

        problem_of(config.task)  # imports what its data come from
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "gce":
            raise
        raise CommandError(
            f"the demo needs {missing}, which is not installed: pip install "
            f"{'onnxruntime' if missing == 'onnxruntime' else PACKAGE}"
        ) from error
    run(config, command=command)
    return 0


def run_info() -> int:
    """Print `gce.show_config`."""
    try:
        gce.show_config()
    except (RuntimeError, ValueError) as error:  # of GCE_FORCE_ISA, of GCE_NUM_THREADS
        raise CommandError(str(error)) from error
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit status: 0, or 2 for something that the user can put right.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no terminal's encoding may end a long run
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command == "bench":
            return bench.run(arguments)
        if arguments.command == "demo":
            words = sys.argv[1:] if argv is None else argv
            return run_demo(arguments, shlex.join(["python", "-m", "gce", *words]))
        return run_info()
    except CommandError as error:
        print(f"python -m gce {arguments.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
