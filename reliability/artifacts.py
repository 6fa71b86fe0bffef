"""What is in wheels and sdist: no path of the building machine, hardened libraries, nothing else.

Of each library: no executable stack, all bound at once and read-only from then on, no text
relocation, no search path, no symbol exported but those of setup.py's `LIBRARIES`, nothing needed
but the C and C++ runtimes, and no newer glibc than the wheel's name says. Of each wheel: these
libraries and no other, the licence and the notices, the version. Of the sdist: what the repository
has, but for `NOT_SHIPPED`.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from reliability.record import ROOT, Figures

# Documentation for readers of the repository, with pictures; and what is git's own.
NOT_SHIPPED = ("docs/*", ".gitignore")
# Written by setuptools; the header is behind a link that git keeps as one.
GENERATED = ("PKG-INFO", "setup.cfg", "gamma_ce.egg-info/*", "gce/include/gce/gce.h")
LICENCES = ("LICENSE", "THIRD_PARTY_NOTICES.md")
# The C and C++ runtimes, which every policy of auditwheel's allows.
NEEDED = r"(libstdc\+\+|libgcc_s|libc|libm|libdl|libpthread|ld-linux[-\w]*)\.so\.\d"

PF_X = 1
DF_TEXTREL, DF_BIND_NOW, DF_1_NOW = 0x4, 0x8, 0x1


@cache
def build_description() -> Any:
    """setup.py, imported: the one place that says which libraries there are, and their exports."""
    return runpy.run_path(str(ROOT / "native" / "tools" / "programs.py"))["setup_script"]()


@cache
def version() -> str:
    """The version of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert found
    return found[1]


# --- paths of the building machine ---------------------------------------------------------------

# Where homes, checkouts and isolated builds lie on usual machines.
ELSEWHERE = rb"/(?:home|Users)/[\w.-]+/|/[r]oot/|build-env-\w{8}"


@cache
def own_folders() -> tuple[bytes, ...]:
    """This machine's own folders, none of which an artifact may name."""
    folders = {str(ROOT), str(Path.home()), tempfile.gettempdir(), sysconfig.get_path("purelib")}
    folders |= {sys.prefix, sys.base_prefix} - {"/usr", "/usr/local"}
    return tuple(f"{folder}/".encode() for folder in sorted(folders) if folder not in ("", "/"))


def paths_in_text(data: bytes) -> list[str]:
    """Paths of a building machine in a file that people wrote, where others may be meant to be."""
    found = [folder for folder in own_folders() if folder in data]
    return sorted({path.decode() for path in [*found, *re.findall(ELSEWHERE, data)]})


def paths_in_binary(data: bytes) -> list[str]:
    """Absolute paths in compiled code, where only those of /proc and the like have a place."""
    first = {name.encode() for name in os.listdir("/")} - {b"proc", b"sys", b"dev"}
    first |= {b"home", b"root", b"tmp", b"Users", b"builds", b"project"}
    names = b"|".join(re.escape(name) for name in sorted(first))
    found = re.findall(rb"/(?:%s)/[\w.+-][\w.+/-]{2,}" % names, data)
    return sorted({path.decode() for path in found} | set(paths_in_text(data)))


# --- one library ---------------------------------------------------------------------------------


class Library(NamedTuple):
    """What is wrong with a library, and the newest version of each runtime that it asks for."""

    problems: list[str]
    newest: dict[str, str]  # GLIBC, GLIBCXX, ...: the version


def examine_library(data: bytes, exports: Iterable[str]) -> Library:
    """Look into one shared library, which may export `exports` alone."""
    if not data.startswith(b"\x7fELF"):
        return Library(["is no ELF file"], {})
    elf = ELFFile(io.BytesIO(data))
    problems = [f"names {path}" for path in paths_in_binary(data)]
    for section in elf.iter_sections():
        # Debug sections are compressed by some compilers; data() is what they hold.
        if section["sh_type"] != "SHT_NOBITS" and section.compressed:
            paths = paths_in_binary(section.data())
            problems += [f"names {path} in {section.name}" for path in paths]
    problems += [*segment_problems(elf), *dynamic_problems(elf)]
    exported = {symbol.name for symbol in dynamic_symbols(elf) if is_exported(symbol)}
    if exported != set(exports):
        problems.append(f"exports {sorted(exported)}, expected {sorted(exports)}")
    return Library(problems, newest_versions(elf))


def segment_problems(elf: ELFFile) -> Iterator[str]:
    """A stack that could be run, or what is not read-only after loading."""
    segments = {segment["p_type"]: segment for segment in elf.iter_segments()}
    stack = segments.get("PT_GNU_STACK")
    if stack is None or stack["p_flags"] & PF_X:
        yield "needs an executable stack" if stack else "does not say what its stack is (GNU_STACK)"
    if "PT_GNU_RELRO" not in segments:
        yield "has no RELRO"


def dynamic_problems(elf: ELFFile) -> Iterator[str]:
    """What the dynamic section should not say, or fails to."""
    tags = [tag for section in of_type(elf, DynamicSection) for tag in section.iter_tags()]
    flags = sum(tag["d_val"] for tag in tags if tag["d_tag"] == "DT_FLAGS")
    flags_1 = sum(tag["d_val"] for tag in tags if tag["d_tag"] == "DT_FLAGS_1")
    names = {tag["d_tag"] for tag in tags}
    if not (flags & DF_BIND_NOW or flags_1 & DF_1_NOW or "DT_BIND_NOW" in names):
        yield "is not bound at once (BIND_NOW), so RELRO is partial"
    if flags & DF_TEXTREL or "DT_TEXTREL" in names:
        yield "has text relocations"
    for tag in tags:
        if tag["d_tag"] in ("DT_RPATH", "DT_RUNPATH"):
            yield f"searches {getattr(tag, tag['d_tag'][3:].lower())} ({tag['d_tag'][3:]})"
        if tag["d_tag"] == "DT_NEEDED" and not re.fullmatch(NEEDED, tag.needed):
            yield f"needs {tag.needed}"


def of_type(elf: ELFFile, kind: type) -> list[Any]:
    return [section for section in elf.iter_sections() if isinstance(section, kind)]


def dynamic_symbols(elf: ELFFile) -> list[Any]:
    table: Any = elf.get_section_by_name(".dynsym")
    return list(table.iter_symbols()) if table else []


def is_exported(symbol: Any) -> bool:
    return symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"


def newest_versions(elf: ELFFile) -> dict[str, str]:
    """Of each runtime's symbol versions the newest that is asked for."""
    newest: dict[str, tuple[int, ...]] = {}
    for section in of_type(elf, GNUVerNeedSection):
        for _, asked in section.iter_versions():
            for one in asked:
                name, _, number = one.name.partition("_")
                if re.fullmatch(r"[\d.]+", number):
                    parts = tuple(map(int, number.split(".")))
                    newest[name] = max(newest.get(name, ()), parts)
    return {name: ".".join(map(str, parts)) for name, parts in sorted(newest.items())}


# --- a wheel, an sdist ---------------------------------------------------------------------------


def library_exports(name: str) -> list[str] | None:
    """What the library at this path of a wheel may export; None if the project has none there."""
    for library in build_description().LIBRARIES:
        path = library.name.replace(".", "/")
        if re.fullmatch(rf"{re.escape(path)}(\.cpython-[\w-]+)?\.so", name):
            return list(library.export_symbols)
    return None


def examine_wheel(path: Path) -> Library:
    """Everything in one wheel; of its libraries' versions the newest."""
    problems: list[str] = []
    newest: dict[str, str] = {}
    with zipfile.ZipFile(path) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    libraries = [name for name in files if re.search(r"\.(so|dylib|pyd|dll)\b|\.libs/", name)]
    for name, data in files.items():
        if name not in libraries:
            problems += [f"{name} names {where}" for where in paths_in_text(data)]
    for name in libraries:
        exports = library_exports(name)
        if exports is None:
            problems.append(f"{name} is not one of setup.py's LIBRARIES")
            continue
        found = examine_library(files[name], exports)
        problems += [f"{name} {problem}" for problem in found.problems]
        newest = {k: newer(newest.get(k), found.newest.get(k)) for k in newest | found.newest}
    if len(libraries) < len(build_description().LIBRARIES):
        problems.append(f"has the libraries {libraries} alone")
    problems += wheel_metadata_problems(path.name, files)
    if (glibc := re.search(r"manylinux_(\d+_\d+)_", path.name)) and "GLIBC" in newest:
        tagged = glibc[1].replace("_", ".")
        if newer(tagged, newest["GLIBC"]) != tagged:
            problems.append(f"asks for glibc {newest['GLIBC']}, newer than its name says")
    return Library([f"{path.name}: {problem}" for problem in problems], newest)


def newer(one: str | None, other: str | None) -> str:
    """The newer of two versions, of which one may be missing."""
    return max(one or "0", other or "0", key=lambda text: tuple(map(int, text.split("."))))


def wheel_metadata_problems(name: str, files: dict[str, bytes]) -> Iterator[str]:
    folder = f"gamma_ce-{version()}.dist-info"
    if not name.startswith(f"gamma_ce-{version()}-") or f"{folder}/METADATA" not in files:
        yield f"is not of version {version()}"
    for licence in LICENCES:
        if files.get(f"{folder}/licenses/{licence}") != (ROOT / licence).read_bytes():
            yield f"has not {licence} as it is here"
    for needed in ("gce/__init__.py", "gce/py.typed", "gce/_native.pyi", "gce/include/gce/gce.h"):
        if needed not in files:
            yield f"has no {needed}"
    for name in files:
        if re.search(r"__pycache__|\.(o|d|cpp|pyc)$", name):
            yield f"has {name}"


def examine_sdist(path: Path) -> list[str]:
    """What an sdist has too much or too little, compared with the repository."""
    top, problems = f"gamma_ce-{version()}/", []
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
        for member in members:
            if not member.isfile():
                problems.append(f"{member.name} is a link or worse")
                continue
            stream = archive.extractfile(member)
            assert stream
            data = stream.read()
            problems += [f"{member.name} names {where}" for where in paths_in_text(data)]
            if data.startswith((b"\x7fELF", b"!<arch>", b"\xcf\xfa\xed\xfe")):
                problems.append(f"{member.name} is compiled")
    names = {member.name.removeprefix(top) for member in members}
    problems += [f"{name} is not below {top}" for name in names if name.startswith("gamma_ce-")]
    extra = {name for name in names - tracked() if not matches(name, GENERATED)}
    problems += [f"{name} is not in the repository" for name in sorted(extra)]
    missing = {name for name in tracked() - names if not matches(name, NOT_SHIPPED)}
    problems += [f"lacks {name}" for name in sorted(missing)]
    return [f"{path.name}: {problem}" for problem in problems]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@cache
def tracked() -> frozenset[str]:
    """Files of the repository, but for links to folders, through which an sdist has others."""
    command = ["git", "ls-files", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = (name for name in done.stdout.split("\0") if name)
    return frozenset(name for name in names if (ROOT / name).is_file())


# --- the check -----------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifacts", nargs="*", type=Path, help="wheels and sdists; default: all of dist/"
    )


def run(options: argparse.Namespace) -> Figures:
    """Look into each file."""
    given = options.artifacts or sorted((ROOT / "dist").glob("gamma_ce-*"))
    kinds = {path.suffix for path in given}
    if not given or not (options.artifacts or kinds == {".gz", ".whl"}):
        raise SystemExit(f"dist/ has {sorted(kinds)}, expected wheels and an sdist: make wheels")
    found = {"wheels": 0, "sdists": 0, "newest": {}}
    problems: list[str] = []
    for path in given:
        if path.suffix == ".whl":
            wheel = examine_wheel(path)
            problems += wheel.problems
            found["wheels"] += 1
            found["newest"][path.name] = wheel.newest
        else:
            problems += examine_sdist(path)
            found["sdists"] += 1
    for problem in problems:
        print(problem)
    return {**found, "problems": problems, "failures": len(problems)}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    return [
        (
            "No wheel or sdist names the machine that built it; libraries need no executable "
            "stack, are read-only once loaded (RELRO, BIND_NOW), export what they should and need "
            "the C and C++ runtimes alone",
            "every file of the artifacts is looked into, ELF headers and debug sections too",
            "{wheels} wheels, {sdists} sdist, {failures} problems".format(**figures),
        )
    ]
