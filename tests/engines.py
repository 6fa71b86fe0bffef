"""The core as the tests call it: in this process on each ISA, or built for another machine.

An engine has gce's own functions, with gce's arguments, results and errors::

    engine.loss(logits, targets, gamma, **options)
    engine.loss_and_grad(logits, targets, gamma, **options)
    engine.row_stats(logits, targets, **options)
    engine.loss_gamma_grad(logits, targets, gamma, **options)
    engine.hvp(logits, targets, vector, gamma, **options)
    engine.binary_loss(logits, targets, gamma, **options)
    engine.binary_loss_and_grad(logits, targets, gamma, **options)
    engine.pointwise("grad_weight", log_p, gamma, threshold)      # one of the ufuncs

`InProcess` is the extension module. `Emulated` is the same core in another process, reached
through ``tests/native/runner.cpp``: it repeats in Python what ``native/python`` does between numpy
and the C ABI, so that NEON is tested on x86-64, with views of any strides, alignment and overlap.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pytest

import gce
from gce import _native
from support import require

ROOT = Path(__file__).resolve().parent.parent
NATIVE_TESTS = ROOT / "tests" / "native"
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
C11 = ("-xc", "-std=c11", *STRICT)


# --- what there is ------------------------------------------------------------------------------


@functools.cache
def setup_script() -> Any:
    """setup.py as a module: the one table of ISAs and their flags."""
    # It imports setuptools, which an installed package does not need: only its tests do.
    require(importlib.util.find_spec("setuptools"), "setuptools is not installed")
    spec = importlib.util.spec_from_file_location("gce_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        self.binary_loss = gce.binary_loss
        self.binary_loss_and_grad = gce.binary_loss_and_grad

    def pointwise(self, op: str, *args: Any) -> Any:
        """One of the three ufuncs."""
        return getattr(gce, op)(*args)


# --- compiling the core into a program ----------------------------------------------------------


def build_program(
    name: str,
    *,
    main: Path,
    compiler: str = "g++",
    machine: str | None = None,
    isas: Collection[str] | None = None,
    flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
) -> Path:
    """Path of a program: `main`, and the core for `machine` with setup.py's flags and then `flags`.

    With `isas`, of these ISAs alone. A `main` in C may not have a warning. Programs are kept in
    build/ under a name that tells their contents, so that only a change compiles anything.
    """
    require(shutil.which(compiler), f"{compiler} is not installed")
    units = _units(machine or platform.machine(), isas)
    units.append(units[0]._replace(source=str(main.relative_to(ROOT))))
    program = _cache_folder() / f"{name}-{_digest(compiler, units, flags, link_flags)}"
    if program.exists():
        return program

    def compile_unit(number: int) -> str:
        unit, path = units[number], f"{scratch}/{number}.o"
        of_unit = unit.flags
        if unit.source.endswith(".c"):
            of_unit = (*(flag for flag in of_unit if not flag.startswith("-std=")), *C11)
        _call([compiler, *of_unit, *flags, "-c", unit.source, "-o", path])
        return path

    with tempfile.TemporaryDirectory() as scratch:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_unit, range(len(units))))
        linked = f"{scratch}/{name}"
        _call([compiler, *objects, "-pthread", *flags, *link_flags, "-o", linked])
        # Another test run may be at the same: whoever is last replaces the same with the same.
        beside = f"{program}.{os.getpid()}"
        shutil.move(linked, beside)
        os.replace(beside, program)
    return program


def _units(machine: str, isas: Collection[str] | None) -> list[Any]:
    """setup.py's units of the core, without those of other ISAs than `isas`."""
    units = list(setup_script().core_units(machine))
    left_out = {isa.name for isa in setup_script().isas_for(machine)} - set(isas or ())
    if isas is None or not left_out:
        return units
    sources = {f"native/core/isa/{name}.cpp" for name in left_out}
    macros = {f"-DGCE_HAVE_{name.upper()}=1" for name in left_out}
    return [
        unit._replace(flags=tuple(flag for flag in unit.flags if flag not in macros))
        for unit in units
        if unit.source not in sources
    ]


def _cache_folder() -> Path:
    """Folder of compiled programs, rid of those that nobody has used for a week."""
    folder = ROOT / "build" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_atime > 7 * 86400:
                path.unlink()
    return folder


def _digest(compiler: str, units: Sequence[Any], *flags: Sequence[str]) -> str:
    """Hash of all that a program is made from."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    said = hashlib.sha256(version + repr((units, flags)).encode())
    headers = [*(ROOT / "native/include").rglob("*.h"), *(ROOT / "native/core").rglob("*.h")]
    for path in (*sorted(headers), *(ROOT / unit.source for unit in units)):
        said.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return said.hexdigest()[:20]


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stderr}", pytrace=False)


# --- the core in another process ----------------------------------------------------------------

DTYPES = (
    *("float16", "bfloat16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
ERRORS = {1: TypeError, 2: ValueError, 3: IndexError, 4: MemoryError, 5: RuntimeError}
OPS = ("loss_from_log_prob", "grad_weight", "gamma_grad")
REAL_ARRAYS = ("threshold", "weight", "sample_weight", "pos_weight", "grad_output")


class Emulated:
    """The core in a process of its own, to which calls are sent one after the other."""

    def __init__(self, name: str, command: Sequence[str], isa: str, forced: bool) -> None:
        self.name = name
        self._command = command
        self._isa = isa
        self._forced = forced
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()  # start() after a death is within a call

    def start(self) -> Emulated:
        """Start the process and see that it runs the ISA that it should."""
        if self._process is None:
            environment = {**os.environ, "GCE_FORCE_ISA": self._isa if self._forced else ""}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, env=environment
            )
            assert self.isa_name() == self._isa
        return self

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            with process:
                assert process.stdin
                process.stdin.close()

    def isa_name(self) -> str:
        """What the process says that it runs."""
        return self._send("isa", [], {}, {})[1]

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
        self._send("pointwise", [("int", "op", OPS.index(op))], named, {"out": out})
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
            elif name in ("axis", "ignore_index", "num_threads", "shift", "gauss_newton"):
                lines.append(("int", name, int(value)))
            else:
                raise TypeError(f"unexpected keyword argument {name!r}")
        self._send(action, lines, inputs, outputs)

    def _send(
        self, action: str, lines: list[tuple[Any, ...]], inputs: Any, outputs: Any
    ) -> tuple[int, str]:
        """Send a call, fill `outputs` with what comes back, and raise what went wrong."""
        arrays = {**inputs, **outputs}
        blocks = _Blocks([*arrays.values()], [*outputs.values()])
        lines = lines + [block.line() for block in blocks.blocks]
        lines += [("array", name, *blocks.describe(array)) for name, array in arrays.items()]
        text = "".join(" ".join(map(str, line)) + "\n" for line in [*lines, (action,)])
        with self._lock:
            assert self._process and self._process.stdin and self._process.stdout
            try:
                self._process.stdin.write(text.encode())
                for block in blocks.blocks:
                    self._process.stdin.write(block.contents())
                self._process.stdin.flush()
                reply = self._process.stdout
                status, number, length = map(int, reply.readline().split())
                message = _read(reply, length).decode()
                for block in blocks.blocks:
                    if block.comes_back:
                        block.write_back(_read(reply, block.high - block.low))
            except (OSError, ValueError, EOFError) as error:
                process, self._process = self._process, None
                process.kill()
                process.communicate()
                self.start()  # for the tests that follow
                raise RuntimeError(
                    f"{self.name}: the process died ({process.returncode})"
                ) from error
        if status != 0:
            raise ERRORS[status](message)
        return number, message


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


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


class _Block:
    """A stretch of memory that arrays lie in."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.comes_back = False

    def line(self) -> tuple[Any, ...]:
        return ("block", self.high - self.low, self.low % 64, int(self.comes_back))

    def contents(self) -> bytes:
        return ctypes.string_at(self.low, self.high - self.low)

    def write_back(self, data: bytes) -> None:
        # A read-only array is refused, so nothing was written; its memory may not be ours to write.
        if data != self.contents():
            ctypes.memmove(self.low, data, len(data))


class _Blocks:
    """The memory of all arrays of a call: arrays that share memory here share it there."""

    def __init__(self, arrays: list[Any], outputs: list[Any]) -> None:
        self.blocks: list[_Block] = []
        for low, high in sorted(_extent(array) for array in arrays):
            if self.blocks and low < self.blocks[-1].high:
                self.blocks[-1].high = max(high, self.blocks[-1].high)
            else:
                self.blocks.append(_Block(low, high))
        for array in outputs:
            self.blocks[self._of(array)].comes_back = True

    def _of(self, array: Any) -> int:
        low, high = _extent(array)
        return next(i for i, b in enumerate(self.blocks) if b.low <= low and high <= b.high)

    def describe(self, array: Any) -> tuple[Any, ...]:
        number = self._of(array)
        offset = array.ctypes.data - self.blocks[number].low
        dtype = DTYPES.index(array.dtype.name)
        readonly = int(not array.flags.writeable)
        return (number, offset, dtype, readonly, array.ndim, *array.shape, *array.strides)


def _extent(array: Any) -> tuple[int, int]:
    """Addresses that an array reaches."""
    low = high = array.ctypes.data
    if array.size == 0:
        return low, high
    for n, stride in zip(array.shape, array.strides, strict=True):
        reach = (n - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.itemsize


def emulated_engine(name: str, *, forced: bool = True) -> Emulated:
    """The core for the emulated machine, compiled if need be; not yet started.

    Unless `forced`, its ISA has to be the one that is chosen by default.
    """
    emulator = f"qemu-{EMULATED_MACHINE}-static"
    require(shutil.which(emulator), f"{emulator} is not installed")
    program = build_program(
        f"runner-{EMULATED_MACHINE}",
        main=NATIVE_TESTS / "runner.cpp",
        compiler=f"{EMULATED_MACHINE}-linux-gnu-g++",
        machine=EMULATED_MACHINE,
        link_flags=["-static"],
    )
    return Emulated(name, [emulator, str(program)], EMULATED[name], forced)


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
