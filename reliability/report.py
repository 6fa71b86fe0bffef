"""RELIABILITY.md's table, from the records: promise, how it is tested, what was found last.

It stands between ``<!-- reliability -->`` and ``<!-- /reliability -->``; the text around it is
written by hand and has no figures of its own.
"""

from __future__ import annotations

from gce.bench.report import markdown
from reliability.checks import CHECKS
from reliability.record import ROOT, load

TEXT = ROOT / "RELIABILITY.md"
BEGIN, END = "<!-- reliability -->", "<!-- /reliability -->"


def table() -> str:
    """What is promised and holds, and below it where the figures are from."""
    rows, runs = [], []
    for name, check in CHECKS.items():
        record = load(name)
        if record is None:
            runs.append([name, "has never run", f"`python -m reliability {name}`", "", "", "", ""])
            continue
        failures = record.figures["failures"]
        if not failures:  # or it may not have all figures
            rows += [list(row) for row in check.rows(record.figures)]
        result = f"**{failures} failures**" if failures else "passed"
        took = f"{record.seconds / 60:.1f} min"
        source = [f"`{record.command}`", record.date, record.commit, record.machine, took]
        runs.append([name, result, *source])
    promises = markdown(["promise", "how it is tested", "last figures"], rows)
    origins = markdown(["check", "result", "command", "date", "commit", "machine", "took"], runs)
    return f"{promises}\n\n{origins}"


def filled(text: str) -> str:
    """The text with the table of now between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{TEXT.name} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def write() -> None:
    """Write RELIABILITY.md anew."""
    TEXT.write_text(filled(TEXT.read_text(encoding="utf-8")), encoding="utf-8")
