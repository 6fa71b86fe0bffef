"""Runs libFuzzer programs, and atheris scripts, which have the same engine: what they found.

A target's kept corpus, in reliability/corpus/NAME, is only read. What a run adds goes to
build/fuzz/NAME/new, with which the next run goes on; `keep` makes a new kept corpus of both.
Inputs that went wrong are in build/fuzz/NAME/artifacts, the last run's output in log.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from reliability.record import ROOT, Figures

CORPUS = ROOT / "reliability" / "corpus"
# Inputs of these names were findings. They stay whatever else covers as much.
FOUND = "found-*"
# How libFuzzer begins the names of inputs that went wrong. One that was merely slow is none.
KINDS = ("crash-", "leak-", "timeout-", "oom-")


class Target(NamedTuple):
    """A program to fuzz."""

    name: str
    command: tuple[str, ...]  # before libFuzzer's own arguments
    flags: tuple[str, ...] = ()  # of libFuzzer
    environment: Mapping[str, str] = {}  # beside this process's own

    @property
    def corpus(self) -> Path:
        """Folder of the inputs that are kept."""
        return CORPUS / self.name

    @property
    def folder(self) -> Path:
        """Where runs write."""
        return ROOT / "build" / "fuzz" / self.name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What each check that fuzzes takes."""
    parser.add_argument("--seconds", type=int, default=600, help="for each target; default: 600")
    parser.add_argument(
        "--keep", action="store_true", help="keep of what is new what adds coverage"
    )


def fuzz(target: Target, options: argparse.Namespace) -> Figures:
    """The figures of one run: its `findings` are names of files, or how the program ended.

    The first finding ends the run.
    """
    new, artifacts = target.folder / "new", target.folder / "artifacts"
    for folder in (new, artifacts, target.corpus):
        folder.mkdir(parents=True, exist_ok=True)
    # Of these folders libFuzzer writes to the first alone.
    command = [*target.command, *target.flags, f"-max_total_time={options.seconds}"]
    command += [f"-artifact_prefix={artifacts}/", "-print_final_stats=1", "-timeout=120"]
    command += [str(new), str(target.corpus)]
    print(f"--- {target.name}: {' '.join(command)}", flush=True)
    code, said = call(target, command)
    (target.folder / "log").write_text(said)
    written = [Path(path).name for path in re.findall(r"Test unit written to (\S+)", said)]
    findings = [name for name in written if name.startswith(KINDS)]
    if code and not findings:
        findings.append(f"exit code {code}")
    figures = counts(said)
    if not figures["executions"] and not findings:
        findings.append("no executions")
    if findings:
        print(said[-20000:], flush=True)
    elif options.keep:
        keep(target)
    return {**figures, "corpus": len(list(target.corpus.iterdir())), "findings": findings}


def call(target: Target, command: list[str]) -> tuple[int, str]:
    """Exit code and output of the program, in a folder of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            command,
            cwd=scratch,
            env={**os.environ, **target.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode, done.stdout.decode(errors="replace")


def counts(said: str) -> Figures:
    """Executions, seconds, edges and features, from what libFuzzer printed; 0 if it did not.

    The edges are of the instrumented code, and so are the features, which also tell how often
    an edge was taken.
    """
    done = re.findall(r"^Done (\d+) runs in (\d+) second", said, re.MULTILINE)
    status = re.findall(r"^#(\d+)\t.*?cov: (\d+) ft: (\d+)", said, re.MULTILINE)
    executed = re.findall(r"^stat::number_of_executed_units: +(\d+)", said, re.MULTILINE)
    rate = re.findall(r"^stat::average_exec_per_sec: +(\d+)", said, re.MULTILINE)
    last = status[-1] if status else ("0", "0", "0")
    executions = int(executed[-1] if executed else last[0])
    if done:
        seconds = int(done[-1][1])
    else:  # ended by a finding
        seconds = round(executions / int(rate[-1])) if rate and int(rate[-1]) else 0
    return {
        "executions": executions,
        "seconds": seconds,
        "edges": int(last[1]),
        "features": int(last[2]),
    }


def keep(target: Target) -> None:
    """Make the kept corpus anew: few files, old and new, that take all edges that all do."""
    found = target.corpus.glob(FOUND)
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch, target.name)
        merged.mkdir()
        for path in found:
            shutil.copy2(path, merged)
        folders = [str(merged), str(target.corpus), str(target.folder / "new")]
        # Of edges alone: an input for each number of times that one is taken would be many.
        flags = [*target.flags, "-set_cover_merge=1", "-use_counters=0"]
        code, said = call(target, [*target.command, *flags, *folders])
        if code or not any(merged.iterdir()):
            raise SystemExit(said)
        shutil.rmtree(target.corpus)
        shutil.copytree(merged, target.corpus)
        shutil.rmtree(target.folder / "new")


def text(figures: Figures) -> str:
    """The figures in RELIABILITY.md."""
    rate = figures["executions"] / max(figures["seconds"], 1)
    return (
        f"{figures['executions']:,} executions in {figures['seconds']} s ({rate:,.0f}/s), "
        f"{figures['edges']:,} edges, a corpus of {figures['corpus']}; "
        f"{len(figures['findings'])} findings"
    )
