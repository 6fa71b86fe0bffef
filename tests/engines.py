"""The core as the tests call it: in this process on each ISA, or built for another machine.

An engine has gce's own functions, with gce's arguments, results and errors::

    engine.loss(logits, targets, gamma, **options)
    engine.loss_and_grad(logits, targets, gamma, **options)
    engine.row_stats(logits, targets, **options)
    engine.loss_gamma_grad(logits, targets, gamma, **options)
    engine.hvp(logits, targets, vector, gamma, **options)
    engine.partial_stats(logits, targets, **options)              # these two of gce.shards
    engine.sharded_loss_and_grad(logits, targets, gamma, stats, **options)
    engine.binary_loss(logits, targets, gamma, **options)
    engine.binary_loss_and_grad(logits, targets, gamma, **options)
    engine.pointwise("grad_weight", log_p, gamma, threshold)      # one of the ufuncs

`InProcess` is the extension module. `Emulated` is the same core in another process, reached
through `runner.py`: it repeats in Python what ``native/python`` does between numpy and the C ABI,
so that NEON is tested on x86-64.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

import gce
from gce import _native, shards
from runner import DTYPES, Runner
from support import require, tool

ROOT = Path(__file__).resolve().parent.parent
NATIVE_TESTS = ROOT / "tests" / "native"


# --- what there is ------------------------------------------------------------------------------


EMULATED_MACHINE = "aarch64"
IS_EMULATED = platform.machine().lower() not in ("aarch64", "arm64")

# What is compiled in here, best first. That it is all of setup.py's table is a test of its own.
IN_PROCESS = tuple(_native.compiled_isas())
# Names of engines to the ISA of the emulated machine: its baseline is other code than ours.
EMULATED = {"neon": "neon", "baseline-aarch64": "baseline"} if IS_EMULATED else {}
ENGINES = (*IN_PROCESS, *EMULATED)


class Engine(Protocol):
    """Something that computes what gce does."""

    name: str

    def loss(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any: ...

    def loss_and_grad(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any: ...

    def row_stats(self, logits: Any, targets: Any, **options: Any) -> Any: ...

    def loss_gamma_grad(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any: ...

    def hvp(self, logits: Any, targets: Any, vector: Any, gamma: Any, **options: Any) -> Any: ...

    def partial_stats(self, logits: Any, targets: Any, **options: Any) -> Any: ...

    def sharded_loss_and_grad(
        self, logits: Any, targets: Any, gamma: Any, stats: Any, **options: Any
    ) -> Any: ...

    def binary_loss(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any: ...

    def binary_loss_and_grad(
        self, logits: Any, targets: Any, gamma: Any, **options: Any
    ) -> Any: ...

    def pointwise(self, op: str, *args: Any) -> Any: ...


def skip_if_cpu_lacks(isa: str) -> None:
    if isa not in _native.available_isas():
        pytest.skip(f"this CPU lacks {isa}")


@contextlib.contextmanager
def selected(isa: str) -> Iterator[None]:
    """Run the extension module on this ISA: skips if this CPU lacks it, fails if it never ran."""
    skip_if_cpu_lacks(isa)
    _native.select_isa(isa)
    try:
        yield
        assert _native.isa_name() == isa, "the test ran on another ISA"
    finally:
        _native.select_isa(None)


class InProcess:
    """The extension module, on the ISA that is selected."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loss = gce.loss
        self.loss_and_grad = gce.loss_and_grad
        self.row_stats = gce.row_stats
        self.loss_gamma_grad = gce.loss_gamma_grad
        self.hvp = gce.hvp
        self.partial_stats = shards.partial_stats
        self.sharded_loss_and_grad = shards.loss_and_grad
        self.binary_loss = gce.binary_loss
        self.binary_loss_and_grad = gce.binary_loss_and_grad

    def pointwise(self, op: str, *args: Any) -> Any:
        """One of the three ufuncs."""
        return getattr(gce, op)(*args)


# --- compiling the core into a program ----------------------------------------------------------

PROGRAMS = tool("programs")
STRICT, C11 = PROGRAMS.STRICT, PROGRAMS.C11


@functools.cache
def setup_script() -> Any:
    """setup.py as a module: the one table of ISAs and their flags."""
    # It imports setuptools, which an installed package does not need: only its tests do.
    require(importlib.util.find_spec("setuptools"), "setuptools is not installed")
    return PROGRAMS.setup_script()


def build_program(name: str, *, main: Path, compiler: str = "g++", **options: Any) -> Path:
    """`build_program` of native/tools/programs.py, of one source beside the core."""
    require(shutil.which(compiler), f"{compiler} is not installed")
    setup_script()
    try:
        return PROGRAMS.build_program(name, sources=[main], compiler=compiler, **options)
    except PROGRAMS.CompileError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


# --- the core in another process ----------------------------------------------------------------

OPS = ("loss_from_log_prob", "grad_weight", "gamma_grad")
REAL_ARRAYS = ("threshold", "weight", "sample_weight", "pos_weight", "grad_output", "stats")
INTEGERS = (
    *("axis", "ignore_index", "num_threads", "shift", "gauss_newton"),
    *("shard", "first_class", "num_classes"),
)
SHARD_PARTIAL, SHARD_MERGED = 1, 2  # gce_shard of gce.h


class Emulated(Runner):
    """gce's functions, in a process of their own."""

    def loss(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any:
        """`gce.loss`."""
        assert not {"out", "grad_output"} & options.keys()
        loss, stats = self._losses(logits, targets, gamma, None, options)
        return (loss, stats) if stats else loss

    def loss_and_grad(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any:
        """`gce.loss_and_grad`."""
        logits = _as_float(logits)
        out = _out_of(logits, options)
        loss, stats = self._losses(logits, targets, gamma, out, options)
        return (loss, out, stats) if stats else (loss, out)

    def row_stats(self, logits: Any, targets: Any, **options: Any) -> Any:
        """`gce.row_stats`."""
        logits, targets = _as_float(logits), np.asarray(targets)
        fields = _stats_fields(gce.RowStats, logits, _row_shape(logits, targets, options))
        self._run({"logits": logits, "targets": targets}, fields, options)
        return gce.RowStats(*(field[()] for field in fields.values()))

    def loss_gamma_grad(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any:
        """`gce.loss_gamma_grad`."""
        logits, targets, gamma = _as_float(logits), np.asarray(targets), _as_real(gamma)
        grad = np.full(gamma.shape, -77.0)
        inputs = {"logits": logits, "targets": targets, "gamma": gamma}
        self._run(inputs, {"gamma_grad": grad}, options)
        return grad[()]

    def hvp(self, logits: Any, targets: Any, vector: Any, gamma: Any, **options: Any) -> Any:
        """`gce.hvp`."""
        logits, targets, vector = _as_float(logits), np.asarray(targets), _as_real(vector)
        out = np.full_like(logits, -77.0)
        inputs = {"logits": logits, "targets": targets, "vector": vector, "gamma": _as_real(gamma)}
        self._run(inputs, {"grad": out}, options)
        return out

    def partial_stats(self, logits: Any, targets: Any, **options: Any) -> Any:
        """`gce.shards.partial_stats`."""
        logits, targets = _as_float(logits), np.asarray(targets)
        stats = np.full((*_row_shape(logits, targets, options), len(shards.FIELDS)), -77.0)
        inputs = {"logits": logits, "targets": targets}
        self._run(inputs, {"stats": stats}, {"shard": SHARD_PARTIAL, **options})
        return stats

    def sharded_loss_and_grad(
        self, logits: Any, targets: Any, gamma: Any, stats: Any, **options: Any
    ) -> Any:
        """`gce.shards.loss_and_grad`."""
        given = {"stats": stats, "shard": SHARD_MERGED, **options}
        return self.loss_and_grad(logits, targets, gamma, **given)

    def binary_loss(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any:
        """`gce.binary_loss`."""
        assert not {"out", "grad_output"} & options.keys()
        return self._binary_loss(logits, targets, gamma, None, options)

    def binary_loss_and_grad(self, logits: Any, targets: Any, gamma: Any, **options: Any) -> Any:
        """`gce.binary_loss_and_grad`."""
        out = _out_of(_as_float(logits), options)
        return self._binary_loss(logits, targets, gamma, out, options), out

    def _binary_loss(self, logits: Any, targets: Any, gamma: Any, grad: Any, options: Any) -> Any:
        logits = _as_float(logits)
        shape = logits.shape if options.get("reduction") == "none" else ()
        loss = np.full(shape, -77.0, _loss_dtype(logits))
        inputs = {"logits": logits, "targets": _as_real(targets), "gamma": _as_real(gamma)}
        outputs = {"loss": loss} if grad is None else {"loss": loss, "grad": grad}
        self._run(inputs, outputs, options, "run_binary")
        return loss[()]

    def pointwise(self, op: str, *args: Any) -> Any:
        """One of the ufuncs; `args` of at most one dimension."""
        log_p, *rest = np.broadcast_arrays(*args)
        dtype = np.float32 if np.can_cast(np.asarray(args[0]).dtype, np.float32) else np.float64
        inputs = [log_p.astype(dtype, copy=False), *(a.astype(np.float64) for a in rest)]
        inputs = [np.atleast_1d(array) for array in inputs]
        out = np.full(inputs[0].shape, -77.0, dtype)
        names = ("log_p", "gamma", "threshold")[: 2 if op == "gamma_grad" else 3]
        named = dict(zip(names, inputs, strict=True))
        self.send("pointwise", [("int", "op", OPS.index(op))], named, {"out": out})
        return out.reshape(log_p.shape)[()]

    def _losses(self, logits: Any, targets: Any, gamma: Any, grad: Any, options: Any) -> Any:
        logits, targets = _as_float(logits), np.asarray(targets)
        per_row = options.get("reduction") == "none"
        rows = _row_shape(logits, targets, options)
        loss = np.full(rows if per_row else (), -77.0, _loss_dtype(logits))
        inputs = {"logits": logits, "targets": targets, "gamma": _as_real(gamma)}
        outputs = {"loss": loss} if grad is None else {"loss": loss, "grad": grad}
        stats = {}
        if options.pop("return_stats", False):
            stats = _stats_fields(gce.LossStats, logits, rows)
        self._run(inputs, {**outputs, **stats}, options)
        return loss[()], gce.LossStats(*(field[()] for field in stats.values())) if stats else None

    def _run(self, inputs: Any, outputs: Any, options: Any, action: str = "run") -> None:
        lines: list[tuple[Any, ...]] = []
        if action == "run":
            options = {"ignore_index": -100, **options}
        for name, value in options.items():
            if value is None:
                continue
            if name in REAL_ARRAYS:
                inputs[name] = _as_real(value)
            elif name in ("reduction", "value"):
                lines.append(("text", name, value))
            elif name in ("normalizer", "label_smoothing", "z_loss", "softcap"):
                lines.append(("real", name, float(value).hex()))
            elif name in INTEGERS:
                lines.append(("int", name, int(value)))
            else:
                raise TypeError(f"unexpected keyword argument {name!r}")
        self.send(action, lines, inputs, outputs)


def _out_of(logits: Any, options: dict[str, Any]) -> Any:
    """Take `out` from the options, or a new array."""
    out = options.pop("out", None)
    if out is None:
        out = np.empty_like(logits)
        out.fill(-77.0)  # what is never written shows
    return out


def _as_float(array: Any) -> Any:
    """Array that the C ABI has a name for; the rest it checks itself."""
    array = np.asarray(array)
    if array.dtype.name not in DTYPES or not array.dtype.isnative:
        raise TypeError(f"logits has dtype {array.dtype}")
    return array


def _as_real(option: Any) -> Any:
    """Option array: a float array as it is, anything else as float64."""
    option = np.asarray(option)
    return option if option.dtype.name in DTYPES[:4] else option.astype(np.float64)


def _row_shape(logits: Any, targets: Any, options: Any) -> tuple[int, ...]:
    if targets.dtype.kind in "iu":
        return targets.shape
    return tuple(np.delete(logits.shape, options.get("axis", -1)))


def _stats_fields(kind: Any, logits: Any, rows: tuple[int, ...]) -> dict[str, Any]:
    dtypes = {"argmax": np.int64}
    return {
        name: np.full(rows, -77, dtypes.get(name, _loss_dtype(logits))) for name in kind._fields
    }


def _loss_dtype(logits: Any) -> Any:
    return np.float64 if logits.dtype == np.float64 else np.float32


def emulated_engine(name: str, *, forced: bool = True) -> Emulated:
    """The core for the emulated machine, compiled if need be; not yet started.

    Unless `forced`, its ISA has to be the one that is chosen by default.
    """
    program = build_emulated("runner", NATIVE_TESTS / "runner.cpp")
    return Emulated(name, program, EMULATED[name], forced)


def build_emulated(name: str, main: Path) -> list[str]:
    """The command of a program, `main` and the core, for the emulated machine."""
    emulator = f"qemu-{EMULATED_MACHINE}-static"
    require(shutil.which(emulator), f"{emulator} is not installed")
    program = build_program(
        f"{name}-{EMULATED_MACHINE}",
        main=main,
        compiler=f"{EMULATED_MACHINE}-linux-gnu-g++",
        machine=EMULATED_MACHINE,
        link_flags=["-static"],
    )
    return [emulator, str(program)]


def python(
    code: str, *, emulator: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own that finds the same gce, with these variables set."""
    found = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [*emulator, sys.executable, "-c", code],
        env={**os.environ, **found, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
