"""Wheel and sdist where nothing is: a bare Debian, without a compiler, of another age than ours.

For each of `SUITES` two folders are made by mmdebstrap (as root) and entered by chroot: one with
Python alone, one that has a compiler too. In the second the sdist is built, without network, with
the pinned requirements. In the first the wheel and then what became of the sdist are installed
beside numpy, asked for their configuration and compared with the reference; a part of the test
suite runs, and the operator's library is loaded by a C++ program with ONNX Runtime's. The sdist
must say there that it needs a compiler. --short leaves out building the sdist, and the longest
tests.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from reliability.pytests import counts
from reliability.record import ROOT, Figures
from reliability.wheels import CONSTRAINTS, find_wheel


class Suite(NamedTuple):
    """A release of Debian: its Python, its C library."""

    python: str
    glibc: str


SUITES = {"bookworm": Suite("3.11", "2.36"), "trixie": Suite("3.13", "2.41")}

# The C++ library is what manylinux expects of a machine, and numpy needs it too.
PACKAGES = ("base-files", "bash", "coreutils", "dash", "libstdc++6", "python3", "python3-venv")
COMPILER = ("g++", "python3-dev")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "tcc", "as", "ld", "make")
# Beside numpy, for the tests; and which tests need no more than these.
TEST_PACKAGES = ("pytest>=8.2", "hypothesis", "ml_dtypes", "mpmath")
TESTS = (
    *("test_errors", "test_out", "test_presets", "test_schedules", "test_ufuncs", "test_docs"),
    *("test_examples", "test_ieee", "test_options"),
)
LONG_TESTS = ("test_ieee", "test_options")  # not with --short
# What the tests read: of the sdist, without the package, which is to be that of the wheel.
TEST_FILES = (
    *("tests", "examples", "native", "onnx_ops"),
    *("README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"),
)

# A program, which .ci/run gives to the oldest numpy too.
AGREES = """
import gce, numpy as np
from gce import reference
rng = np.random.default_rng(0)
for dtype, tolerance in (("float16", 1e-3), ("float32", 1e-6), ("float64", 1e-14)):
    logits = rng.normal(size=(7, 3, 40)).astype(dtype)
    targets = rng.integers(0, 40, size=(7, 3))
    for gamma in (0.0, 0.3, 1.0):
        found = gce.loss_and_grad(logits, targets, gamma)
        expected = reference.loss_and_grad(logits, targets, gamma)
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * 0.1)
log_p = np.linspace(-5, 0, 11, dtype="f4")
weight = gce.grad_weight(log_p, 0.3, 0.2)
np.testing.assert_allclose(weight, reference.grad_weight(log_p, 0.3, 0.2), rtol=1e-6)
print("numpy", np.__version__, "agrees with the reference")
import gce.onnx
print("the operator's library is", gce.onnx.library_path())
"""


class Wrong(Exception):
    """Something in a root did not do what it should; in words."""


class Root:
    """A folder with a system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, in no environment but its own."""
        own = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/files", "PIP_ROOT_USER_ACTION": "ignore"}
        chroot = shutil.which("chroot") or "/usr/sbin/chroot"
        return subprocess.run(
            [chroot, str(self.folder), *command],
            env={**own, **pip, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=1800,
            check=False,
        )

    def must(self, *command: str, **variables: str) -> str:
        """What a command says that has to succeed."""
        done = self.run(*command, **variables)
        if done.returncode:
            text = (done.stdout + done.stderr)[-3000:]
            raise Wrong(f"{shlex.join(command)} failed ({done.returncode}):\n{text}")
        return done.stdout


def has(root: Root, tool: str) -> bool:
    return root.run("sh", "-c", f"command -v {tool}").returncode == 0


def require_tools() -> None:
    """End with what is missing: without these nothing can be said, good or bad."""
    missing = [name for name in ("mmdebstrap", "chroot") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        lacks = f"{missing} (Debian: mmdebstrap)" if missing else "root, to enter the folders"
        raise SystemExit(f"bare needs {lacks}: nothing was tested")


def make_root(folder: Path, suite: str, packages: tuple[str, ...]) -> Root:
    """Unpack a release's packages. They are not configured: no script of theirs matters here."""
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(packages)}"]
    done = subprocess.run(
        [*command, suite, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"no {suite}: {done.stderr}")
    # All but this, without which Debian's pip does not even start.
    certificates = sorted((folder / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    bundle = folder / "etc/ssl/certs/ca-certificates.crt"
    bundle.write_text("".join(one.read_text(encoding="ascii") for one in certificates))
    return Root(folder)


def download(folder: Path, python: str) -> None:
    """Fetch what is installed in the roots: wheels for that Python on this kind of machine."""
    machine = os.uname().machine
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(34, 16, -1)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--dest", str(folder)]
    command += ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    command += [f"--platform={tag}" for tag in (*tags, f"manylinux2014_{machine}")]
    pinned = ["--constraint", str(CONSTRAINTS), "numpy", "pybind11", "setuptools"]
    for wanted in (pinned, TEST_PACKAGES):  # apart: with a hash for one, pip wants one for each
        subprocess.run([*command, *wanted], check=True)
    # Without hashes, which were looked at now: pip in the roots would want one of the sdist too.
    pins = CONSTRAINTS.read_text(encoding="utf-8")
    (folder / CONSTRAINTS.name).write_text(re.sub(r"\s*\\\n\s*--hash=\S+", "", pins))


def unpack(sdist: Path, root: Root) -> None:
    """Put what the tests read into /source."""
    shutil.unpack_archive(sdist, root.folder / "unpacked", filter="data")
    (top,) = (root.folder / "unpacked").iterdir()
    (root.folder / "source").mkdir()
    for name in TEST_FILES:
        shutil.move(top / name, root.folder / "source")


# --- what is tried -------------------------------------------------------------------------------


def try_package(root: Root, wheel: str, short: bool) -> Figures:
    """Install a wheel beside numpy, then test it."""
    environment = f"/env-{Path(wheel).parent.name}"
    python = f"{environment}/bin/python"
    root.must("python3", "-m", "venv", environment)
    root.must(python, "-m", "pip", "install", "-q", wheel)
    packages = root.must(python, "-m", "pip", "list", "--format=freeze").split()
    names = {line.partition("==")[0].replace("_", "-") for line in packages}
    if names - {"pip", "setuptools"} != {"gamma-ce", "numpy"}:
        raise Wrong(f"installed: {packages}, expected gamma-ce and numpy alone")
    print(root.must(python, "-m", "gce", "info"))
    print(root.must(python, "-c", AGREES))
    root.must(python, "-m", "pip", "install", "-q", *TEST_PACKAGES)
    tests = ["-q", "-p", "no:cacheprovider", "--junitxml=/results.xml"]
    tests += [f"/source/tests/{name}.py" for name in TESTS if not (short and name in LONG_TESTS)]
    shell = 'cd /source && exec "$@"'
    done = root.run("sh", "-c", shell, "sh", python, "-P", "-m", "pytest", *tests)
    print(done.stdout[-2000:])
    results = root.folder / "results.xml"
    if done.returncode or not results.exists():
        raise Wrong(f"tests of {wheel} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    found = counts(results.read_text(encoding="utf-8"))
    results.unlink()
    if not found["passed"]:
        raise Wrong(f"no test of {wheel} ran")
    return {"wheel": Path(wheel).name, **found, **try_host(root, environment)}


def try_host(root: Root, environment: str) -> Figures:
    """Run the C++ host with ONNX Runtime's library and the operator's, where that was installed."""
    code = "import gce.onnx; print(gce.onnx.library_path())"
    library = root.must(f"{environment}/bin/python", "-c", code).strip()
    said = root.must("/host/host", "/host/libonnxruntime.so", library, "/host/loss.onnx")
    ended = re.fullmatch(r"([1-9]\d*) passed, 0 failed", said.splitlines()[-1])
    if not ended:
        raise Wrong(f"the host says {said}")
    return {"host_checks": int(ended[1])}


def prepare_host(root: Root, compiler: Root) -> None:
    """Compile the host where there is a compiler; model and runtime are this machine's."""
    spec = importlib.util.find_spec("onnxruntime")
    package = Path(spec.origin).parent if spec and spec.origin else Path()
    runtime = next(package.glob("capi/libonnxruntime.so.*"), None)
    if runtime is None or not importlib.util.find_spec("onnx"):
        raise SystemExit("bare needs onnx, and onnxruntime with its library: nothing was tested")
    shutil.copytree(root.folder / "source", compiler.folder / "source")
    flags = ["-std=c++17", "-O1", "-I/source/onnx_ops", "-pthread"]
    compiler.must("g++", *flags, "/source/tests/onnx_ops/host.cpp", "-ldl", "-o", "/host")
    folder = root.folder / "host"
    folder.mkdir()
    shutil.copy(compiler.folder / "host", folder / "host")
    shutil.copy(runtime, folder / "libonnxruntime.so")
    maker = str(ROOT / "tests" / "onnx_ops" / "host_model.py")
    subprocess.run([sys.executable, maker, str(folder / "loss.onnx")], cwd=ROOT, check=True)


def must_be_bare(root: Root) -> None:
    """Python and no compiler, or the rest would show nothing."""
    present = [tool for tool in COMPILERS if has(root, tool)]
    if present or not has(root, "python3"):
        raise Wrong(f"the bare root has {present}, or no python3")


def try_without_compiler(root: Root, sdist: str) -> None:
    """The sdist must fail, and say why."""
    root.must("python3", "-m", "venv", "/env-none")
    done = root.run(
        *("/env-none/bin/python", "-m", "pip", "install", "--no-deps", sdist),
        PIP_CONSTRAINT=f"/files/{CONSTRAINTS.name}",
    )
    said = done.stdout + done.stderr
    if not done.returncode:
        raise Wrong("the sdist was installed without a compiler, whatever it is")
    if "found no compiler" not in said or "Install GCC or Clang" not in said:
        raise Wrong(f"without a compiler the sdist does not say so:\n{said[-3000:]}")


def build_sdist(compiler: Root, sdist: str) -> Path:
    """Make a wheel of the sdist, with the pinned requirements and without network."""
    compiler.must("python3", "-m", "venv", "/env")
    compiler.must(
        *("/env/bin/python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", "/built", sdist),
        PIP_CONSTRAINT=f"/files/{CONSTRAINTS.name}",
    )
    (wheel,) = (compiler.folder / "built").glob("*.whl")
    return wheel


def try_suite(name: str, folder: Path, short: bool, scratch: Path) -> Figures:
    """All that is tried on one release; what went wrong is in `problems`."""
    suite = SUITES[name]
    (sdist,) = folder.glob("gamma_ce-*.tar.gz")
    root = make_root(scratch / "bare", name, PACKAGES)
    compiler = make_root(scratch / "compiler", name, (*PACKAGES, *COMPILER))
    for one in (root, compiler):
        (one.folder / "files").mkdir()
    download(root.folder / "files", suite.python)
    shutil.copytree(root.folder / "files", compiler.folder / "files", dirs_exist_ok=True)
    for one in (root, compiler):
        shutil.copy(sdist, one.folder / "files")
    unpack(sdist, root)
    prepare_host(root, compiler)
    given = f"/files/{sdist.name}"
    found: Figures = {"python": suite.python, "glibc": suite.glibc, "problems": []}

    def attempt(what: str, wheel: Path | None) -> None:
        if wheel is None:
            print(f"SKIPPED {what}: none for Python {suite.python} was given")
            return
        place = root.folder / what
        place.mkdir()
        shutil.copy(wheel, place)
        found[what] = try_package(root, f"/{what}/{wheel.name}", short)

    def steps() -> None:
        must_be_bare(root)
        attempt("wheel", find_wheel(folder, suite.python))
        try_without_compiler(root, given)
        if not short:
            attempt("sdist", build_sdist(compiler, given))

    try:
        steps()
        if not found.keys() & {"wheel", "sdist"}:
            raise Wrong(f"nothing was tried on {name}: expected a wheel, or no --short")
    except Wrong as error:
        print(error)
        found["problems"].append(str(error))
    return found


# --- the check -----------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dist", type=Path, default=ROOT / "dist", help="folder of sdist and wheels"
    )
    parser.add_argument("--suites", nargs="*", choices=SUITES, default=list(SUITES))
    parser.add_argument("--short", action="store_true", help="no build of the sdist, fewer tests")


def run(options: argparse.Namespace) -> Figures:
    """Each release."""
    require_tools()
    if len(list(options.dist.glob("gamma_ce-*.tar.gz"))) != 1:
        raise SystemExit(f"{options.dist} has not one sdist: run make wheels first")
    found: Figures = {}
    for name in options.suites:
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch).chmod(0o755)
            found[name] = try_suite(name, options.dist, options.short, Path(scratch))
    return {**found, "failures": sum(len(one["problems"]) for one in found.values())}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    said = "{wheel}: {passed} tests passed, {failed} failed, {host_checks} checks of the host"
    return [
        (
            f"The {what} works on a bare Debian {name} (Python {suite['python']}, glibc "
            f"{suite['glibc']}) without a compiler",
            "installed beside numpy alone in a chroot: configuration, reference, a part of the "
            "tests, the operator's library in a C++ host",
            said.format(**suite[what]),
        )
        for name, suite in figures.items()
        if name in SUITES
        for what in ("wheel", "sdist")
        if what in suite
    ]
