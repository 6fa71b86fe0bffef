"""What a worker and its check have to say to each other: lines of JSON, and when to end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

EVERY = 2.0  # seconds between two reports


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def say_wrong(text: str) -> None:
    """Something that must not be; the check counts what figures say, and shows this."""
    print(text, file=sys.stderr, flush=True)


def report_until(deadline: float, figures: Callable[[], dict[str, Any]]) -> None:
    """Say the figures every few seconds, until `time.monotonic()` is there."""
    while (left := deadline - time.monotonic()) > 0:
        say(**figures())
        time.sleep(min(EVERY, left))
