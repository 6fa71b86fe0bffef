"""gce.cython: its declarations are those of gce.h, and what is compiled with them runs."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import gce.cython
from engines import NATIVE_TESTS, ROOT
from support import require, tool

README = ROOT / "README.md"
PACKAGES = Path(gce.__file__).parent.parent  # where Cython finds gce/cython.pxd


# --- the declarations ---------------------------------------------------------------------------


def test_declarations_are_those_of_the_header():
    for path, text in tool("cython_pxd").rendered().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is not what gce.h declares now: run `make generated`"
        )


def test_capsules_are_those_of_the_header():
    # Of the built module: stale objects would show here.
    found = {name: capsule_name(capsule) for name, capsule in gce.cython.__pyx_capi__.items()}
    rows = tool("cython_pxd").CAPSULES.read_text(encoding="utf-8")
    assert found == dict(re.findall(r'^CAPSULE\((\w+), "(.+)"\)$', rows, re.MULTILINE))
    header = Path(gce.get_include(), "gce", "gce.h").read_text(encoding="utf-8")
    assert set(found) == set(re.findall(r"^GCE_API .*?\b(gce_\w+)\(", header, re.MULTILINE))


HEADER = """
#ifndef GCE_GCE_H_
#define GCE_GCE_H_
#include <stdint.h>
#define GCE_API __attribute__((visibility("default")))
#define GCE_MOST 8
extern "C" {
typedef enum gce_mode { GCE_A, GCE_B = 5 } gce_mode; /* a comment; */
typedef struct gce_thing {
  double x;
  const int64_t* shape; /* another { one } */
} gce_thing;
typedef struct gce_hidden gce_hidden;
GCE_API gce_mode gce_do(const gce_thing* thing, char* const* names, const char** out,
                        gce_hidden** hidden);
GCE_API const gce_thing* gce_get(void);
GCE_API void gce_put(gce_thing thing, int32_t i);
}
#endif
"""


def test_what_is_made_of_a_header():
    tools = tool("cython_pxd")
    header = tools.parse(HEADER)
    (tag,) = {name.rpartition("_")[2] for name in header.tagged().values()}
    assert (
        tools.pxd(header)
        == f"""cdef extern from "gce/gce.h":
    \"\"\"
    typedef gce_thing gce_thing_{tag};
    \"\"\"
    const int GCE_MOST

    ctypedef enum gce_mode:
        GCE_A
        GCE_B

    ctypedef struct gce_thing "gce_thing_{tag}":
        double x
        const int64_t* shape

    ctypedef struct gce_hidden:
        pass

cdef gce_mode gce_do(const gce_thing* thing, char* const* names, const char** out, \
gce_hidden** hidden) noexcept nogil
cdef const gce_thing* gce_get() noexcept nogil
cdef void gce_put(gce_thing thing, int32_t i) noexcept nogil"""
    )
    assert tools.capsules(header).splitlines()[2:] == [
        f'CAPSULE(gce_do, "gce_mode (gce_thing_{tag} const *, char *const *, char const **, '
        'gce_hidden **)")',
        f'CAPSULE(gce_get, "gce_thing_{tag} const *(void)")',
        f'CAPSULE(gce_put, "void (gce_thing_{tag}, int32_t)")',
    ]


@pytest.mark.parametrize(
    ("old", "new", "is_other"),
    [
        ("double x;", "double x;\n  double y;", True),
        ("double x;", "float x;", True),
        ("double x;", "double y;", True),
        ("GCE_B = 5", "GCE_B = 6", True),
        ("GCE_A, ", "GCE_C, GCE_A, ", True),
        ("a comment", "no comment", False),
        ("double x;", "double  x; /* x */", False),
        ("GCE_API void", "GCE_API void gce_more(void);\nGCE_API void", False),
    ],
)
def test_names_of_structs_tell_layouts_apart(old, new, is_other):
    parse = tool("cython_pxd").parse
    assert HEADER.count(old) == 1
    assert (parse(HEADER.replace(old, new)).tagged() != parse(HEADER).tagged()) is is_other


@pytest.mark.parametrize(
    "added", ["union gce_u { int a; };", "GCE_API void gce_f(void (*callback)(int));", "int a;"]
)
def test_a_declaration_that_is_not_understood_is_not_left_out(added):
    with pytest.raises(ValueError, match="cannot read"):
        tool("cython_pxd").parse(HEADER.replace("GCE_API void", f"{added}\nGCE_API void"))


# --- modules compiled with them -------------------------------------------------------------------

# The C compiler's warnings are errors but for what Cython's own code does.
SETUP = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup

include, packages, openmp, *sources = sys.argv[1:]
flags = ["-O0", *openmp.split()]
options = {"include_dirs": [include], "extra_compile_args": flags, "extra_link_args": flags}
extensions = [Extension(name.partition(".")[0], [name], **options) for name in sources]
extensions = cythonize(extensions, include_path=[packages], language_level=3)
setup(name="x", script_args=["-q", "build_ext", "--inplace"], ext_modules=extensions)
"""


def build(folder: Path, *sources: str, packages: Path = PACKAGES, include: str = "") -> None:
    """Compile sources in `folder`, as a user of setuptools would."""
    for name in ("Cython", "setuptools"):
        require(find_spec(name), f"{name} is not installed")
    (folder / "setup.py").write_text(SETUP)
    openmp = "-fopenmp" if sys.platform == "linux" else ""
    arguments = [include or gce.get_include(), os.fspath(packages), openmp, *sources]
    command = [sys.executable, "setup.py", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def load(folder: Path, name: str) -> ModuleType:
    (path,) = folder.glob(f"{name}.*.so")
    spec = spec_from_file_location(name, path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAIN = """
#include <Python.h>
#include "gce/gce.h"

static PyObject* get(PyObject* self, PyObject* type) {
  gce_status (*run)(const gce_problem*);
  gce_problem problem;
  const char* TYPE = PyUnicode_AsUTF8(type);
  (void)self;
%s
  if (run == NULL) return NULL;
  memset(&problem, 0, sizeof problem);
  return PyLong_FromLong(run(&problem));
}

static PyMethodDef methods[] = {{"run_nothing", get, METH_O, NULL}, {NULL, NULL, 0, NULL}};
static PyModuleDef definition = {.m_name = "plain", .m_methods = methods};
PyMODINIT_FUNC PyInit_plain(void) { return PyModule_Create(&definition); }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> SimpleNamespace:
    """tests/native/calls.pyx, the README's example, and the C of gce.cython's docstring."""
    folder = tmp_path_factory.mktemp("cython")
    shutil.copy(NATIVE_TESTS / "calls.pyx", folder)
    sources = {"calls": "calls.pyx", "plain": "plain.c"}
    (snippet,) = re.findall(r"::\n\n((?:    .*;\n)+)", gce.cython.__doc__)
    (folder / "plain.c").write_text(PLAIN % snippet)
    if README.exists():
        (example,) = re.findall(r"^```cython\n(.*?)^```", README.read_text(), re.M | re.DOTALL)
        (folder / "example.pyx").write_text(example)
        sources["example"] = "example.pyx"
    build(folder, *sources.values())
    return SimpleNamespace(**{name: load(folder, name) for name in sources})


def batch(rows: int, classes: int, dtype: str, targets: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    logits = rng.normal(scale=4, size=(rows, classes)).astype(dtype)
    return logits, rng.integers(0, classes, size=rows).astype(targets)


@pytest.mark.parametrize("rows", [0, 1, 37])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_short_forms_give_the_bits_of_python(compiled, isa, rows, gamma):
    calls = compiled.calls
    assert calls.isa() == isa
    for call, real, integer in (
        (calls.mean_and_grad, "f4", "l"),
        (calls.mean_and_grad_of_doubles, "f8", "i4"),
    ):
        logits, targets = batch(rows, 131, real, integer)
        targets[1::3] = -100  # ignored, as by default in Python
        grad = np.full_like(logits, np.nan)
        loss = call(logits, targets, gamma, grad)
        expected_loss, expected_grad = gce.loss_and_grad(logits, targets, gamma)
        assert loss == expected_loss
        np.testing.assert_array_equal(grad, expected_grad)
        assert call(logits, targets, gamma, logits) == loss  # in place
        np.testing.assert_array_equal(logits, expected_grad)
    logits, targets = batch(rows, 131, "f8", "i8")
    logits.flags.writeable = targets.flags.writeable = False
    assert calls.mean(logits, targets, gamma) == gce.loss(logits, targets, gamma)


def test_a_problem_with_options_of_any_layout(compiled):
    logits, targets = batch(40, 26, "f4", "longlong")
    logits, targets = logits.T[::-1, ::2], np.repeat(targets[:26], 2)[::2] % 20
    gamma = np.linspace(0, 1, 26, dtype="f4")
    out = np.full(52, np.nan, dtype="f4")
    compiled.calls.surrogate_losses(logits, targets, gamma, 0.1, out[::-2])
    options = {"value": "surrogate", "label_smoothing": 0.1, "reduction": "none"}
    expected = gce.loss(logits, targets, gamma, **options)
    np.testing.assert_array_equal(out[::-2], expected)
    assert np.isnan(out[::2]).all()


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_bfloat16_on_threads_of_its_own(compiled, workers):
    logits, targets = batch(600, 1009, ml_dtypes.bfloat16, "i8")
    expected_loss, expected_grad = gce.loss_and_grad(logits, targets, 0.7)
    loss, used = compiled.calls.bfloat16_in_place(logits.view("u2"), targets, 0.7, workers)
    assert 1 <= used <= workers
    assert used == workers or workers > 2  # there is work for several
    assert loss == expected_loss
    np.testing.assert_array_equal(logits.view("u2"), expected_grad.view("u2"))


def test_python_threads_call_at_once(compiled):
    logits, targets = batch(300, 1009, "f4", "l")
    expected = gce.loss_and_grad(logits, targets, 0.5)
    grads = [np.empty_like(logits) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        losses = pool.map(lambda g: compiled.calls.mean_and_grad(logits, targets, 0.5, g), grads)
        assert list(losses) == [expected[0]] * 8
    for grad in grads:
        np.testing.assert_array_equal(grad, expected[1])


def test_an_elementwise_function(compiled):
    log_p, out = np.linspace(-20, 0, 33), np.empty(33)
    assert compiled.calls.grad_weights(log_p, 0.4, 0.1, out) == 0
    np.testing.assert_array_equal(out, gce.grad_weight(log_p, 0.4, 0.1))
    assert compiled.calls.grad_weights(log_p, 1.5, 0.1, out) == 33
    assert np.isnan(out).all()


def test_errors_have_the_status_and_the_text_of_python(compiled):
    logits, targets = batch(9, 10, "f4", "l")
    targets[7] = 12
    message = "targets[7] = 12, expected 0 <= target < 10"
    status = compiled.calls.constants()["GCE_INDEX_ERROR"]
    assert compiled.calls.status_and_message(logits, targets, 0.5) == (status, message, -7.0)
    grad = np.full_like(logits, 7)
    with pytest.raises(IndexError) as raised:
        compiled.calls.mean_and_grad(logits, targets, 0.5, grad)
    assert str(raised.value) == message
    assert (grad == 7).all()
    for arguments in (
        (logits, targets, 1.5),
        (logits, targets[:5], 0.5),
        (logits, targets, np.nan),
    ):
        with pytest.raises(ValueError) as refused:
            compiled.calls.mean_and_grad(*arguments, grad)
        with pytest.raises(ValueError, match=f"^{re.escape(str(refused.value))}$"):
            gce.loss_and_grad(*arguments)
    with pytest.raises(ValueError, match=r"^out has shape \(3, 10\), expected \(9, 10\)"):
        compiled.calls.mean_and_grad(logits, targets, 0.5, grad[:3])


@pytest.mark.parametrize(
    ("status", "error"),
    [*enumerate([None, TypeError, ValueError, IndexError, MemoryError, RuntimeError])],
)
def test_check_raises_what_a_status_stands_for(compiled, status, error):
    if error is None:
        compiled.calls.raised(status)
        return
    with pytest.raises(error):
        compiled.calls.raised(status)


def test_checks_of_a_user_s_module_stay_its_own(compiled):
    # The pxd switches the checks of its own functions off.
    array = np.arange(3, dtype="f4")
    assert compiled.calls.element(array, -1) == 2
    with pytest.raises(IndexError):
        compiled.calls.element(array, 3)


def test_constants_and_sizes_are_those_of_c(compiled):
    pointer = ctypes.sizeof(ctypes.c_void_p)
    found = compiled.calls.constants()
    assert found.pop("sizeof(gce_array)") == 3 * pointer + 16  # three int32, padded
    assert found.pop("sizeof(gce_problem)") > 10 * (3 * pointer + 16)
    assert found == {
        "GCE_OK": 0,
        "GCE_INDEX_ERROR": 3,
        "GCE_UINT64": 11,
        "GCE_VALUE_SURROGATE": 1,
        "GCE_MAX_NDIM": 64,
    }


def test_the_example_of_the_readme(compiled):
    if not README.exists():
        pytest.skip("installed without README.md")
    logits, targets = batch(32, 10, "f4", "l")
    grad = np.empty_like(logits)
    expected = gce.loss_and_grad(logits, targets, 0.5)
    assert compiled.example.mean_loss(logits, targets, grad) == expected[0]
    np.testing.assert_array_equal(grad, expected[1])


# --- other callers --------------------------------------------------------------------------------


def capsule_name(capsule: object) -> str:
    get = ctypes.pythonapi.PyCapsule_GetName
    get.restype, get.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return get(capsule).decode()


def test_c_finds_the_functions(compiled):
    # Logits that are absent: the call arrives.
    name = capsule_name(gce.cython.__pyx_capi__["gce_run"])
    assert compiled.plain.run_nothing(name) != compiled.calls.constants()["GCE_OK"]
    with pytest.raises(ValueError, match="incorrect name"):
        compiled.plain.run_nothing(name.replace("gce_problem_", "gce_problem_0"))


def test_a_module_compiled_with_another_layout_is_refused(tmp_path):
    """A field more, in header and pxd: as if an older gce had been installed afterwards."""
    header, pxd = tmp_path / "gce/include/gce/gce.h", tmp_path / "gce/cython.pxd"
    header.parent.mkdir(parents=True)
    (tmp_path / "gce/__init__.py").touch()
    tools = tool("cython_pxd")
    text = tools.HEADER.read_text(encoding="utf-8")
    assert text.count("  double z_loss;") == 1
    header.write_text(text.replace("  double z_loss;", "  double z_loss;\n  double more;"))
    shutil.copy(tools.PXD, pxd)
    tools.HEADER, tools.PXD = header, pxd
    pxd.write_text(tools.rendered()[pxd])
    (tmp_path / "newer.pyx").write_text(
        "from gce.cython cimport gce_problem, gce_problem_init\n"
        "def more():\n"
        "    cdef gce_problem problem\n"
        "    gce_problem_init(&problem)\n"
        "    return problem.more\n"
    )
    build(tmp_path, "newer.pyx", packages=tmp_path, include=os.fspath(header.parent.parent))
    with pytest.raises(TypeError, match=r"gce\.cython\.gce_\w+ has wrong signature"):
        load(tmp_path, "newer")


# --- what is installed ----------------------------------------------------------------------------


def test_pxd_and_header_are_installed(tmp_path):
    require(find_spec("setuptools"), "setuptools is not installed")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", os.fspath(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    for name, source in (
        ("cython.pxd", "gce/cython.pxd"),
        ("cython.py", "gce/cython.py"),
        ("include/gce/gce.h", "native/include/gce/gce.h"),
    ):
        assert (tmp_path / "gce" / name).read_bytes() == (ROOT / source).read_bytes()
    installed = [path.name for path in (tmp_path / "gce/include").rglob("*") if path.is_file()]
    assert installed == ["gce.h"]
