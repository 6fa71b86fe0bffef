"""Calls that must raise, of each door: the type, what the message begins with, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gce
from gce import shards
from reliability.workers.doors import operator_session


class BadCall(NamedTuple):
    """A call, and the error that it must raise."""

    run: Callable[[], Any]
    error: type[BaseException]
    text: str  # part of the message


LOGITS = np.linspace(-2.0, 2.0, 20, dtype=np.float32).reshape(4, 5)
TARGETS = np.array([0, 4, 2, 1])


def out_of(number: int) -> Any:
    """Targets with one that is no class."""
    targets = TARGETS.copy()
    targets[1] = number
    return targets


def untouched(**wrong: Any) -> None:
    """A call with an `out`, which must be as it was."""
    out = np.full_like(LOGITS, 7.0)
    try:
        gce.loss_and_grad(
            **{"logits": LOGITS, "targets": TARGETS, "gamma": 0.5, "out": out, **wrong}
        )
    finally:
        if not (out == 7.0).all():
            raise RuntimeError("out was written before the error")


def overlapping() -> None:
    memory = np.zeros(25, np.float32)
    logits = memory[:20].reshape(4, 5)
    gce.loss_and_grad(logits, TARGETS, 0.5, out=memory[5:].reshape(4, 5))


def read_only() -> None:
    out = np.zeros_like(LOGITS)
    out.flags.writeable = False
    gce.loss_and_grad(LOGITS, TARGETS, 0.5, out=out)


def of_numpy() -> list[BadCall]:
    """Of numpy's face."""
    parts = [
        shards.partial_stats(LOGITS[:, begin:end], TARGETS, first_class=begin, num_classes=5)
        for begin, end in ((0, 2), (2, 5))
    ]
    return [
        BadCall(lambda: untouched(targets=out_of(12)), IndexError, "targets[1] = 12, expected"),
        BadCall(lambda: untouched(gamma=np.nan), ValueError, "gamma"),
        BadCall(lambda: untouched(gamma=[0.1, 1.5, 0.1, 0.1]), ValueError, "gamma[1] = 1.5"),
        BadCall(lambda: untouched(targets=TARGETS[:3]), ValueError, "targets"),
        BadCall(lambda: untouched(logits=LOGITS.astype("c8")), TypeError, "logits"),
        BadCall(lambda: untouched(reduction="average"), ValueError, "reduction"),
        BadCall(lambda: untouched(weight=np.ones(4)), ValueError, "weight"),
        BadCall(lambda: untouched(softcap=-1.0), ValueError, "softcap"),
        BadCall(lambda: untouched(axis=2), ValueError, "axis"),
        BadCall(lambda: untouched(num_threads=0), ValueError, "num_threads"),
        BadCall(overlapping, ValueError, "out"),
        BadCall(read_only, ValueError, "out"),
        BadCall(lambda: gce.loss(LOGITS, out_of(-1), 0.5), IndexError, "targets[1] = -1"),
        BadCall(lambda: gce.hvp(LOGITS, TARGETS, LOGITS[:3], 0.5), ValueError, "vector"),
        BadCall(lambda: gce.row_stats(LOGITS, out_of(5)), IndexError, "targets[1] = 5"),
        BadCall(lambda: gce.loss_gamma_grad(LOGITS, TARGETS, 2.0), ValueError, "gamma = 2"),
        BadCall(lambda: gce.binary_loss(LOGITS, LOGITS, 0.5), ValueError, "targets"),
        BadCall(lambda: gce.binary_loss_and_grad(LOGITS, LOGITS[:2], 0.5), ValueError, "targets"),
        BadCall(lambda: shards.merge(parts[::-1]), ValueError, "parts[1]"),
        BadCall(lambda: gce.set_num_threads(0), ValueError, "num_threads"),
    ]


def of_torch() -> list[BadCall]:
    import torch

    from gce.torch import gamma_cross_entropy

    logits = torch.from_numpy(LOGITS)
    wrong, right = torch.from_numpy(out_of(12)), torch.from_numpy(TARGETS)
    return [
        BadCall(lambda: gamma_cross_entropy(logits, wrong, 0.5), IndexError, "targets[1] = 12"),
        BadCall(lambda: gamma_cross_entropy(logits, right, 3.0), ValueError, "gamma = 3"),
    ]


def of_jax() -> list[BadCall]:
    from gce.jax import gamma_cross_entropy

    return [
        BadCall(
            lambda: gamma_cross_entropy(LOGITS, out_of(12), 0.5), IndexError, "targets[1] = 12"
        ),
        BadCall(lambda: gamma_cross_entropy(LOGITS, TARGETS, 3.0), ValueError, "gamma = 3"),
    ]


def of_operator() -> list[BadCall]:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    feeds = {"logits": LOGITS, "labels": TARGETS, "gamma": np.array(0.5)}
    session = operator_session(feeds)()

    def run(**wrong: Any) -> Any:
        return session.run(None, {**feeds, **wrong})

    return [
        BadCall(lambda: run(labels=out_of(12)), InvalidArgument, "targets[1] = 12, expected"),
        BadCall(lambda: run(gamma=np.array(3.0)), InvalidArgument, "gamma = 3"),
    ]


DOORS = {"torch": of_torch, "jax": of_jax, "onnxruntime": of_operator}


def calls(doors: list[str]) -> list[BadCall]:
    """Of numpy's face and of these doors."""
    return of_numpy() + [bad for door in doors for bad in DOORS[door]()]


def outcome(bad: BadCall) -> str:
    """What is wrong with what the call did: nothing, as it should be."""
    try:
        bad.run()
    except bad.error as error:
        return "" if bad.text in str(error) else f"{error!r}, expected {bad.text!r} in it"
    except BaseException as error:  # whatever else it is
        return f"{error!r}, expected {bad.error.__name__}"
    return f"no error, expected {bad.error.__name__} with {bad.text!r}"
