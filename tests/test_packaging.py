"""What is shipped: pinned requirements, notices, wheels' Pythons, and the check of artifacts."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from support import require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ELF = pytest.mark.skipif(sys.platform != "linux", reason="artifacts are looked into as ELF files")


# --- lists that would otherwise be kept by hand ---------------------------------------------------


def classified_pythons() -> list[str]:
    start = "Programming Language :: Python :: 3."
    named = [text for text in PYPROJECT["project"]["classifiers"] if text.startswith(start)]
    return [text.rpartition(" ")[2] for text in named]


def test_pythons_are_the_same_everywhere():
    from reliability import wheels

    pythons = classified_pythons()
    assert PYPROJECT["project"]["requires-python"] == f">={pythons[0]}"
    minors = [int(version.partition(".")[2]) for version in pythons]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert list(wheels.VERSIONS) == pythons
    built = PYPROJECT["tool"]["cibuildwheel"]["build"]
    assert built == "cp3{" + ",".join(map(str, minors)) + "}-* cp314t-*"


def pins() -> dict[str, list]:
    """Requirements of .ci/build-constraints.txt by name, each with its hashes' number."""
    require(importlib.util.find_spec("packaging"), "packaging is not installed")
    from packaging.requirements import Requirement

    text = (ROOT / ".ci" / "build-constraints.txt").read_text(encoding="utf-8")
    found: dict[str, list] = {}
    for line in re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines():
        requirement = Requirement(line.partition("--hash")[0])
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line)
        found.setdefault(requirement.name, []).append((requirement, hashes))
    return found


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_pins_are_of_what_a_build_requires(system):
    """Every Python has one exact version of each, with hashes, that the open ranges allow."""
    pinned = pins()
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in PYPROJECT["build-system"]["requires"]]
    assert {one.name for one in required} == set(pinned)
    for one in required:
        for python in classified_pythons():
            here = {"python_version": python, "python_full_version": f"{python}.0"}
            here["sys_platform"] = system
            if one.marker and not one.marker.evaluate(here):
                continue
            valid = [
                (pin, hashes)
                for pin, hashes in pinned[one.name]
                if pin.marker is None or pin.marker.evaluate(here)
            ]
            assert len(valid) == 1, (one.name, python)
            ((pin, hashes),) = valid
            version = re.fullmatch(r"==([\d.]+)", str(pin.specifier))
            assert version, pin
            assert one.specifier.contains(version[1]), (one, pin)
            assert len(hashes) >= 2, (pin, "expected those of an sdist and of wheels")


ARCHITECTURES = {
    "linux": ("manylinux_x86_64", "manylinux_aarch64"),
    "macos": ("macosx_x86_64", "macosx_arm64"),
    "windows": ("win_amd64",),
}


@pytest.mark.parametrize("platform", ARCHITECTURES)
def test_what_cibuildwheel_builds(platform):
    require(importlib.util.find_spec("cibuildwheel"), "cibuildwheel is not installed")
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", str(ROOT)]
    command += ["--platform", platform]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    versions = [f"cp{version.replace('.', '')}" for version in classified_pythons()]
    expected = {f"{v}-{arch}" for v in [*versions, "cp314t"] for arch in ARCHITECTURES[platform]}
    assert set(done.stdout.split()) == expected


def test_cibuildwheel_builds_with_the_pins():
    environment = PYPROJECT["tool"]["cibuildwheel"]["environment"]
    assert set(environment.values()) == {".ci/build-constraints.txt"}
    assert {"PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"} == set(environment)


def test_cibuildwheel_tests_as_the_bare_check_does():
    from reliability import bare

    settings = PYPROJECT["tool"]["cibuildwheel"]
    assert settings["test-requires"] == list(bare.TEST_PACKAGES)
    named = re.findall(r"\{project\}/tests/(\w+)\.py", settings["test-command"][-1])
    assert named == list(bare.TESTS)
    assert all((ROOT / "tests" / f"{name}.py").exists() for name in named)


def plain(text: str) -> str:
    """Its words, whatever the lines and the year that a release says."""
    return re.sub(r"(\d{4}-)?\d{4}\b", "YEAR", " ".join(text.split()))


@pytest.mark.parametrize("package", ["pybind11", "numpy"])
def test_notices_are_those_of_the_installed_packages(package):
    require(importlib.util.find_spec(package), f"{package} is not installed")
    files = importlib.metadata.distribution(package).files or []
    licences = [f for f in files if re.search(r"dist-info/(licenses/)?LICENSE(\.txt)?$", str(f))]
    (licence,) = [f for f in licences if len(f.parts) <= 3]
    theirs = licence.read_text().partition("\n----")[0]  # numpy goes on with what its wheel bundles
    assert "Copyright" in theirs
    ours = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
    assert plain(theirs) in plain(ours)
    assert plain(theirs.replace("without", "with", 1)) not in plain(ours)


def test_notices_name_all_that_is_compiled_in():
    ours = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
    for text in ("pybind11", "NumPy", "CPython", "libstdc++", "libc++", "ort_abi.h", "ffi_abi.h"):
        assert text in ours
    assert "THIRD_PARTY_NOTICES.md" in PYPROJECT["project"]["license-files"]


# --- reliability/artifacts.py: what it finds ------------------------------------------------------


@pytest.fixture(scope="module")
def artifacts():
    require(importlib.util.find_spec("elftools"), "pyelftools is not installed")
    require(importlib.util.find_spec("setuptools"), "setuptools is not installed")
    from reliability import artifacts

    return artifacts


# In two parts, as the check looks into this file too.
SOMEWHERE = "/home" + "/somebody/"
SOURCE = 'extern "C" int entry() { return 1; }\n'
HARD = ("-fvisibility=default", "-Wl,-z,relro,-z,now,-z,noexecstack")


def compiled(folder: Path, *flags: str, source: str = SOURCE) -> bytes:
    """A shared library of `source`."""
    require(shutil.which("g++"), "g++ is not installed")
    file, library = folder / "library.cpp", folder / "library.so"
    file.write_text(source)
    command = ["g++", "-shared", "-fPIC", *HARD, *flags, "library.cpp", "-o", str(library)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library.read_bytes()


TEXT_RELOCATION = 'asm(".text\\n.quad entry\\n");\n' + SOURCE

BAD_LIBRARIES = {
    "executable stack": (("-Wl,-z,execstack",), SOURCE, "needs an executable stack"),
    "no RELRO": (("-Wl,-z,norelro",), SOURCE, "has no RELRO"),
    "lazy": (("-Wl,-z,lazy",), SOURCE, "is not bound at once"),
    "text relocation": (("-Wl,-z,notext",), TEXT_RELOCATION, "has text relocations"),
    "rpath": (("-Wl,-rpath,$ORIGIN/x",), SOURCE, r"searches \$ORIGIN/x"),
    "export": ((), SOURCE + 'extern "C" int more() { return 2; }', r"exports \['entry', 'more'\]"),
    "needs": (("-Wl,--no-as-needed", "-lutil", "-lresolv"), SOURCE, "needs libresolv"),
}


@ELF
def test_a_hardened_library_is_good(artifacts, tmp_path):
    found = artifacts.examine_library(compiled(tmp_path), ["entry"])
    assert found.problems == []
    assert "is no ELF file" in artifacts.examine_library(b"MZ", ["entry"]).problems


@ELF
@pytest.mark.parametrize("case", sorted(BAD_LIBRARIES))
def test_bad_libraries_are_found(artifacts, tmp_path, case):
    flags, source, message = BAD_LIBRARIES[case]
    found = artifacts.examine_library(compiled(tmp_path, *flags, source=source), ["entry"])
    assert re.search(message, "\n".join(found.problems)), found.problems


@ELF
@pytest.mark.parametrize("flags", [("-g",), ("-g", "-gz")], ids=["plain", "compressed"])
def test_paths_in_debug_sections_are_found(artifacts, tmp_path, flags):
    folder = f"names {tmp_path}"
    found = artifacts.examine_library(compiled(tmp_path, *flags), ["entry"])
    assert any(problem.startswith(folder) for problem in found.problems), found.problems
    mapped = compiled(tmp_path, *flags, f"-ffile-prefix-map={tmp_path}=.")
    found = artifacts.examine_library(mapped, ["entry"])
    assert not any(problem.startswith(folder) for problem in found.problems), found.problems


@ELF
def test_paths_in_strings_are_found(artifacts, tmp_path):
    path = f"{SOMEWHERE}gce/native/core/api.cpp"
    source = SOURCE + f'const char* where() {{ return "{path}"; }}'
    found = artifacts.examine_library(compiled(tmp_path, source=source), ["entry"])
    assert f"names {path}" in found.problems


def test_versions_are_compared_as_numbers(artifacts):
    assert artifacts.newer("2.9", "2.34") == "2.34"
    assert artifacts.newer(None, "2.2.5") == "2.2.5"


def make_wheel(artifacts, folder, library, tag="linux_x86_64", **changes) -> Path:
    """What looks like a wheel of this project, with `changes` (None: leave out)."""
    version = artifacts.version()
    info = f"gamma_ce-{version}.dist-info"
    files = dict.fromkeys(("gce/__init__.py", "gce/py.typed", "gce/_native.pyi"), b"")
    files |= {"gce/include/gce/gce.h": b"", f"{info}/METADATA": b""}
    files |= {f"{info}/licenses/{name}": (ROOT / name).read_bytes() for name in artifacts.LICENCES}
    libraries = ("gce/_native.cpython-311-x86_64-linux-gnu.so", "gce/onnx/libgce_ort.so")
    files |= dict.fromkeys((*libraries, "gce/jax/libgce_xla.so"), library)
    files |= changes
    path = folder / f"gamma_ce-{version}-cp311-cp311-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            if data is not None:
                wheel.writestr(name, data)
    return path


BAD_WHEELS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "another library": ({"gamma_ce.libs/libstdc++.so.6": b""}, "is not one of setup.py's"),
    "a library less": ({"gce/onnx/libgce_ort.so": None}, "alone"),
    "a path": ({"gce/x.py": f"# {SOMEWHERE}x".encode()}, f"gce/x.py names {SOMEWHERE}"),
    "no stub": ({"gce/_native.pyi": None}, "has no gce/_native.pyi"),
    "a source": ({"gce/x.cpp": b""}, "has gce/x.cpp"),
}


@ELF
@pytest.mark.parametrize("case", [*sorted(BAD_WHEELS), "licence", "tag", "version"])
def test_bad_wheels_are_found(artifacts, tmp_path, monkeypatch, case):
    class Build:
        LIBRARIES = tuple(artifacts.build_description().LIBRARIES)

    for one in Build.LIBRARIES:
        monkeypatch.setattr(one, "export_symbols", ["entry"])
    source = SOURCE + "#include <cmath>\ndouble more(double x) { return std::pow(x, x); }"
    library = compiled(
        tmp_path,
        "-fvisibility=hidden",
        source=source.replace('extern "C"', 'extern "C" __attribute__((visibility("default")))'),
    )
    assert artifacts.examine_wheel(make_wheel(artifacts, tmp_path, library)).problems == []
    changes: dict[str, bytes | None] = {}
    message, tag = "", "linux_x86_64"
    if case in BAD_WHEELS:
        changes, message = BAD_WHEELS[case]
    elif case == "licence":
        name = f"gamma_ce-{artifacts.version()}.dist-info/licenses/THIRD_PARTY_NOTICES.md"
        changes, message = {name: b"none"}, "has not THIRD_PARTY_NOTICES.md"
    elif case == "tag":  # pow of glibc 2.29
        message, tag = "newer than its name says", "manylinux_2_1_x86_64"
    wheel = make_wheel(artifacts, tmp_path, library, tag, **changes)
    if case == "version":
        wheel, message = (
            wheel.rename(tmp_path / "gamma_ce-9-cp311-cp311-linux_x86_64.whl"),
            "is not of",
        )
    assert message in "\n".join(artifacts.examine_wheel(wheel).problems)


def make_sdist(artifacts, folder, extra=(), without=()) -> Path:
    """An sdist of what the repository has."""
    top = f"gamma_ce-{artifacts.version()}"
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in sorted(artifacts.tracked()):
            if name not in without and not artifacts.matches(name, artifacts.NOT_SHIPPED):
                archive.add(ROOT / name, f"{top}/{name}")
        for name, data in extra:
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_bad_sdists_are_found(artifacts, tmp_path):
    require(shutil.which("git"), "git is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: there is nothing to compare an sdist with")
    assert artifacts.examine_sdist(make_sdist(artifacts, tmp_path)) == []
    extra = [
        ("gce/_native.so", b"\x7fELF"),
        ("gce/note.txt", str(Path.home() / "x").encode()),
        ("PKG-INFO", b""),
    ]
    found = "\n".join(
        artifacts.examine_sdist(make_sdist(artifacts, tmp_path, extra, without=["setup.py"]))
    )
    assert "_native.so is compiled" in found
    assert "gce/_native.so is not in the repository" in found
    assert "note.txt names" in found
    assert "lacks setup.py" in found
    assert "PKG-INFO" not in found


def test_check_fails_where_something_is_wrong(artifacts, tmp_path, capsys):
    from reliability.__main__ import main

    wheel = make_wheel(artifacts, tmp_path, b"MZ")
    folder = tmp_path / "records"
    assert main(["artifacts", str(wheel), "--output", str(folder)]) == 1
    assert "is no ELF file" in capsys.readouterr().out
    assert (folder / "artifacts.json").exists()


# --- reliability/wheels.py, reliability/bare.py ---------------------------------------------------


def test_wheels_know_their_python(tmp_path):
    from reliability import wheels

    assert wheels.version_of(sys.executable) in (f"3.{sys.version_info.minor}", None)
    assert wheels.version_of(str(tmp_path / "nothing")) is None
    assert (
        wheels.tag_of(Path("gamma_ce-1-cp311-cp311-linux_x86_64.whl")) == "gamma_ce-1-cp311-cp311-"
    )


def test_bare_says_what_it_lacks(tmp_path, monkeypatch):
    from reliability import bare

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"mmdebstrap.*nothing was tested"):
        bare.require_tools()


def test_the_wheel_of_a_python_is_found(tmp_path):
    from reliability import bare, wheels

    for abi in ("cp311-cp311", "cp313-cp313t", "cp313-cp313"):
        (tmp_path / f"gamma_ce-1-{abi}-manylinux_2_34_x86_64.whl").touch()
    for version in ("3.11", "3.13", "3.13t"):
        found = wheels.find_wheel(tmp_path, version)
        assert found is not None
        assert f"-cp{version.replace('.', '')}-manylinux" in found.name
    assert wheels.find_wheel(tmp_path, "3.1") is None
    assert wheels.find_wheel(tmp_path, "3.12") is None
    assert {suite.python for suite in bare.SUITES.values()} <= set(classified_pythons())


class Pretender:
    """A root in which each command does what a test wants."""

    def __init__(self, folder, has=("python3",), pip=(0, "")):
        from reliability import bare

        self.folder, self.has, self.pip, self.must = folder, has, pip, bare.Root.must.__get__(self)

    def run(self, *command, **variables):
        if command[:2] == ("sh", "-c") and command[2].startswith("command -v "):
            code, said = int(command[2].rpartition(" ")[2] not in self.has), ""
        else:
            code, said = self.pip if "pip" in command else (0, "")
        return subprocess.CompletedProcess(command, code, said, "")


def test_bare_wants_a_root_without_compiler(tmp_path):
    from reliability import bare

    bare.must_be_bare(Pretender(tmp_path))
    with pytest.raises(bare.Wrong, match="has \\['clang'\\]"):
        bare.must_be_bare(Pretender(tmp_path, has=("python3", "clang")))
    with pytest.raises(bare.Wrong, match="no python3"):
        bare.must_be_bare(Pretender(tmp_path, has=()))


def test_bare_wants_the_sdist_to_say_what_it_lacks(tmp_path):
    from reliability import bare

    told = "gamma-ce found no compiler: 'g++' is not on PATH. Install GCC or Clang"
    bare.try_without_compiler(Pretender(tmp_path, pip=(1, told)), "x.tar.gz")
    for pip in ((0, ""), (1, "command 'g++' failed")):
        with pytest.raises(bare.Wrong, match="compiler"):
            bare.try_without_compiler(Pretender(tmp_path, pip=pip), "x.tar.gz")


def test_bare_wants_numpy_alone_beside_the_wheel(tmp_path):
    from reliability import bare

    listed = "gamma-ce==0.1.0\nnumpy==2.4.6\npip==1\nscipy==1\n"
    with pytest.raises(bare.Wrong, match="expected gamma-ce and numpy alone"):
        bare.try_package(Pretender(tmp_path, pip=(0, listed)), "/wheel/x.whl", short=True)
