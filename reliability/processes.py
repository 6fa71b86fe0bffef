"""What the checks' workers run in, and what is said of those that cannot run."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys

from reliability.record import ROOT

# Where the workers' modules are, and what they take from the tests.
PATHS = [str(ROOT / folder) for folder in (".", "tests/training", "tests/ort_training")]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(PATHS),
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        "OPENBLAS_NUM_THREADS": "1",
    }


def available(package: str) -> bool:
    """Whether it is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def skip(what: str, reason: str) -> None:
    """Say that a part of a check is left out; under ``GCE_REQUIRE_ALL=1``, as in CI, end it."""
    if os.environ.get("GCE_REQUIRE_ALL") == "1":
        raise SystemExit(f"without {what}: {reason} (required by GCE_REQUIRE_ALL=1)")
    print(f"SKIPPED {what}: {reason}", flush=True)


def has_release() -> bool:
    """Whether onnxruntime's training release has a wheel for this Python and machine."""
    on_this = sys.platform == "darwin" or platform.machine() == "x86_64"
    return sys.version_info < (3, 13) and on_this


def training_pythons(own: str, training: str | None) -> dict[str, str]:
    """The Python of each way to train that can run here."""
    found = {}
    if available("onnxruntime"):
        found["stock"] = own
    else:
        skip("stock", "onnxruntime is not installed")
    if training:
        found["release"] = training
    elif not has_release():  # no machine can be given it
        print("SKIPPED release: it has no wheel for this Python and machine", flush=True)
    else:
        skip("release", "no --training-python")
    return found
