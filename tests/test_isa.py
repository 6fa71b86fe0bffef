"""Instruction sets: which are there, which is chosen, how to force one, and that they agree."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import gce
from engines import (
    EMULATED,
    ENGINES,
    IN_PROCESS,
    InProcess,
    emulated_engine,
    python,
    selected,
    setup_script,
    skip_if_cpu_lacks,
)
from gce import _native
from support import require

# The order in which dispatch.cpp is to choose.
BEST_FIRST = ("avx512", "avx2", "neon", "baseline")

PRINT_ISA = "import gce; print(gce.show_config(mode='dicts')['isa'])"

# Each way into the core that computes something.
CALLS = {
    "loss": "gce.loss(z, [0], 0.5)",
    "loss_and_grad": "gce.loss_and_grad(z, [0], 0.5)",
    "row_stats": "gce.row_stats(z, [0])",
    "binary_loss": "gce.binary_loss(z, z, 0.5)",
    "binary_loss_and_grad": "gce.binary_loss_and_grad(z, z, 0.5)",
    "loss_from_log_prob": "gce.loss_from_log_prob([-1.0, -2.0], 0.5, 0.0)",
    "grad_weight": "gce.grad_weight(np.float32([-1.0]), 0.5, 0.0)",
    "gamma_grad": "gce.gamma_grad(-1.0, 0.5)",
    "show_config": "gce.show_config()",
}
TRY_ALL = f"""
import numpy as np
import gce  # must work: only a call needs an ISA
z = np.zeros((1, 3))
for name, call in {CALLS!r}.items():
    try:
        eval(call)
    except RuntimeError as error:
        print(f"{{name}}: {{error}}")
    else:
        print(f"{{name}}: no error")
"""


# --- what is there ------------------------------------------------------------------------------


def test_compiled_in_are_those_of_the_build_table_best_first():
    table = {isa.name for isa in setup_script().isas_for(platform.machine())}
    assert _native.compiled_isas() == [name for name in BEST_FIRST if name in table]


def test_every_isa_of_the_build_table_has_an_engine():
    # A new row there and none here would be an ISA that no test runs.
    if not EMULATED:
        pytest.skip("the ISAs of x86-64 are not emulated elsewhere")
    assert {isa.name for isa in setup_script().ISAS} <= set(ENGINES)


def test_available_are_those_that_the_cpu_has():
    available = _native.available_isas()
    assert available == [name for name in _native.compiled_isas() if name in available]
    assert available[-1] == "baseline"


def test_available_are_those_that_the_kernel_reports():
    # The CPU probe by another way: one that missed an ISA would only be slow.
    needs = {
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "neon": {"asimd"},
        "baseline": set(),
    }
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    assert found, "/proc/cpuinfo lists no flags"
    flags = set(found[1].split())
    expected = [name for name in _native.compiled_isas() if needs[name] <= flags]
    assert _native.available_isas() == expected


# --- which is chosen ----------------------------------------------------------------------------


def test_default_is_the_best_available():
    done = python(PRINT_ISA, GCE_FORCE_ISA="")  # empty is the same as not set
    assert done.stdout.split() == _native.available_isas()[:1], done.stderr


@pytest.mark.parametrize("name", IN_PROCESS)
def test_force_isa(name):
    skip_if_cpu_lacks(name)
    done = python(PRINT_ISA, GCE_FORCE_ISA=name)
    assert done.stdout.split() == [name], done.stderr


@pytest.mark.parametrize("name", EMULATED)
def test_force_isa_on_the_emulated_machine(name, emulated):
    engine = emulated(name)
    engine.start()
    assert engine.isa_name() == EMULATED[name]


@pytest.mark.skipif(not EMULATED, reason="NEON is in process")
def test_neon_is_the_default_on_aarch64():
    engine = emulated_engine("neon", forced=False)
    try:
        engine.start()  # which sees what runs
    finally:
        engine.stop()


def test_select_isa_returns_to_the_default():
    default = _native.isa_name()
    _native.select_isa("baseline")
    assert _native.isa_name() == "baseline"
    _native.select_isa(None)
    assert _native.isa_name() == default


def test_select_isa_of_an_unknown_name_changes_nothing():
    before = _native.isa_name()
    with pytest.raises(RuntimeError, match=r"isa = sse9, expected one of .*\bbaseline\b"):
        _native.select_isa("sse9")
    assert _native.isa_name() == before


# --- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sse9", "AVX2", " avx2", "baseline,avx2"])
def test_unknown_isa(name):
    done = python(TRY_ALL, GCE_FORCE_ISA=name)
    assert done.returncode == 0, done.stderr
    expected = ", ".join(_native.compiled_isas())
    said = [f"{call}: GCE_FORCE_ISA = {name}, expected one of {expected}" for call in CALLS]
    assert done.stdout.splitlines() == said


# A CPU without AVX: the whole interpreter runs in an emulator.
OLD_CPU = ("qemu-x86_64-static", "-cpu", "Nehalem")


@pytest.fixture(scope="module")
def old_cpu():
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("emulates x86-64 alone")
    require(shutil.which(OLD_CPU[0]), f"{OLD_CPU[0]} is not installed")
    done = python("import numpy", emulator=OLD_CPU)
    if done.returncode != 0:
        pytest.skip(f"numpy does not run on such a CPU: {done.stderr}")


@pytest.mark.usefixtures("old_cpu")
def test_isa_that_the_cpu_lacks():
    done = python(TRY_ALL, emulator=OLD_CPU, GCE_FORCE_ISA="avx2")
    assert done.returncode == 0, done.stderr
    said = [f"{call}: GCE_FORCE_ISA = avx2, but this CPU lacks avx2" for call in CALLS]
    assert done.stdout.splitlines() == said


@pytest.mark.usefixtures("old_cpu")
def test_old_cpu_gets_what_it_has():
    code = "import gce; print(gce.show_config(mode='dicts')['isas_available']);" + PRINT_ISA
    done = python(code, emulator=OLD_CPU, GCE_FORCE_ISA="")
    assert done.stdout.splitlines() == ["['baseline']", "baseline"], done.stderr


# --- that they agree ----------------------------------------------------------------------------

FLOATS = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
GAMMAS = (0.0, 0.3, 1.0)


def results_of(engine, dtype):
    """Losses, gradients and statistics of rows of ordinary, steep and huge logits."""
    rng = np.random.default_rng(0)
    scale = np.repeat([1e-3, 1.0, 10.0, 1e4], 40)[:, np.newaxis]
    for classes in (3, 40, 1500):
        logits = (rng.normal(size=(len(scale), classes)) * scale).astype(FLOATS[dtype])
        targets = rng.integers(0, classes, size=len(scale))
        stats = engine.row_stats(logits, targets)
        for gamma in GAMMAS:
            options = {"reduction": "none"}
            yield gamma, stats, *engine.loss_and_grad(logits, targets, gamma, **options)


@pytest.fixture(scope="module")
def baseline_results():
    with selected("baseline"):
        return {dtype: [*results_of(InProcess("baseline"), dtype)] for dtype in FLOATS}


@pytest.mark.parametrize("dtype", FLOATS)
def test_isas_agree(baseline_results, engine, dtype):
    # Each result may have the error that tests/test_accuracy.py allows, so two may differ by twice
    # that; and gradients rounded to 16 bits, from either side of a tie, by one spacing more.
    spacing = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 0.0)
    relative, absolute, of_weight, tiny = (
        (2e-14, 2e-15, 2e-15, 4.5e-308) if dtype == "float64" else (2e-6, 4e-7, 1e-6, 2.8e-45)
    )
    pairs = zip(baseline_results[dtype], results_of(engine, dtype), strict=True)
    for (gamma, stats, loss, grad), (_, our_stats, our_loss, our_grad) in pairs:
        np.testing.assert_array_equal(our_stats.argmax, stats.argmax)
        np.testing.assert_allclose(our_loss, loss, relative, absolute)
        log_p = stats.target_log_prob.astype(np.float64)
        weight = of_weight * gce.grad_weight(log_p, gamma, 0.0)
        grad, our_grad = grad.astype(np.float64), our_grad.astype(np.float64)
        tiny = max(tiny, float(ml_dtypes.finfo(FLOATS[dtype]).smallest_subnormal))
        limit = weight[:, np.newaxis] + spacing * np.abs(grad) + tiny
        worst = np.max(np.abs(our_grad - grad) / limit)
        assert worst <= 1.0, f"{worst} times the limit"
