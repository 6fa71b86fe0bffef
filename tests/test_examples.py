"""The scripts of examples/: they run, print the same twice, and show what their docstrings say.

The bounds leave room for other seeds and instruction sets, and none for the contrary of a claim.
``vocabulary_shards.py``, which needs PyTorch, is run by ``test_shards.py``.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines import ROOT

EXAMPLES = ROOT / "examples"
ELSEWHERE = {"vocabulary_shards"}


def causal_lm(shown: dict[Any, Any]) -> None:
    assert shown["same"] and shown["of_prompt"] == 0
    # The same rows; their sum may be made of other parts.
    np.testing.assert_allclose(*shown["losses"], rtol=1e-6)
    accuracies, perplexities = zip(*shown["log"].values(), strict=True)
    assert perplexities[0] == pytest.approx(24, rel=1e-6)  # a table of zeros: all tokens alike
    assert list(perplexities) == sorted(perplexities, reverse=True)
    assert accuracies[0] < 0.05 and accuracies[-1] > 0.4
    best = shown["the chain itself"]
    answers, everything = shown["trained on answers"], shown["trained on everything"]
    # The chain's own probabilities are the best there are, but for chance in 2,800 tokens. The
    # table has seen each some 120 times, and is 4 to 6 % above; with prompts counted, 28 to 31 %.
    assert best[1] < answers[1] < 1.1 * best[1]
    assert everything[1] > 1.2 * best[1]
    assert abs(everything[0] - answers[0]) < 0.02


def segmentation(shown: dict[Any, Any]) -> None:
    assert shown["same"] and shown["border"] == 0
    cross_entropy, ours = (
        {kind: shown[kind, gamma] for kind in shown["kinds"]} for gamma in (0.0, 0.8)
    )
    right, next_class, background = shown["kinds"]
    assert cross_entropy[right] > 0.94
    assert abs(ours[right] - cross_entropy[right]) < 0.01
    assert ours[next_class] > cross_entropy[next_class] + 0.1
    assert shown["background"] - 0.01 < ours[background] < cross_entropy[background] - 0.05


def class_imbalance(shown: dict[Any, Any]) -> None:
    mean = {way: recall.mean() for way, recall in shown.items()}
    assert shown["cross-entropy"][2] < 0.1 and shown["γ = 0.8"][2] < 0.1
    assert shown["weight"][2] > 0.8
    assert mean["weight, γ = 0.8"] > mean["weight"] + 0.05
    assert mean["weight"] < mean["weight, γ = 0.8, b = 0.2"] < mean["weight, γ = 0.8"]
    assert mean["weight, sample_weight"] == pytest.approx(mean["weight, γ = 0.8"], abs=0.07)
    most = max(mean["weight, sample_weight"], mean["weight, γ = 0.8"])
    assert mean["weight, sample_weight, γ = 0.8"] < most + 0.01


def learn_gamma(shown: dict[Any, Any]) -> None:
    assert shown["price 0.0"][1:] == (1, 1)  # all go to 1 where nothing is to be paid
    best = shown["γ = 1.0"][0]
    for price in ("price 0.1", "price 0.2", "price 0.5"):
        held_out, of_wrong, of_right = shown[price]
        assert of_wrong > 0.55 and of_right < 0.1
        assert held_out > best - 0.02
    assert shown["price 2.0"][0] < best - 0.02
    priced, single = (shown["new", way] for way in shown["best"].values())
    cross_entropy = shown["new", "γ = 0.0"]
    assert priced[0] > cross_entropy[0] + 0.08
    assert abs(priced[0] - single[0]) < 0.02
    for _, doubted, wrong in (priced, single):
        assert wrong > 0.8 * doubted
        assert 0.6 * shown["wrong"] < wrong < 0.75 * shown["wrong"]
    assert abs(priced[1] - single[1]) < 10
    assert cross_entropy[2] < 0.75 * cross_entropy[1]


def distillation(shown: dict[Any, Any]) -> None:
    accuracy, divergence, confidence = (
        {way: found[n] for way, found in shown.items()} for n in range(3)
    )
    teacher, best = "the teacher", "probabilities, T = 2, γ = 0.0"
    assert divergence[teacher] == 0
    for way in ("classes", "the teacher's classes"):
        assert accuracy[way] < accuracy[teacher] - 0.07 and divergence[way] > 0.4
    for way in ("probabilities", best):
        assert abs(accuracy[way] - accuracy[teacher]) < 0.02
    assert 0 < divergence[best] < 0.005 < divergence["probabilities"] < 0.1
    for gamma in (0.1, 0.5):
        way = f"probabilities, T = 2, γ = {gamma}"
        assert confidence[way] > confidence[teacher] + 0.05
        assert divergence[way] > 0.1
        assert accuracy[way] < accuracy[best]


CLAIMS: dict[str, Callable[[dict[Any, Any]], None]] = {
    claims.__name__: claims
    for claims in (causal_lm, segmentation, class_imbalance, learn_gamma, distillation)
}


def main_of(name: str) -> Callable[..., dict[Any, Any]]:
    return runpy.run_path(os.fspath(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_is_tested_and_in_the_readme():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(CLAIMS) | ELSEWHERE
    readme = ROOT / "README.md"
    listed = re.findall(r"^\| \[`(\w+)\.py`\]\(examples/\1\.py\)", readme.read_text("utf-8"), re.M)
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("name", CLAIMS)
def test_an_example_shows_what_it_says(isa, name):
    CLAIMS[name](main_of(name)())


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CLAIMS)
def test_other_numbers_show_the_same(name, seed):
    # What an example says is no luck of its data.
    CLAIMS[name](main_of(name)(seed))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_script_prints_what_its_numbers_are(name, tmp_path, capsys):
    script = EXAMPLES / f"{name}.py"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "error"}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, os.fspath(ROOT)])
    run = subprocess.run(
        [sys.executable, os.fspath(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert run.returncode == 0 and not run.stderr, run.stderr
    assert not list(tmp_path.iterdir())
    main_of(name)()
    assert run.stdout == capsys.readouterr().out  # the same each time
    assert 5 <= len(run.stdout.splitlines()) <= 20


@pytest.mark.parametrize("name", CLAIMS)
def test_a_script_says_how_to_run_it_and_needs_no_more_than_numpy(name):
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert f"\n    python examples/{name}.py\n" in text
    imported = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
    assert imported == ["numpy", "gce"]
    assert len(text.splitlines()) <= 100
