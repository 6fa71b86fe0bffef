"""Documentation that can be wrong: examples, options, sections, the typed stub."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gce
import support
from gce import _native

MODULES = [
    "gce",
    "gce.schedules",
    "gce.presets",
    "gce.reference",
    "gce.shards",
    "gce._config",
    "gce._types",
]
MODULES += ["gce.onnx.training"] if importlib.util.find_spec("onnx_ad") else []
MODULES += ["gce.jax"] if importlib.util.find_spec("jax") else []
MODULES += ["gce.torch"] if importlib.util.find_spec("torch") else []
ROW_NAMES = ("loss", "loss_and_grad", "row_stats", "loss_gamma_grad", "hvp")
BINARY_NAMES = ("binary_loss", "binary_loss_and_grad")
FUNCTIONS = {name: getattr(gce, name) for name in (*ROW_NAMES, *BINARY_NAMES)}
SHARDED: dict[str, Any] = {"partial_stats": gce.shards.partial_stats}
SHARDED["sharded_loss_and_grad"] = gce.shards.loss_and_grad
STUB = Path(gce.__file__).with_name("_native.pyi")
README = Path(__file__).parent.parent / "README.md"


def documented() -> Iterator[tuple[str, Any]]:
    """Every module, and what its `__all__` or its own definitions offer, with their methods."""
    seen = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield module_name, module
        own = [name for name, item in vars(module).items() if belongs_to(item, module_name)]
        for name in [*getattr(module, "__all__", []), *own]:
            item = getattr(module, name)
            if isinstance(item, (types.ModuleType, str)) or id(item) in seen:
                continue
            seen.add(id(item))
            yield f"{module_name}.{name}", item
            if inspect.isclass(item):
                for method in vars(item).values():
                    if inspect.isfunction(method):
                        yield f"{module_name}.{item.__name__}.{method.__name__}", method


def belongs_to(item: Any, module: str) -> bool:
    is_code = inspect.isclass(item) or inspect.isfunction(item)
    return is_code and item.__module__ == module


DOCUMENTED = dict(documented())
WITH_EXAMPLES = {name for name, item in DOCUMENTED.items() if ">>>" in (item.__doc__ or "")}


# --- examples -------------------------------------------------------------------------------------


@pytest.mark.skipif(np.__version__ < "2", reason="numpy 2 prints scalars in another way")
@pytest.mark.parametrize(
    "name",
    sorted(WITH_EXAMPLES),
)
def test_examples_run(isa, name):
    # On each ISA: digits shown must not depend on it. Not by doctest's own search, which finds
    # neither builtins nor ufuncs. Each example imports what it uses.
    test = doctest.DocTestParser().get_doctest(DOCUMENTED[name].__doc__, {}, name, None, 0)
    assert test.examples
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with np.printoptions(legacy=False):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_all_public_functions_have_examples():
    public = {f"gce.{name}" for name in gce.__all__ if callable(getattr(gce, name))}
    public -= {"gce.RowStats", "gce.LossStats"}  # shown by row_stats and loss_and_grad
    factories = {f"gce.schedules.{name}" for name in gce.schedules.__all__ if name.islower()}
    formulas = {f"gce.reference.{name}" for name in gce.reference.__all__}
    wanted = public | factories | formulas
    assert len(wanted) > 15
    assert wanted <= WITH_EXAMPLES


def test_everything_has_a_docstring():
    undocumented = {
        name
        for name, item in DOCUMENTED.items()
        if not (item.__doc__ or "").strip() and not re.search(r"\.__\w+__$|\._\w+$", name)
    }
    assert not undocumented


# --- numpydoc -------------------------------------------------------------------------------------


def sections_of(doc: str) -> dict[str, str]:
    """The numpydoc sections of a docstring: title to text."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}\n", inspect.cleandoc(doc), flags=re.MULTILINE)
    titles, texts = parts[1::2], parts[2::2]
    assert len(titles) == len(set(titles))
    for title, text in zip(titles, texts, strict=True):
        assert text.strip(), f"{title} is empty"
    return dict(zip(titles, texts, strict=True))


def parameters_of(doc: str) -> dict[str, str]:
    """Names to the lines about them, of the section "Parameters"."""
    parts = re.split(r"^(\w[\w, ]*)(?: : |$)", sections_of(doc)["Parameters"], flags=re.MULTILINE)
    return {
        name: text
        for names, text in zip(parts[1::2], parts[2::2], strict=True)
        for name in names.split(", ")
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sections_of_the_functions(name):
    sections = sections_of(FUNCTIONS[name].__doc__)
    assert {"Parameters", "Returns", "Raises", "Examples"} <= set(sections)
    for error in ("TypeError", "ValueError"):
        assert error in sections["Raises"]
    assert ("IndexError" in sections["Raises"]) is (name in ROW_NAMES)


@pytest.mark.parametrize("name", ["loss_from_log_prob", "grad_weight", "gamma_grad"])
def test_sections_of_the_ufuncs(name):
    doc = getattr(gce, name).__doc__
    # numpy puts a signature with its own names first.
    signature = doc.partition("\n")[0]
    assert signature.startswith(f"{name}(") and "where=" in signature
    sections = sections_of(doc)
    assert {"Parameters", "Returns", "Examples"} <= set(sections)
    arguments = ["log_p", "gamma", "threshold"][: getattr(gce, name).nin]
    assert list(parameters_of(doc)) == arguments
    assert "ufunc" in doc


@pytest.mark.parametrize("name", ["get_num_threads", "set_num_threads", "show_config"])
def test_sections_of_the_settings(name):
    function = getattr(gce, name)
    sections = sections_of(function.__doc__)
    assert {"Raises", "Examples"} <= set(sections)
    assert ("Parameters" in sections) is (name != "get_num_threads")
    assert ("Returns" in sections) is (name != "set_num_threads")


@pytest.mark.parametrize(
    "name", [f"gce.schedules.{name}" for name in gce.schedules.__all__ if name.islower()]
)
def test_sections_of_the_schedules(name):
    function = DOCUMENTED[name]
    assert {"Parameters", "Returns", "Raises", "Examples"} <= set(sections_of(function.__doc__))
    assert list(parameters_of(function.__doc__)) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", [f"gce.reference.{name}" for name in gce.reference.__all__])
def test_sections_of_the_reference(name):
    function = DOCUMENTED[name]
    assert {"Parameters", "Returns", "Notes", "Examples"} <= set(sections_of(function.__doc__))
    found = {key.strip() for key in parameters_of(function.__doc__.replace("\\\n", ""))}
    assert found == set(inspect.signature(function).parameters)


# --- options --------------------------------------------------------------------------------------


def text_of(default: Any) -> str:
    return f'"{default}"' if isinstance(default, str) else repr(default)


@pytest.mark.parametrize("name", FUNCTIONS | SHARDED)
def test_every_argument_is_documented(name):
    function = (FUNCTIONS | SHARDED)[name]
    signature = inspect.signature(function)
    documented = parameters_of(function.__doc__)
    assert list(documented) == list(signature.parameters)
    for parameter in signature.parameters.values():
        lines = documented[parameter.name].strip().splitlines()
        assert len(lines) >= 2, f"{parameter.name}: a type and what it does"
        if parameter.default is not parameter.empty:
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert lines[0].endswith(f", default {text_of(parameter.default)}"), parameter.name
        else:
            assert "default" not in lines[0]


def parameters_and_docs(names: Iterable[str]) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    functions = {name: FUNCTIONS[name] for name in names}
    parameters = {name: inspect.signature(item).parameters for name, item in functions.items()}
    return parameters, {name: parameters_of(item.__doc__) for name, item in functions.items()}


def test_functions_share_their_options():
    parameters, _ = parameters_and_docs(FUNCTIONS)
    loss, binary_loss = set(parameters["loss"]), set(parameters["binary_loss"])
    assert set(parameters["loss_and_grad"]) - loss == {"out", "grad_output"}
    assert set(parameters["binary_loss_and_grad"]) - binary_loss == {"out", "grad_output"}
    assert set(parameters["row_stats"]) < loss
    assert set(parameters["loss_gamma_grad"]) ^ loss == {"return_stats", "grad_output"}
    of_products = {"return_stats", "vector", "grad_output", "gauss_newton", "out"}
    assert set(parameters["hvp"]) ^ loss == of_products


@pytest.mark.parametrize("names", [ROW_NAMES, BINARY_NAMES])
def test_a_shared_option_is_the_same_everywhere(names):
    parameters, docs = parameters_and_docs(names)
    for name, of_function in parameters.items():
        for option, parameter in of_function.items():
            for other in parameters:
                if option in parameters[other]:
                    assert parameters[other][option] == parameter
                    assert docs[other][option].strip() == docs[name][option].strip()


def test_the_binary_form_shares_its_options_with_the_other():
    # Whoever knows one knows the other: the same names, order and defaults, but for its own.
    for name in ("loss", "loss_and_grad"):
        ours, theirs = (
            inspect.signature(FUNCTIONS[function]).parameters
            for function in (f"binary_{name}", name)
        )
        assert set(ours) - set(theirs) == {"pos_weight"}
        shared = [option for option in ours if option in theirs]
        assert shared == [option for option in theirs if option in ours]
        assert all(ours[option] == theirs[option] for option in shared)


def test_the_reference_has_the_same_options_and_defaults():
    for name, function in FUNCTIONS.items():
        ours = inspect.signature(function).parameters
        theirs = inspect.signature(getattr(gce.reference, name)).parameters
        # What changes nothing of the result is not the reference's.
        assert set(ours) - set(theirs) == {"num_threads", "out", "return_stats"} & set(ours)
        assert set(theirs) <= set(ours)
        assert all(ours[key].default == theirs[key].default for key in theirs)


def test_the_native_options_are_those_of_the_signatures():
    # All functions of that table, which alone have signatures for inspect.
    functions = {
        name: inspect.signature(item).parameters.values()
        for name, item in vars(_native).items()
        if getattr(item, "__text_signature__", None) and name != "check_arguments"  # that of loss
    }
    taken = {
        name: {p.name: text_of(p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
        for name, parameters in functions.items()
    }
    assert set(taken) >= set(FUNCTIONS)
    described: dict[str, dict[str, str]] = {name: {} for name in taken}
    for option, default, kind, meaning, takers in _native.options():
        assert kind and meaning and takers
        for name in takers:
            assert f"{option} : {kind}, default {default}\n" in (FUNCTIONS | SHARDED)[name].__doc__
            described[name][option] = default
    assert described == taken


def test_the_readme_has_the_options_of_now():
    if not README.exists():
        pytest.skip("installed without README.md")
    text = README.read_text(encoding="utf-8")
    command = "it is not what kOptions has now: run `make generated`"
    assert support.tool("options_table").filled(text) == text, command


OPTIONS = [
    ("axis", "-1", "int", "the class axis", ["f", "g", "h"]),
    ("out", "None", "array", "may be `x`", ["f"]),
    ("mode", '"a"', "str", "a mode", ["f", "g"]),
    ("other", "0", "int", "no option of f or g", ["h"]),
]


def test_a_table_of_options_says_who_takes_what(monkeypatch):
    table = support.tool("options_table")
    monkeypatch.setattr(table._native, "options", lambda: OPTIONS)
    filled = table.filled("a\n<!-- options: f, g -->\nold\n<!-- /options -->\nb\n")
    assert (
        filled
        == """a
<!-- options: f, g -->
| option | meaning | default | functions |
|---|---|---|---|
| `axis` | the class axis | `-1` | also `h` |
| `out` | may be `x` | `None` | only `f` |
| `mode` | a mode | `"a"` | |
<!-- /options -->
b
"""
    )
    assert table.filled(filled) == filled
    assert "| `axis` | the class axis | `-1` | also `f`, `h` |" in table.table(["g"])
    # A function that has a table of its own is not named in another.
    filled = table.filled(
        "<!-- options: f -->\n<!-- /options -->\n<!-- options: g -->\n<!-- /options -->"
    )
    assert filled.count("| `axis` | the class axis | `-1` | also `h` |") == 2
    assert "| `out` | may be `x` | `None` | |" in filled
    assert '| `mode` | a mode | `"a"` | only `g`, also `f` |' in table.table(["g", "h"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- options: f, k -->\n<!-- /options -->", "`k`: no such function"),
        ("<!-- options: f -->\n", "without <!-- /options -->"),
        ("nothing", "no <!-- options"),
    ],
)
def test_marks_of_a_table_of_options_that_are_wrong(monkeypatch, text, message):
    table = support.tool("options_table")
    monkeypatch.setattr(table._native, "options", lambda: OPTIONS)
    with pytest.raises(ValueError, match=message):
        table.filled(text)


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    if not README.exists():
        pytest.skip("installed without README.md")
    for package in ("onnx_ad", "jax", "torch"):
        support.require(importlib.util.find_spec(package), f"{package} is not installed")
    monkeypatch.chdir(tmp_path)  # they write files
    text = README.read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 3
    namespace: dict[str, object] = {}
    for example in examples:  # each goes on where the one before it stopped
        exec(compile(example, "README.md", "exec"), namespace)


# --- the typed stub -------------------------------------------------------------------------------


def stub_functions() -> dict[str, list[ast.FunctionDef]]:
    functions: dict[str, list[ast.FunctionDef]] = {}
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            functions.setdefault(node.name, []).append(node)
    return functions


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_overload_has_every_argument(name):
    # `make check` runs stubtest, which looks at all overloads as one.
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    for overload in stub_functions()[name]:
        arguments = overload.args
        assert not (arguments.posonlyargs or arguments.vararg or arguments.kwarg)
        assert [arg.arg for arg in (*arguments.args, *arguments.kwonlyargs)] == list(parameters)
        for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            if default is None:  # what chooses the overload
                assert (arg.arg, ast.unparse(arg.annotation)) in (
                    ("reduction", "Literal['none']"),
                    ("return_stats", "Literal[True]"),
                )
            else:
                assert ast.literal_eval(default) == parameters[arg.arg].default


def test_the_stub_has_all_names_and_no_others():
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    variables = {
        node.target.id
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    module_names = {"__doc__", "__file__", "__loader__", "__name__", "__package__", "__spec__"}
    assert variables | set(stub_functions()) == set(vars(_native)) - module_names


def test_the_package_says_that_it_is_typed():
    assert STUB.with_name("py.typed").is_file()


# --- other promises in prose ----------------------------------------------------------------------


def test_all_names_are_there():
    for name in MODULES:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", [])
        assert len(names) == len(set(names))
        assert all(hasattr(module, item) for item in names)


def test_the_loss_at_gamma_1_is_explained():
    # 1 - p here, -p elsewhere: the same gradient. A user must be able to find out.
    for name in ("loss", "loss_and_grad"):
        assert "1 - p" in FUNCTIONS[name].__doc__ and "-p" in FUNCTIONS[name].__doc__


def test_fields_of_statistics_are_documented():
    for stats in (gce.RowStats, gce.LossStats):
        entries = parameters_of((stats.__doc__ or "").replace("Attributes\n", "Parameters\n"))
        assert set(entries) == set(stats._fields)
