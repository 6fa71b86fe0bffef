"""The command line: ``python -m gce {demo,info,bench}``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import gce
from gce.demo.config import DemoConfig

__all__ = ["main"]


class CommandError(Exception):
    """Something that the user can put right; the message says how."""


def positive_int(text: str) -> int:
    """Parse a number that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The three commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m gce", description="The gamma-cross-entropy.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{demo,info,bench}")

    full, quick = DemoConfig(), DemoConfig.quick()
    demo = commands.add_parser("demo", help="train a classifier on digits with wrong labels")
    demo.add_argument(
        "--seeds", type=positive_int, metavar="N", help=f"repetitions (default: {full.seeds})"
    )
    demo.add_argument(
        "--epochs", type=positive_int, metavar="N", help=f"passes (default: {full.epochs})"
    )
    demo.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        default=full.output,
        help="the PNG of reliability diagrams (default: %(default)s)",
    )
    demo.add_argument(
        "--quick",
        action="store_true",
        help=f"only {quick.seeds} seeds and {quick.epochs} epochs, unless given",
    )

    commands.add_parser("info", help="show the versions, instruction sets and threads in use")
    # Its options belong to the benchmarks: `main` hands them on unread, --help included.
    commands.add_parser("bench", help="run the benchmarks of the source tree", add_help=False)
    return parser


def run_demo(arguments: argparse.Namespace) -> int:
    """Train, print the table and write the diagrams."""
    base = DemoConfig.quick() if arguments.quick else DemoConfig()
    config = dataclasses.replace(
        base,
        seeds=arguments.seeds or base.seeds,
        epochs=arguments.epochs or base.epochs,
        output=arguments.output,
    )
    # Now, and not after a minute of training.
    if config.output.is_dir() or not config.output.absolute().parent.is_dir():
        raise CommandError(f"--output {config.output}: not a file in a directory that exists")
    try:
        from gce.demo.run import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "gce":
            raise
        raise CommandError(
            f"the demo needs {missing}, which is not installed: pip install 'gamma-ce[demo]'"
        ) from error
    run(config)
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Print `gce.show_config`."""
    try:
        gce.show_config()
    except RuntimeError as error:
        raise CommandError(str(error)) from error
    return 0


def run_bench(options: Sequence[str]) -> int:
    """Hand over to the benchmarks, which are not installed with the package."""
    try:
        benchmarks = importlib.import_module("benchmarks.__main__")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.__main__"):
            raise
        raise CommandError(
            "the benchmarks live in the source tree: run this command in a checkout of it"
        ) from error
    return int(benchmarks.main(options) or 0)


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
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "bench":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if arguments.command == "bench":
            return run_bench(rest)
        return {"demo": run_demo, "info": run_info}[arguments.command](arguments)
    except CommandError as error:
        print(f"python -m gce {arguments.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
