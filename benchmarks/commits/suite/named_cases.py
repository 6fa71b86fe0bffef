"""Each named case on one thread, through the public functions."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import gce

# By its path: the commit's gce may have no such file, or another.
PATH = Path(__file__).resolve().parents[3] / "gce" / "bench" / "cases.py"
spec = importlib.util.spec_from_file_location("working_tree_cases", PATH)
assert spec is not None and spec.loader is not None
cases: Any = importlib.util.module_from_spec(spec)
sys.modules["working_tree_cases"] = cases  # dataclasses look there
spec.loader.exec_module(cases)

CASES = {case.name: case for case in cases.CASES}


@lru_cache(maxsize=1)
def data_of(name: str) -> Any:
    """asv sets up before each sample; the arrays stay."""
    return cases.Data(CASES[name])


class Named:
    params = tuple(CASES)
    param_names = ("case",)
    repeat = (5, 30, 5.0)
    warmup_time = 0.1
    timeout = 120

    def setup(self, name: str) -> None:
        data, case = data_of(name), CASES[name]
        y, gamma = data.targets, data.gamma
        options = {**data.options, "num_threads": 1}
        z = data.out if case.work == cases.IN_PLACE else data.logits
        form = "binary_loss" if case.options == cases.BINARY else "loss"
        if case.options == cases.PRODUCT:
            u = data.vector
            self.call = lambda: gce.hvp(z, y, u, gamma, out=data.out, **options)
        elif case.work == cases.FORWARD:
            loss = getattr(gce, form)
            self.call = lambda: loss(z, y, gamma, **options)
        else:
            both = getattr(gce, f"{form}_and_grad")
            self.call = lambda: both(z, y, gamma, out=data.out, **options)
        self.call()  # a commit without an option fails here, and is shown as failed

    def time_call(self, name: str) -> None:
        self.call()
