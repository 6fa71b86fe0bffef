"""onnx_ops/ort_abi.h says what ONNX Runtime's own header says; the header is Debian's."""

from __future__ import annotations

import contextlib
import email
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines import ROOT, STRICT
from support import require

HERE = Path(__file__).parent
HEADER = "onnxruntime/onnxruntime_c_api.h"
# That of API 21. The release before has no such package.
PACKAGE, SUITE = "libonnxruntime-dev", "trixie"
CACHE = ROOT / "build" / f"{PACKAGE}-{SUITE}"


def run(*command, **options):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **options
    )


# --- where the header comes from ----------------------------------------------------------------


@pytest.fixture(scope="module")
def header_flags() -> list[str]:
    """Flags with which compilers find the header, downloaded if they have none of their own."""
    require(shutil.which("g++"), "g++ is not installed")
    if run("g++", "-xc++", "-fsyntax-only", "-", input=f"#include <{HEADER}>\n").returncode == 0:
        return []
    include = CACHE / "usr" / "include"
    if not (include / HEADER).exists():
        download(CACHE)
    return ["-isystem", str(include)]


def download(folder: Path) -> None:
    """Unpack Debian's package there: by its name, from where this machine has its packages from."""
    for tool in ("apt-get", "apt-config", "dpkg"):
        require(shutil.which(tool), f"no <{HEADER}>, and no {tool} to get it with")
    said = f"apt knows no source of Debian's packages to get {PACKAGE} from"
    folder.parent.mkdir(exist_ok=True)
    for name, source in sources():
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            said = download_from(Path(scratch), name, source)
            if not said:
                # Another test run may have been quicker, with the same.
                with contextlib.suppress(OSError):
                    (Path(scratch) / "root").rename(folder)
                return
    require(False, f"no <{HEADER}>: {said}")


def download_from(scratch: Path, name: str, source: str) -> str:
    """What went wrong, or nothing: then the package is in scratch/root."""
    (scratch / name).write_text(source)
    for path in ("lists/partial", "cache/archives/partial"):
        (scratch / path).mkdir(parents=True)
    # On top of the machine's own configuration, which may have a proxy.
    configuration = scratch / "apt.conf"
    configuration.write_text(
        f"""
        Dir::Etc::SourceList "{scratch / name}";
        Dir::Etc::SourceParts "-";
        Dir::State::Lists "{scratch / "lists"}";
        Dir::Cache "{scratch / "cache"}";
        APT::Sandbox::User "root";  // another user may not be allowed to see this folder
        Acquire::Languages "none";
        Acquire::Retries "1";
        Acquire::http::Timeout "20";
        #clear APT::Update;  // what other programs have run after an update of the machine's lists
        """
    )
    apt = ("apt-get", "-q", "-c", str(configuration))
    for command in (
        (*apt, "update"),
        (*apt, "download", PACKAGE),
        ("sh", "-c", f"dpkg -x {PACKAGE}_*.deb root"),
    ):
        try:
            done = run(*command, cwd=scratch)
        except subprocess.TimeoutExpired as error:
            return str(error)
        if done.returncode != 0:
            return f"{' '.join(command)}: {done.stderr.strip()[-500:]}"
    found = (scratch / "root" / "usr" / "include" / HEADER).exists()
    return "" if found else f"{PACKAGE} has no such file"


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of a file for apt: each of the machine's own sources, with `SUITE` instead."""
    if not is_debian():
        return
    of_list, of_folder = "Dir::Etc::SourceList/f", "Dir::Etc::SourceParts/d"
    places = run("apt-config", "shell", "list", of_list, "folder", of_folder)
    single, folder = (Path(path) for path in re.findall(r"'(.+)'", places.stdout))
    for path in (single, *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))):
        if path.is_file():
            read = of_stanzas if path.suffix == ".sources" else of_lines
            for source in read(path.read_text(encoding="utf-8")):
                yield f"source{path.suffix}", source


def of_lines(text: str) -> Iterator[str]:
    """The sources of a one-line file: deb [options] URI suite component..."""
    for line in text.splitlines():
        parts = re.fullmatch(r"deb\s+(\[.*?\]\s+)?(\S+)\s+(\S+)\s+([^#]+)(#.*)?", line.strip())
        if parts and is_main_archive([parts[3]], parts[4].split()):
            yield f"deb {parts[1] or ''}{parts[2]} {SUITE} main\n"


def of_stanzas(text: str) -> Iterator[str]:
    """The sources of a file of fields, as mails have them."""
    without_comments = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields = email.message_from_string(stanza.lstrip("\n"))
        kept = {name.title(): value for name, value in fields.items()}
        suites, components = (kept.get(name, "").split() for name in ("Suites", "Components"))
        enabled = kept.get("Enabled", "yes").lower() not in ("no", "false", "0")
        binary = "deb" in kept.get("Types", "").split()
        if enabled and binary and is_main_archive(suites, components):
            kept |= {"Types": "deb", "Suites": SUITE, "Components": "main"}
            yield "".join(f"{name}: {value}\n" for name, value in kept.items())


def is_debian() -> bool:
    try:
        return platform.freedesktop_os_release()["ID"] == "debian"
    except OSError:
        return False


def is_main_archive(suites: list[str], components: list[str]) -> bool:
    """Whether a source may be Debian's own; security and the like have suites of other names."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    own = {codename, "stable", "oldstable", "testing", "unstable", "sid"}
    return bool(own & set(suites)) and "main" in components


SOURCES = """\
# A comment
Types: deb deb-src
# Another
URIs: http://archive.test/debian
Suites: stable stable-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://archive.test/security
Suites: stable-security
Components: main

Enabled: no
Types: deb
URIs: http://archive.test/off
Suites: stable
Components: main


Types: deb
URIs: http://archive.test/others
Suites: nodistro
Components: main
"""
LINES = """\
# deb http://archive.test/off stable main
deb [arch=amd64 signed-by=/a/key.gpg] http://archive.test/debian stable main contrib # note
deb-src http://archive.test/debian stable main
deb http://archive.test/security stable-security main
deb http://archive.test/others stable others
"""


def test_sources_are_those_of_the_main_archive(monkeypatch):
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    assert list(of_lines(LINES)) == [
        "deb [arch=amd64 signed-by=/a/key.gpg] http://archive.test/debian trixie main\n"
    ]
    assert list(of_stanzas(SOURCES)) == [
        "Types: deb\nUris: http://archive.test/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    ]


# --- the comparison -----------------------------------------------------------------------------

FILES = {path.name: path for path in (HERE / "abi_check.cpp", HERE / "host_abi.h")}
FILES["ort_abi.h"] = ROOT / "onnx_ops" / "ort_abi.h"


def compile_check(header_flags, folder, compiler="g++"):
    flags = ("-std=c++17", *STRICT, "-fsyntax-only", *header_flags, f"-I{ROOT / 'onnx_ops'}")
    return run(compiler, *flags, str(folder / "abi_check.cpp"))


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_all_of_the_abi_is_that_of_the_real_header(header_flags, compiler):
    require(shutil.which(compiler), f"{compiler} is not installed")
    done = compile_check(header_flags, HERE, compiler)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def edited(header_flags, tmp_path):
    """A function that replaces what is in a copy of a file: what is said then, how often it was."""

    def edit(name, pattern, replacement):
        for path in FILES.values():
            shutil.copy(path, tmp_path)
        text, count = re.subn(pattern, replacement, FILES[name].read_text(encoding="utf-8"))
        assert count > 0, f"{name} has no {pattern}"
        (tmp_path / name).write_text(text, encoding="utf-8")
        done = compile_check(header_flags, tmp_path)
        assert done.returncode != 0
        return done.stderr, count

    return edit


@pytest.mark.parametrize("name", ["ort_abi.h", "host_abi.h"])
def test_a_wrong_slot_is_seen(name, edited):
    """Each of them, by its name."""
    said, count = edited(name, r"\bX\((\d+), ", r"X(\1 + 1, ")
    wrong = set(re.findall(r"(\w+): another slot", said))
    assert len(wrong) == count
    assert wrong == set(re.findall(r"X\(\d+, (\w+),", FILES[name].read_text(encoding="utf-8")))


def test_a_wrong_field_is_seen(edited):
    """A new first one moves all others."""
    said, _ = edited("ort_abi.h", r"(struct CustomOp \{)", r"\1\n  void* moves_all;")
    fields = FILES["ort_abi.h"].read_text(encoding="utf-8").partition("struct CustomOp {")[2]
    names = re.findall(r"\(\*(\w+)\)|uint32_t (\w+);", fields.partition("};")[0])
    assert set(re.findall(r"(\w+): another place", said)) == {a or b for a, b in names}
    assert "a field is not listed" in said


EDITS = {
    "parameter": (
        r"(int64_t\*) dims, size_t n\)\)",
        r"\1 dims, int n))",
        "SetDimensions: another",
    ),
    "const": (r"\(const OrtStatus\*\)", "(OrtStatus*)", "GetErrorMessage: another type"),
    "result": (r"(ReleaseStatus,) void", r"\1 OrtStatus*", "ReleaseStatus: another type"),
    "callback": (r"\(void\*, size_t\)", "(void*, int)", "KernelContext_ParallelFor: another type"),
    "method": (r"(GetName\)\()const CustomOp", r"\1CustomOp", "GetName: another type"),
    "last field": (r"(GetEndVersion\).*)", r"\1\n  void* one_more;", "a field is not listed"),
    "table": (r"slots_\[275\]", "slots_[274]", "KernelContext_ParallelFor: beyond the end of Api"),
    "base": (r"uint32_t version\);", "int version);", "get_api: another type"),
    "constant": (r"kBFloat16 = 16", "kBFloat16 = 17", "kBFloat16: another value"),
    "new constant": (r"kFail = 1,", "kFail = 1, kOther = 3,", "kOther"),
}


@pytest.mark.parametrize("what", EDITS)
def test_another_mistake_is_seen(what, edited):
    pattern, replacement, expected = EDITS[what]
    said, _ = edited("ort_abi.h", pattern, replacement)
    assert expected in said
