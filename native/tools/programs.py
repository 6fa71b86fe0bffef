"""Programs with the core in them, for tests and fuzzers: compiled as setup.py does, and kept."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
C11 = ("-xc", "-std=c11", *STRICT)


class CompileError(Exception):
    """A compiler's command, and what it said."""


@functools.cache
def setup_script() -> Any:
    """setup.py as a module: the one table of ISAs and their flags."""
    spec = importlib.util.spec_from_file_location("gce_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_program(
    name: str,
    *,
    sources: Sequence[Path],
    compiler: str = "g++",
    machine: str | None = None,
    isas: Collection[str] | None = None,
    flags: Sequence[str] = (),
    source_flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
) -> Path:
    """Path of a program: `sources`, and the core for `machine`, with setup.py's flags and `flags`.

    `source_flags` are of the sources alone. With `isas`, of these ISAs alone. A source in C may not
    have a warning. Objects and programs are kept in build/ under names that tell their contents, so
    that only a change compiles anything.
    """
    units = _units(machine or platform.machine(), isas)
    of_core = units[0].flags
    units = [unit._replace(flags=(*unit.flags, *flags)) for unit in units]
    for path in sources:
        own = of_core
        if path.suffix == ".c":
            own = (*(flag for flag in of_core if not flag.startswith("-std=")), *C11)
        source = str(path.relative_to(ROOT))
        units.append(units[0]._replace(source=source, flags=(*own, *flags, *source_flags)))
    folder = _cache_folder()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda unit: _compile(folder, compiler, unit), units))
    link = [compiler, *map(str, objects), "-pthread", *flags, *link_flags]
    program = folder / f"{name}-{hashlib.sha256(repr(link).encode()).hexdigest()[:20]}"
    if not program.exists():
        _make(program, link)
    return program


def _compile(folder: Path, compiler: str, unit: Any) -> Path:
    """The object of a unit, kept under a name that tells all that it is made from."""
    source = ROOT / unit.source
    said = hashlib.sha256(repr((_version(compiler), unit)).encode())
    for read in _read_by(compiler, unit):
        said.update(read.encode() + (ROOT / read).read_bytes())
    path = folder / f"{source.stem}-{said.hexdigest()[:20]}.o"
    if not path.exists():
        _make(path, [compiler, *unit.flags, "-c", unit.source])
    return path


def _make(path: Path, command: Sequence[str]) -> None:
    """What the command writes to its -o. Of several runs at once the last replaces the same."""
    beside = f"{path}.{os.getpid()}"
    _call([*command, "-o", beside])
    os.replace(beside, path)


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _read_by(compiler: str, unit: Any) -> list[str]:
    """The project's files that compiling a unit reads."""
    rule = _call([compiler, *unit.flags, "-MM", unit.source])
    return rule.replace("\\\n", " ").partition(": ")[2].split()


@functools.cache
def _version(compiler: str) -> str:
    return _call([compiler, "--version"])


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
    """Folder of objects and programs, rid of those that nobody has used for a week."""
    folder = ROOT / "build" / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_atime > 7 * 86400:
                path.unlink()
    return folder
