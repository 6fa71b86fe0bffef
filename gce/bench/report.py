"""What ran where, the tables, and all rounds as JSON."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import gce
from gce.bench.cases import Case
from gce.bench.peers import OPERATOR, PACKAGES
from gce.bench.runner import Measured

__all__ = [
    "LIMIT", "best_peer", "cell", "compared", "left_out", "load_json", "markdown", "peers_table",
    "picture_title", "save_json", "speed_table", "summary", "surroundings", "time_text", "write",
]  # fmt: skip

LIMIT = "limit"


def surroundings(threads: int, affinity: str = "") -> dict[str, str]:
    """What a figure depends on: machine, build, versions, commit."""
    config = gce.show_config("dicts") or {}
    left_out = ("threads", "onnx_library")
    facts = {"cpu": cpu(), "threads": f"{threads}, {affinity}".removesuffix(", ")}
    for name, value in config.items():
        if name not in left_out:
            facts[name] = ", ".join(value) if isinstance(value, list) else str(value)
    facts |= {package: version(package) for package in PACKAGES}
    facts["commit"] = commit()
    return facts


def version(package: str) -> str:
    """That of an installed distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name", platform.machine())
    return f"{name} (model {facts['model']})" if "model" in facts else name


def commit() -> str:
    """The commit of the source tree that gce is imported from, if it is one."""
    folder = Path(gce.__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return "none: not imported from a clone"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def is_limit(name: str) -> bool:
    """Whether that is the limit, on any number of threads."""
    return name.split(" [")[0] == LIMIT


def best_peer(measured: Measured) -> str | None:
    """The fastest of the other packages."""
    peers = [name for name in measured.seconds if not (is_ours(name) or is_limit(name))]
    return min(peers, key=measured.median, default=None)


def is_ours(name: str) -> bool:
    """Whether a contender is gce in some way: all of these are called so."""
    return name.startswith("gce")


def compared(results: Sequence[Measured]) -> list[str]:
    """The contenders that gce is compared with: other packages, and its own operator in one."""
    names = dict.fromkeys(name for measured in results for name in measured.seconds)
    return [name for name in names if name == OPERATOR or not (is_ours(name) or is_limit(name))]


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(ratio: tuple[float, float, float]) -> str:
    """A ratio with its spread; three digits, as far as it has them."""
    return "{} ({}-{})".format(*(f"{x:.2f}" if x < 10 else f"{x:.0f}" for x in ratio))


def time_text(seconds: float) -> str:
    """A time for people."""
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-4 else f"{seconds * 1e3:.2f} ms"


def speed_table(results: Sequence[Measured]) -> str:
    """Markdown: gce's time, its share of the limit's speed, and the best peer's time over gce's."""
    rows = []
    for measured in results:
        peer = best_peer(measured)
        best = ["-", "-"] if peer is None else [peer, cell(measured.ratio(peer))]
        limit = cell(measured.ratio(LIMIT)) if LIMIT in measured.seconds else "-"
        rows.append([measured.case.name, time_text(measured.median("gce")), limit, *best])
    return markdown(["case", "gce", "limit / gce", "best peer", "its time / gce's"], rows)


def peers_table(results: Sequence[Measured]) -> str:
    """Markdown: the time of every peer over gce's."""
    names = compared(results)
    rows = [
        [
            measured.case.name,
            *(cell(measured.ratio(n)) if n in measured.seconds else "-" for n in names),
        ]
        for measured in results
    ]
    return markdown(["time / gce's", *names], rows)


def save_json(path: Path, facts: dict[str, Any], results: Sequence[Measured]) -> None:
    """Write all rounds of all contenders."""
    cases = []
    for measured in results:
        document = asdict(measured)
        document["name"] = measured.case.name
        document["seconds"] = {
            name: [float(f"{second:.5g}") for second in seconds]
            for name, seconds in measured.seconds.items()
        }
        cases.append(document)
    text = json.dumps({"facts": facts, "results": cases}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_json(path: Path) -> tuple[dict[str, Any], list[Measured]]:
    """Read what `save_json` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    results = []
    for entry in document["results"]:
        entry.pop("name")
        case = entry.pop("case")
        case["shape"] = tuple(case["shape"])
        results.append(Measured(Case(**case), **entry))
    return document["facts"], results


def left_out(results: Sequence[Measured]) -> str:
    """A line for each contender and reason: the cases that it is not in."""
    cases: dict[tuple[str, str], list[str]] = {}
    for measured in results:
        for name, why in measured.left_out.items():
            cases.setdefault((name, why), []).append(measured.case.name)
    lines = []
    for (name, why), names in cases.items():
        where = "everywhere" if len(names) == len(results) else ", ".join(names)
        lines.append(f"- {name}: {why} ({where})")
    return "\n".join(lines)


def summary(results: Sequence[Measured]) -> str:
    """Markdown: both tables, what they mean, and who is missing."""
    parts = [
        "limit: one pass over the memory that the work cannot do without. Ratios are medians of "
        "the rounds', with their 10 % and 90 % points.",
        speed_table(results),
    ]
    if any(best_peer(measured) for measured in results):
        parts.append(peers_table(results))
    plain = dict.fromkeys(name for measured in results for name in measured.plain)
    if plain:
        parts.append(f"Cross-entropy alone, that is gamma = 0: {', '.join(plain)}.")
    without = left_out(results)
    if without:
        parts.append(f"Left out:\n\n{without}")
    return "\n\n".join(parts)


def write(folder: Path, facts: dict[str, Any], results: Sequence[Measured], text: str) -> None:
    """Write ``benchmark.json``, ``benchmark.md`` and, if matplotlib is there, ``benchmark.png``."""
    folder.mkdir(exist_ok=True)
    save_json(folder / "benchmark.json", facts, results)
    listed = "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    (folder / "benchmark.md").write_text(f"{listed}\n\n{text}\n", encoding="utf-8")
    try:
        from gce.bench.picture import save_picture

        save_picture(folder / "benchmark.png", results, picture_title(facts))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("no picture: it needs matplotlib: pip install matplotlib", file=sys.stderr)


def picture_title(facts: dict[str, Any]) -> str:
    """What ran where, in a line."""
    threads = facts["threads"].partition(",")[0]
    return f"{facts['cpu']}, {facts['isa']}, threads: {threads}"
