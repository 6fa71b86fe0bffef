"""Fuzzes the public functions of gce: ``python python_face.py COUNTS [libFuzzer's arguments]``.

COUNTS is a file that keeps how many calls ended how (`Tally`). What bytes stand for is said by
`call_of`, what is held against a call by `check`. A finding ends the program and is written to a
file, with which as its last argument the program tries it again.
"""

from __future__ import annotations

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["gce.shards", "gce.schedules", "gce.presets"]):
    import gce.presets
    import gce.schedules
    import gce.shards  # noqa: F401

import numpy as np

from reliability.fuzz import engine
from reliability.fuzz.calls import call_of
from reliability.fuzz.promises import OUTCOMES, check
from reliability.fuzz.tally import Tally


def main() -> None:
    """Never returns."""
    warnings.simplefilter("ignore")  # of numpy's conversions
    np.seterr(all="ignore")
    tally = Tally(sys.argv[1], OUTCOMES)
    engine.fuzz(lambda data: tally.count(check(call_of(data))))


if __name__ == "__main__":
    main()
