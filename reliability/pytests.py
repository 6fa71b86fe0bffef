"""Runs of the test suite, or of a part, and how many tests passed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from reliability.record import ROOT, Figures


def run_pytest(
    arguments: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    python: Sequence[str] = (sys.executable,),
    folder: Path = ROOT,
) -> Figures:
    """What pytest said, started in a folder: passed, failed (errors among them), skipped.

    Where it died, or no test passed, one failed at least: nothing is shown by that.

    Paths that start with tests are the checkout's, whatever the folder. Python looks first where it
    is started, and the checkout has a package: what is to test another starts elsewhere.
    """
    of_checkout = [re.sub(r"^(--ignore=)?tests\b", rf"\g<1>{ROOT}/tests", a) for a in arguments]
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch, "results.xml")
        command = [*python, "-m", "pytest", "-p", "no:cacheprovider"]
        command += [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"]
        command += [f"--junitxml={results}", *of_checkout]
        code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        found = counts(results.read_text(encoding="utf-8")) if results.exists() else None
    found = found or {"passed": 0, "failed": 0, "skipped": 0}
    if (code or not found["passed"]) and not found["failed"]:
        found["failed"] = 1
    return found


def counts(results: str) -> Figures:
    """How many tests passed, failed and were skipped, by a file of pytest's."""
    suite = ElementTree.fromstring(results)[0].attrib
    skipped, failed = int(suite["skipped"]), int(suite["failures"]) + int(suite["errors"])
    passed = int(suite["tests"]) - skipped - failed
    return {"passed": passed, "failed": failed, "skipped": skipped}
