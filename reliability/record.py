"""A check's last figures, in a file, with the command, date, commit and machine they are from."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from gce.bench.report import cpu

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reliability"

Figures = dict[str, Any]


class Record(NamedTuple):
    """One run of a check."""

    command: str
    date: str
    commit: str
    machine: str
    seconds: float
    figures: Figures


def commit() -> str:
    """The checkout's commit; with a + if the work tree has something else."""
    # Records and corpora are what a run itself changes.
    own = (":!docs/reliability", ":!RELIABILITY.md", ":!reliability/corpus")
    status = ["status", "--porcelain", "--", ".", *own]
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
            for words in (["rev-parse", "--short=7", "HEAD"], status)
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def nameless(argument: str) -> str:
    """An argument without a path of this machine, which says nothing to others."""
    of_checkout = argument.replace(f"{ROOT}/", "")
    return Path(of_checkout).name if of_checkout.startswith("/") else of_checkout


def save(
    name: str, arguments: list[str], seconds: float, figures: Figures, folder: Path = FOLDER
) -> Path:
    """Write what the run ``python -m reliability NAME ARGUMENTS`` has found."""
    record = Record(
        command=shlex.join(["python", "-m", "reliability", name, *map(nameless, arguments)]),
        date=datetime.date.today().isoformat(),
        commit=commit(),
        machine=f"{cpu()}, {os.cpu_count()} CPUs",
        seconds=round(seconds, 1),
        figures=figures,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record._asdict(), indent=1) + "\n", encoding="utf-8")
    return path


def load(name: str, folder: Path = FOLDER) -> Record | None:
    """The last record, if there is one."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    return Record(**json.loads(path.read_text(encoding="utf-8")))
