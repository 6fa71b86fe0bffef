"""``python -m reliability NAME``: run one check and record it; ``report``: RELIABILITY.md anew."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from reliability import record, report
from reliability.checks import CHECKS


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, check in CHECKS.items():
        lines = check.doc.splitlines()
        command = commands.add_parser(
            name,
            help=lines[0],
            description=check.doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        check.add_arguments(command)
        command.add_argument(
            "--output", type=Path, default=record.FOLDER, help="folder of the record"
        )
    commands.add_parser("report", help="put the records' figures into RELIABILITY.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing went wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    if options.name == "report":
        report.write()
        return 0
    start = time.monotonic()
    figures = CHECKS[options.name].run(options)
    path = record.save(options.name, words[1:], time.monotonic() - start, figures, options.output)
    print(path.read_text(encoding="utf-8"), end="")
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
