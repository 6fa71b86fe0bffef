"""The report: what ran where, a table of ratios, and a picture."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import gce
from benchmarks.contenders import LIMIT, ONNXRUNTIME, OPERATOR, OURS
from benchmarks.runner import Measured

PACKAGES = ("torch", "jax", "numba", "onnxruntime")


def surroundings(threads: int) -> dict[str, str]:
    """What a figure depends on: machine, build, versions, commit."""
    facts = {"cpu": _cpu(), "threads": str(threads)}
    config = gce.show_config("dicts") or {}
    facts.update({k: str(v) for k, v in config.items() if k not in ("threads", "onnx_library")})
    facts.update({package: _version(package) for package in PACKAGES})
    facts["commit"] = _commit()
    return facts


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    return f"{facts.get('model name', '?')} (model {facts.get('model', '?')})"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def best_peer(measured: Measured) -> str | None:
    """The fastest contender that is neither gce nor a limit."""
    peers = [name for name in measured.seconds if name not in OURS]
    return min(peers, key=measured.median, default=None)


def table(results: list[Measured]) -> str:
    """Markdown: gce's time, its share of the limit, and the best peer's time over gce's."""
    lines = [
        "| case | gce | limit / gce | best peer | its time / gce's |",
        "|---|---|---|---|---|",
    ]
    for measured in results:
        share, low, high = measured.ratio(LIMIT)
        row = [measured.case.name, _time_text(measured.median("gce"))]
        row.append(f"{share:.2f} ({low:.2f}-{high:.2f})")
        peer = best_peer(measured)
        if peer is None:
            row += ["-", "-"]
        else:
            ratio, low, high = measured.ratio(peer)
            row += [peer, f"{ratio:.1f} ({low:.1f}-{high:.1f})"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def operator_table(results: list[Measured]) -> str:
    """Markdown: the operator's time in a session, and that of ONNX Runtime's own loss over it."""
    lines = [
        "| case | operator | over gce from numpy | SoftmaxCrossEntropyLoss / operator |",
        "|---|---|---|---|",
    ]
    for measured in results:
        if OPERATOR not in measured.seconds:
            continue
        over, low, high = measured.ratio(OPERATOR)
        row = [measured.case.name, _time_text(measured.median(OPERATOR))]
        row.append(f"{over:.2f} ({low:.2f}-{high:.2f})")
        if ONNXRUNTIME in measured.seconds:
            ratio, low, high = measured.ratio(ONNXRUNTIME, to=OPERATOR)
            row.append(f"{ratio:.1f} ({low:.1f}-{high:.1f})")
        else:
            row.append("-")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _time_text(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-4 else f"{seconds * 1e3:.2f} ms"


def save_json(path: Path, facts: dict[str, str], results: list[Measured]) -> None:
    """All rounds of all contenders, for whoever wants other figures."""
    cases: list[dict[str, Any]] = [
        {"case": m.case.name, "seconds": m.seconds, "left out": m.left_out} for m in results
    ]
    path.write_text(json.dumps({"facts": facts, "cases": cases}, indent=1))


def save_picture(path: Path, facts: dict[str, str], results: list[Measured]) -> None:
    """How many times longer each contender takes than gce, case by case."""
    import matplotlib.pyplot as plt

    names = sorted({n for m in results for n in m.seconds} - {"gce", LIMIT})
    figure, axes = plt.subplots(figsize=(9, 0.7 * len(results) + 1.5), layout="constrained")
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        rows = [i for i, m in enumerate(results) if name in m.seconds]
        ratios = [results[i].ratio(name)[0] for i in rows]
        axes.barh([i + (k + 0.5) * height - 0.4 for i in rows], ratios, height, label=name)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(results)), [m.case.name for m in results])
    axes.invert_yaxis()
    axes.set_xlabel("time / time of gce (log scale); gce = 1")
    axes.set_title(f"{facts['cpu']}, {facts['isa']}, {facts['threads']} thread(s)", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
