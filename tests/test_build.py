"""What the build promises: what importing loads, what binaries export, what is rebuilt when."""

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.errors import PlatformError

import gce
from engines import setup_script
from support import require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command, **kwargs):
    """Return what `command` prints; if it fails, fail with what it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **kwargs
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def setup():
    """The build's description of itself: setup.py, imported."""
    return setup_script()


# --- versions and lists that would otherwise be kept by hand ------------------------------------


def test_folders_of_the_interpreters_libraries_are_not_searched(setup, monkeypatch):
    # A shared libpython of one's own building says where it is; LDFLAGS are the user's.
    monkeypatch.setenv("LDFLAGS", "-Wl,-rpath,/wanted -Lx")
    linker = ["g++", "-shared", "-L/lib", "-Wl,-rpath,/of/python", "-Wl,-rpath,/wanted"]
    compiler = types.SimpleNamespace(linker_so=linker, linker_so_cxx=linker)
    setup.BuildNative.forget_rpaths(types.SimpleNamespace(compiler=compiler))
    assert compiler.linker_so == ["g++", "-shared", "-L/lib", "-Wl,-rpath,/wanted"]
    assert compiler.linker_so_cxx == compiler.linker_so


@pytest.mark.parametrize(
    ("system", "file"),
    [
        ("linux-x86_64", "libgce_ort.so"),
        ("macosx-11.0-arm64", "libgce_ort.dylib"),
        ("win-amd64", "libgce_ort.dll"),
    ],
)
def test_libraries_are_named_as_the_system_names_them(setup, system, file):
    command = types.SimpleNamespace(plat_name=system)
    name = setup.BuildNative.get_ext_filename(command, "gce.onnx.libgce_ort")
    assert Path(name) == Path("gce/onnx") / file


@pytest.fixture
def command_for_windows(setup, monkeypatch):
    """The build's command, as it begins there; of a run of it there is the beginning alone."""
    monkeypatch.setattr(setup.build_ext, "run", lambda command: None)
    command = setup.BuildNative(Distribution())
    command.plat_name = "win-amd64"
    command.finalize_options()  # for which, as for an sdist, nothing need be there
    return command


def test_on_windows_zig_compiles_for_any_cpu(command_for_windows, monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", types.SimpleNamespace(__spec__=True))
    monkeypatch.setattr(os, "environ", {"CXX": "wanted"})
    command_for_windows.run()
    assert command_for_windows.compiler == "mingw32"
    assert command_for_windows.on_windows
    assert os.environ["CXX"] == "wanted"
    target = ["-target", "x86_64-windows-gnu"]  # without one it would be this machine's own CPU
    assert shlex.split(os.environ["CC"]) == [sys.executable, "-m", "ziglang", "cc", *target]


def test_on_windows_another_compiler_may_be_named(command_for_windows, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    command_for_windows.compiler = "mingw32"
    command_for_windows.run()
    assert "CC" not in os.environ


def test_on_windows_without_zig(command_for_windows, monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(PlatformError, match=r"ziglang is not installed: .*pip install ziglang"):
        command_for_windows.run()


@pytest.mark.parametrize("system", ["win-arm64", "win32"])
def test_on_another_windows(command_for_windows, system):
    command_for_windows.plat_name = system
    with pytest.raises(PlatformError, match=f"x86-64, not for {system}"):
        command_for_windows.run()


def test_version_is_that_of_pyproject_and_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert newest, "CHANGELOG.md names no version"
    assert gce.__version__ == PYPROJECT["project"]["version"] == newest[1]


def test_build_group_is_what_an_isolated_build_gets():
    assert PYPROJECT["dependency-groups"]["build"] == PYPROJECT["build-system"]["requires"]


def test_packages_are_those_in_the_tree():
    found = {path.parent.relative_to(ROOT) for path in (ROOT / "gce").rglob("__init__.py")}
    assert {".".join(path.parts) for path in found} == set(
        PYPROJECT["tool"]["setuptools"]["packages"]
    )


def test_each_isa_is_one_simd_header_and_one_source(setup):
    names = {isa.name for isa in setup.ISAS}
    assert names == {path.stem for path in (ROOT / "native/core/isa").glob("*.cpp")}
    headers = {path.name for path in (ROOT / "native/core/simd").glob("*.h")}
    assert {f"{name}.h" for name in names} == {h for h in headers if not h.endswith(".inc.h")}


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "arm64", "riscv64"])
def test_only_isa_objects_ask_for_more_than_the_baseline(setup, machine):
    assert "baseline" in {isa.name for isa in setup.isas_for(machine)}
    for unit in setup.core_units(machine):
        assert not any(flag.startswith(("-march", "-mcpu", "-mtune")) for flag in unit.flags)
        if not unit.source.startswith("native/core/isa/") or unit.source.endswith("/baseline.cpp"):
            assert not any(flag.startswith("-m") for flag in unit.flags), unit.source


# --- what importing costs -----------------------------------------------------------------------


# What `import gce` may load of the standard library beyond numpy's share; all of it is small.
SMALL = {"__future__", "copy", "dataclasses"}


def test_import_loads_numpy_and_the_extension_only():
    code = "import sys, numpy; a = set(sys.modules); import gce; print(*set(sys.modules) - a)"
    loaded = set(run(sys.executable, "-c", code).split())
    assert "gce._native" in loaded
    assert "gce.demo" not in loaded
    assert {name.partition(".")[0] for name in loaded} - {"gce", "numpy"} <= SMALL


def test_import_takes_under_50_ms_beyond_numpy():
    code = """if True:
        import time, numpy
        start = time.perf_counter()
        import gce
        print(time.perf_counter() - start)
    """
    # The quickest of five: the machine may be busy, the import cannot be quicker than it is.
    assert min(float(run(sys.executable, "-c", code)) for _ in range(5)) < 0.050


# --- what the binaries export -------------------------------------------------------------------


def symbols(path, *options):
    """(kind, name) of each symbol that nm lists."""
    require(shutil.which("nm"), "nm is not installed")
    lines = run("nm", "--portability", *options, os.fspath(path)).splitlines()
    return [(line.split()[1], line.split()[0]) for line in lines]


@pytest.mark.skipif(sys.platform != "linux", reason="nm -D reads ELF")
def test_libraries_export_what_setup_says_alone(setup):
    package = Path(gce.__file__).parent
    listed = {library.name: library.export_symbols for library in setup.LIBRARIES}
    assert listed["gce._native"] == ["PyInit__native"]
    for name, expected in listed.items():
        (path,) = package.parent.glob(f"{name.replace('.', '/')}.*so")
        exported = symbols(path, "--dynamic", "--defined-only")
        assert sorted(exported) == [("T", symbol) for symbol in sorted(expected)], name


@pytest.mark.skipif(sys.platform != "linux", reason="readelf reads ELF")
def test_libraries_that_runtimes_hold_stay_loaded_and_need_no_python(setup):
    require(shutil.which("readelf"), "readelf is not installed")
    for library in setup.LIBRARIES[1:]:
        path = Path(gce.__file__).parent.parent / f"{library.name.replace('.', '/')}.so"
        dynamic = run("readelf", "--dynamic", "--wide", path)
        assert "NODELETE" in dynamic
        needed = set(re.findall(r"Shared library: \[(\w+)", dynamic))
        assert needed <= {"libstdc", "libgcc_s", "libc", "libm", "libpthread", "ld"}, library.name
        taken = [name for _, name in symbols(path, "--dynamic", "--undefined-only")]
        assert len(taken) > 10
        assert [name for name in taken if re.match(r"_?Py|Ort|XLA|gce", name)] == []


def cross_compiler(machine):
    """A C++ compiler for `machine`: this machine's own, or Debian's cross compiler."""
    if platform.machine() == machine:
        compiler = os.environ.get("CXX", "c++")
    else:
        compiler = f"{machine}-linux-gnu-g++"
    require(shutil.which(compiler), f"{compiler} is not installed")
    return compiler


ISA_CASES = [
    ("x86_64", "baseline"),
    ("x86_64", "avx2"),
    ("x86_64", "avx512"),
    ("aarch64", "baseline"),
    ("aarch64", "neon"),
]


def test_isa_cases_are_all_isas(setup):
    machines = {machine for machine, _ in ISA_CASES}
    assert [(m, isa.name) for m in sorted(machines, reverse=True) for isa in setup.isas_for(m)] == (
        ISA_CASES
    )


@pytest.mark.skipif(sys.platform != "linux", reason="symbol names and kinds are those of ELF")
@pytest.mark.parametrize(("machine", "isa"), ISA_CASES)
def test_isa_object_exports_its_table_alone(setup, machine, isa, tmp_path):
    """A weak symbol in it could replace the baseline's copy, and crash CPUs without the ISA."""
    if machine != "x86_64" and platform.machine() not in ("x86_64", machine):
        pytest.skip(f"no cross compiler from {platform.machine()} to {machine}")
    source = f"native/core/isa/{isa}.cpp"
    (unit,) = [unit for unit in setup.core_units(machine) if unit.source == source]
    compiled = tmp_path / f"{isa}.o"
    compiler = cross_compiler(machine)
    run(compiler, *unit.flags, "-g0", "-c", source, "-o", os.fspath(compiled), cwd=ROOT)
    listed = symbols(compiled)
    assert [name for kind, name in listed if kind in "WwVvu"] == []
    # Lower case is internal; U is what it takes from elsewhere (memcpy and the like).
    exported = [name for kind, name in listed if kind.isupper() and kind != "U"]
    assert len(exported) == 1, exported
    assert isa in exported[0]


# --- what is rebuilt when -----------------------------------------------------------------------

TINY = {
    "native/include/gce/gce.h": 'extern "C" int gce_tiny(int);\n',
    "native/core/kernel_table.h": "struct Table { int (*add)(int); };\n",
    "native/core/kernels.inc.h": (
        '#include "kernel_table.h"\n'
        "namespace { int add(int x) { return x + kOne; } }\n"
        "extern const Table TABLE;\n"
        "const Table TABLE = {&add};\n"
    ),
    "native/core/api.cpp": (
        '#include "gce/gce.h"\n#include "kernel_table.h"\nextern const Table baseline_table;\n'
        "int gce_tiny(int x) { return baseline_table.add(x); }\n"
    ),
    "native/python/module.cpp": (
        '#include <Python.h>\n#include "gce/gce.h"\n'
        "static PyModuleDef module;\n"
        "PyMODINIT_FUNC PyInit__native() {\n"
        "  module.m_base = PyModuleDef_HEAD_INIT;\n"
        '  module.m_name = "_native";\n'
        "  PyObject* self = PyModule_Create(&module);\n"
        '  PyModule_AddIntConstant(self, "three", gce_tiny(2));\n'
        "  return self;\n"
        "}\n"
    ),
    "onnx_ops/register.cpp": (
        '#include "gce/gce.h"\nextern "C" __attribute__((visibility("default")))\n'
        "int RegisterCustomOps() { return gce_tiny(1); }\n"
    ),
    "xla_ffi/handlers.cpp": (
        '#include "gce/gce.h"\nextern "C" __attribute__((visibility("default")))\n'
        "int gce_xla_loss() { return gce_tiny(1); }\n"
    ),
    "gce/__init__.py": "",
    "gce/demo/__init__.py": "",
    "gce/jax/__init__.py": "",
    "gce/onnx/__init__.py": "",
    "README.md": "tiny\n",
    "LICENSE": "none\n",
    "THIRD_PARTY_NOTICES.md": "none\n",
}


class TinyProject:
    """The real setup.py and pyproject.toml over a native/ that compiles in a second."""

    def __init__(self, folder, isas):
        self.folder = folder
        files = dict(TINY)
        for isa in isas:
            files[f"native/core/simd/{isa}.h"] = "namespace { constexpr int kOne = 1; }\n"
            files[f"native/core/isa/{isa}.cpp"] = (
                f'#include "simd/{isa}.h"\n#define TABLE {isa}_table\n#include "kernels.inc.h"\n'
            )
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        self.seen = {}

    def build(self, **environment):
        """Build in place; return the names of the objects and libraries that were written."""
        kept = {name: value for name, value in os.environ.items() if name != "GCE_WERROR"}
        command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        run(*command, cwd=self.folder, env={**kept, **environment})
        old, paths = self.seen, [*self.folder.rglob("*.o"), *self.folder.glob("build/lib*/**/*.so")]
        self.seen = {path: path.stat().st_mtime_ns for path in paths}
        return {path.name.partition(".")[0] for path in paths if old.get(path) != self.seen[path]}

    def edit(self, name):
        """Make a file newer than everything built, whatever the file system's clock ticks in."""
        later = max(time.time(), *(ns / 1e9 for ns in self.seen.values())) + 0.05
        os.utime(self.folder / name, (later, later))
        time.sleep(0.1)


def test_edits_rebuild_what_they_reach_and_nothing_else(setup, tmp_path):
    for name in ("numpy", "pybind11"):
        require(importlib.util.find_spec(name), f"{name} is not installed")
    isas = {isa.name for isa in setup.isas_for(platform.machine())}
    project = TinyProject(tmp_path, isas)
    libraries = {"_native", "libgce_ort", "libgce_xla"}
    sources = {"module", "register", "handlers"}
    everything = {"api", *sources, *libraries, *isas}
    assert project.build() == everything
    assert project.build() == set()
    project.edit("native/core/kernels.inc.h")
    assert project.build() == {*libraries, *isas}
    project.edit("native/core/simd/baseline.h")
    assert project.build() == {*libraries, "baseline"}
    project.edit("native/include/gce/gce.h")
    assert project.build() == {*libraries, "api", *sources}
    project.edit("native/core/api.cpp")
    assert project.build() == {*libraries, "api"}
    project.edit("onnx_ops/register.cpp")
    assert project.build() == {"libgce_ort", "register"}
    assert project.build(GCE_WERROR="1") == everything
    code = "import gce._native; print(gce._native.three)"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "3"


@pytest.mark.parametrize("flags", ["-g0", "-g"])
def test_same_sources_give_the_same_libraries_in_any_folder(setup, tmp_path, flags):
    isas = {isa.name for isa in setup.isas_for(platform.machine())}
    built = []
    for folder in (tmp_path / "one", tmp_path / "another" / "and deeper"):
        project = TinyProject(folder, isas)
        source = folder / "native/core/api.cpp"
        source.write_text(source.read_text() + "const char* gce_where() { return __FILE__; }\n")
        project.build(CFLAGS=flags)
        built.append({path.name: path.read_bytes() for path in folder.glob("build/lib*/**/*.so")})
    assert len(built[0]) == len(setup.LIBRARIES)
    assert built[0] == built[1]
    for data in built[0].values():
        assert os.fsencode(tmp_path) not in data
        assert os.fsencode(Path.home()) + b"/" not in data


def test_missing_compiler_is_told(setup, tmp_path):
    project = TinyProject(tmp_path, {isa.name for isa in setup.isas_for(platform.machine())})
    with pytest.raises(AssertionError, match="found no compiler: 'no-such-compiler'"):
        project.build(CC="no-such-compiler", CXX="no-such-compiler")


@pytest.mark.skipif(sys.platform != "linux", reason="readelf reads ELF")
def test_libraries_are_read_only_once_loaded_and_run_no_stack(setup):
    require(shutil.which("readelf"), "readelf is not installed")
    package = Path(gce.__file__).parent.parent
    for library in setup.LIBRARIES:
        (path,) = package.glob(f"{library.name.replace('.', '/')}.*so")
        said = run("readelf", "--dynamic", "--segments", "--wide", path)
        assert re.search(r"FLAGS_1\).*\bNOW\b", said), library.name
        assert re.search(r"GNU_RELRO ", said), library.name
        assert re.search(r"GNU_STACK .* RW ", said), library.name


def test_warnings_are_errors_only_on_request(setup, tmp_path):
    project = TinyProject(tmp_path, {isa.name for isa in setup.isas_for(platform.machine())})
    source = tmp_path / "native/core/api.cpp"
    source.write_text(source.read_text() + "static int unused_function() { return 1; }\n")
    project.build()
    with pytest.raises(AssertionError, match="unused_function"):
        project.build(GCE_WERROR="1")


def test_sdist_holds_all_that_a_build_and_the_tests_need(setup, tmp_path):
    wanted = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", "CHANGELOG.md"}
    wanted.add("THIRD_PARTY_NOTICES.md")
    wanted.add("gce/include/gce/gce.h")  # through a link, which the search does not follow
    for folder in ("native", "onnx_ops", "xla_ffi", "gce", "tests", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if (
                path.is_file()
                and "__pycache__" not in path.parts
                and path.suffix not in (".so", ".o")
            ):
                wanted.add(path.relative_to(ROOT).as_posix())
    for name in wanted | {"MANIFEST.in"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", "dist", cwd=tmp_path)
    (sdist,) = (tmp_path / "dist").glob("gamma_ce-*.tar.gz")
    names = run("tar", "--list", "--file", os.fspath(sdist)).splitlines()
    held = {name.partition("/")[2] for name in names}
    assert sorted(wanted - held) == []


def test_compile_commands_are_written_for_tools(setup, tmp_path):
    project = TinyProject(tmp_path, {isa.name for isa in setup.isas_for(platform.machine())})
    project.build()
    commands = json.loads((tmp_path / "build/compile_commands.json").read_text())
    assert {entry["file"] for entry in commands} == {
        path.relative_to(tmp_path).as_posix()
        for folder in ("native", "onnx_ops", "xla_ffi")
        for path in (tmp_path / folder).rglob("*.cpp")
    }
