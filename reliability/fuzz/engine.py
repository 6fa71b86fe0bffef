"""The engine of the targets in Python: libFuzzer, by atheris."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable


def fuzz(one_input: Callable[[bytes], None]) -> None:
    """Run the engine, with the program's arguments but for the first, which is the target's own."""
    import atheris

    # What a merge begins again, as a line of the shell: the program with its interpreter.
    program = shlex.join([sys.executable, "-P", *sys.argv[:2]])
    atheris.Setup([program, *sys.argv[2:]], one_input)
    atheris.Fuzz()
