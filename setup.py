"""The native build, and nothing else: metadata and tools are configured in pyproject.toml.

One core (``native/core``) is compiled for the machine's baseline, its kernels once for each row of
`ISAS`, and all of it is linked into each of `LIBRARIES`.  Run as a script, this file is the build;
imported, as the tests do to compile the core for another machine, it is the build's description.
GCC or Clang on Linux and macOS; on Windows zig's Clang, which is among the build's requirements.
"""

import copy
import importlib.util
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

ROOT = Path(__file__).resolve().parent


class Isa(NamedTuple):
    """One instruction set: native/core/isa/<name>.cpp, compiled with `flags` on `machines`."""

    name: str
    machines: tuple[str, ...]  # empty: every machine
    flags: tuple[str, ...]


X86_64 = ("x86_64", "amd64")
AARCH64 = ("aarch64", "arm64")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2, "-mprefer-vector-width=512")

# Which ISAs are compiled is said here alone: dispatch.cpp learns of each through GCE_HAVE_<NAME>.
ISAS = (
    Isa("baseline", (), ()),
    Isa("avx2", X86_64, AVX2),
    Isa("avx512", X86_64, AVX512),
    Isa("neon", AARCH64, ()),
)

# These come after the interpreter's and the user's own flags, so that neither -ffast-math nor
# link-time optimisation reaches the kernels: one breaks IEEE promises, one may inline across ISAs.
COMMON_FLAGS = (
    *("-std=c++17", "-O3", "-DNDEBUG", "-fno-fast-math", "-ffp-contract=off", "-fno-lto"),
    *("-fvisibility=hidden", "-fPIC", "-pthread", "-Wall", "-Wextra"),
)
# An ISA object must hold no weak symbol (an inline std:: function, a vtable): the linker could keep
# the AVX-512 copy of it for baseline code.
ISA_FLAGS = ("-fno-exceptions", "-fno-rtti")


class Unit(NamedTuple):
    """One object: its source, and the flags beyond the compiler's own; paths start at `ROOT`."""

    source: str
    flags: tuple[str, ...]


def glob(pattern: str) -> list[str]:
    """Sources below `ROOT` that match, in a fixed order so that builds are reproducible."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def isas_for(machine: str) -> list[Isa]:
    """ISAs that are compiled in on `machine` (as ``platform.machine()`` names it)."""
    return [isa for isa in ISAS if not isa.machines or machine.lower() in isa.machines]


def core_units(machine: str) -> list[Unit]:
    """Everything that one native library links: the core, then its kernels once per ISA."""
    isas = isas_for(machine)
    compiled_in = (f"-DGCE_HAVE_{isa.name.upper()}=1" for isa in isas)
    flags = (*COMMON_FLAGS, "-Inative/include", "-Inative/core", *compiled_in)
    return [Unit(source, flags) for source in glob("native/core/*.cpp")] + [
        Unit(f"native/core/isa/{isa.name}.cpp", flags + ISA_FLAGS + isa.flags) for isa in isas
    ]


def host_flags(library: str, version: str) -> tuple[str, ...]:
    """Flags of the sources of `library` itself, which see the C ABI and not the core."""
    flags = (*COMMON_FLAGS, "-Inative/include")
    if library != "gce._native":
        return flags
    import numpy  # here, because only a build needs these two
    import pybind11

    # -isystem: warnings in their headers are not ours to turn into errors.
    system = (f"-isystem{path}" for path in (pybind11.get_include(), numpy.get_include()))
    return (*flags, *system, f'-DGCE_VERSION="{version}"')


# Each library: its sources, and the only symbols that it may export. Only the first is an extension
# module: ONNX Runtime and XLA call the others, loaded by their paths, whatever the interpreter.
LIBRARIES = [
    Extension("gce._native", glob("native/python/*.cpp"), export_symbols=["PyInit__native"]),
    Extension("gce.onnx.libgce_ort", glob("onnx_ops/*.cpp"), export_symbols=["RegisterCustomOps"]),
    Extension("gce.jax.libgce_xla", glob("xla_ffi/*.cpp"), export_symbols=["gce_xla_loss"]),
]


class BuildNative(build_ext):
    """Compile every object once, in parallel and only if stale; link them into each library."""

    def run(self) -> None:
        """Take zig's compiler on Windows; MSVC has neither GCC's attributes nor its builtins."""
        if self.on_windows and self.plat_name != "win-amd64":
            raise PlatformError(
                f"gamma-ce is built for Windows on x86-64, not for {self.plat_name}"
            )
        if self.on_windows and self.compiler is None:
            if not importlib.util.find_spec("ziglang"):
                raise PlatformError(
                    "gamma-ce is compiled with zig's Clang on Windows, and ziglang is not"
                    " installed: build with isolation, or pip install ziglang; or take a wheel"
                )
            self.compiler = "mingw32"
            os.environ.setdefault("CC", zig("cc"))
            os.environ.setdefault("CXX", zig("c++"))
        super().run()

    @property
    def on_windows(self) -> bool:
        """Whether the libraries are DLLs, in setuptools' terms."""
        return self.plat_name.startswith("win")

    def build_extensions(self) -> None:
        """Compile, then let setuptools call `build_extension` for each library."""
        kind = self.compiler.compiler_type
        if kind != ("mingw32" if self.on_windows else "unix"):
            raise PlatformError(f"gamma-ce is built with GCC or Clang; {kind!r} is not supported")
        compiler = self.compiler.compiler_so_cxx[0]
        if not shutil.which(compiler):
            raise PlatformError(
                f"gamma-ce is compiled from C++ here and found no compiler: {compiler!r} is not on"
                " PATH. Install GCC or Clang (Debian: g++), or name one (CC, CXX); or take a wheel"
            )
        build = self.get_finalized_command("build")
        if self.editable_mode:  # setuptools offers a temporary folder; objects are worth keeping
            tag = f"editable.{build.plat_name}-{sys.implementation.cache_tag}"
            self.build_temp = os.path.join(build.build_base, tag)

        if self.on_windows:  # before 3.12, Python's headers do so for its own compiler alone
            self.compiler.define_macro("MS_WIN64", "")
        else:
            self.forget_rpaths()
        core = core_units(self.plat_name.rpartition("-")[2])
        units = list(core)
        for ext in self.extensions:
            flags = host_flags(ext.name, self.distribution.get_version())
            units += [Unit(source, flags) for source in ext.sources]
        self.write_compile_commands(units, Path(build.build_base))
        with ThreadPoolExecutor(self.parallel or os.cpu_count()) as pool:
            objects = list(pool.map(self.compile_unit, units))
        self.object_of = {unit.source: path for unit, path in zip(units, objects, strict=True)}
        self.core_objects = objects[: len(core)]
        super().build_extensions()

    def forget_rpaths(self) -> None:
        """Drop folders in which the interpreter's own libraries are: ours need none of these."""
        wanted = os.environ.get("LDFLAGS", "").split()
        for name in ("linker_so", "linker_so_cxx"):
            flags = getattr(self.compiler, name)
            kept = [f for f in flags if not f.startswith("-Wl,-rpath") or f in wanted]
            setattr(self.compiler, name, kept)

    def compile_unit(self, unit: Unit) -> str:
        """Path of the object of `unit`, compiled anew if anything that it was made from changed."""
        (path,) = self.compiler.object_filenames([unit.source], output_dir=self.build_temp)
        flags = [*unit.flags, "-MD", *environment_flags(), *self.nameless(unit)]
        command = "\n".join([*self.compiler_command(), *flags])
        stamp = Path(f"{path}.cmd")
        if self.force or not stamp.exists() or stamp.read_text() != command or is_stale(path):
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.unlink(missing_ok=True)
            self.compiler.compile([unit.source], self.build_temp, extra_postargs=flags)
            stamp.write_text(command)
        return path

    def compiler_command(self) -> list[str]:
        """How the compiler is called before a unit's own flags."""
        return [*self.compiler.compiler_so_cxx, *(f"-I{d}" for d in self.compiler.include_dirs)]

    def nameless(self, unit: Unit) -> list[str]:
        """Flags that keep this machine's folders out of objects, which are the same in all."""
        prefix = "-isystem"
        system = [flag[len(prefix) :] for flag in unit.flags if flag.startswith(prefix)]
        folders = [str(ROOT), *map(os.path.abspath, [*self.compiler.include_dirs, *system])]
        # The last one that matches is taken, and these may lie in each other.
        ordered = sorted(set(folders), key=lambda folder: (len(folder), folder))
        return [f"-ffile-prefix-map={d}={'.' if d == str(ROOT) else 'include'}" for d in ordered]

    def write_compile_commands(self, units: list[Unit], folder: Path) -> None:
        """Tell clang-tidy and editors how each file is compiled."""
        start = self.compiler_command()
        commands = [
            {"directory": str(ROOT), "file": file, "arguments": [*start, *flags, "-c", file]}
            for file, flags in units
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compile_commands.json").write_text(json.dumps(commands, indent=1))

    def get_ext_filename(self, fullname: str) -> str:
        """Path of a library; `fullname` comes with and without its package."""
        if not fullname.rpartition(".")[2].startswith("lib"):
            return super().get_ext_filename(fullname)
        suffix = {"mac": ".dylib", "win": ".dll"}.get(self.plat_name[:3], ".so")
        return os.path.join(*fullname.split(".")) + suffix

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Those of `LIBRARIES`, without setuptools' PyInit_<name>."""
        return ext.export_symbols

    def build_extension(self, ext: Extension) -> None:
        """Link one library from objects; setuptools skips it when it is newer than all of them."""
        linked = copy.copy(ext)
        linked.sources, linked.language = [], "c++"
        linked.extra_objects = [self.object_of[file] for file in ext.sources] + self.core_objects
        linked.extra_link_args = ["-pthread", "-fno-lto"]
        if not self.on_windows:  # for which setuptools writes a list of exports
            linked.extra_link_args += [self.export_only(ext), *self.elf_flags(ext)]
        linked.extra_link_args += sanitizer_flags()
        linked.depends = [*linked.extra_objects, __file__]
        super().build_extension(linked)

    def elf_flags(self, ext: Extension) -> list[str]:
        """What the loader is told: bind all at once, then make it read-only; run no stack."""
        if self.plat_name.startswith("macosx"):
            return []
        # What a runtime holds of its library has no end: those stay loaded.
        kept = "" if ext.name == "gce._native" else ",-z,nodelete"
        return [f"-Wl,-z,relro,-z,now,-z,noexecstack{kept}"]

    def export_only(self, ext: Extension) -> str:
        """Linker flag that hides all else: weak std:: symbols are exported despite -fvisibility."""
        script = Path(self.build_temp, f"{ext.name}.exports")
        if self.plat_name.startswith("macosx"):
            script.write_text("".join(f"_{name}\n" for name in ext.export_symbols))
            return f"-Wl,-exported_symbols_list,{script}"
        names = "".join(f"{name}; " for name in ext.export_symbols)
        script.write_text(f"{{ global: {names}local: *; }};\n")
        return f"-Wl,--version-script={script}"


def zig(language: str) -> str:
    """Command that compiles for Windows: for its baseline, not for this machine's own CPU."""
    return f'"{Path(sys.executable).as_posix()}" -m ziglang {language} -target x86_64-windows-gnu'


def environment_flags() -> list[str]:
    """-Werror in the project's own builds alone, and no debug information unless asked for."""
    flags = ["-Werror"] if os.environ.get("GCE_WERROR") == "1" else []
    if sanitizer_flags():
        checked = ("-UNDEBUG", "-D_GLIBCXX_ASSERTIONS", "-fno-omit-frame-pointer")
        return [*flags, *sanitizer_flags(), *checked, "-O1", "-g1"]
    return flags if "-g" in os.environ.get("CFLAGS", "") else [*flags, "-g0"]


def sanitizer_flags() -> list[str]:
    """GCE_SANITIZE=address,undefined or thread, for `make sanitize`; with fuzzer-no-link, too."""
    names = os.environ.get("GCE_SANITIZE")
    if not names:
        return []
    # These make compiling the kernels several times as long; AddressSanitizer sees what they would.
    without = "null,object-size,pointer-overflow"
    if "fuzzer" in names:  # a fuzzer's runtime has no part for these
        without += ",vptr,function"
    return [f"-fsanitize={names}", "-fno-sanitize-recover=all", f"-fno-sanitize={without}"]


def is_stale(path: str) -> bool:
    """Whether the object is older than a file that the compiler read for it (its .d file says)."""
    try:
        rule = Path(path).with_suffix(".d").read_text().replace("\\\n", " ").replace("\\ ", "\0")
        read = [name.replace("\0", " ") for name in rule.partition(": ")[2].split()]
        return max(map(os.path.getmtime, read)) > os.path.getmtime(path)
    except FileNotFoundError:
        return True


if __name__ == "__main__":
    setup(ext_modules=LIBRARIES, cmdclass={"build_ext": BuildNative})
