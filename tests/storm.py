"""For scripts of tests: signals that come while something is computed."""

import signal
from collections.abc import Iterator

TIMERS = {signal.SIGALRM: signal.ITIMER_REAL, signal.SIGPROF: signal.ITIMER_PROF}


def storm(handled: int = 1000) -> Iterator[None]:
    """Turns, until so many were handled: of all that come during a call of C, one of each kind."""
    seen = 0

    def handler(*_: object) -> None:
        nonlocal seen
        seen += 1

    for number, timer in TIMERS.items():
        signal.signal(number, handler)
        signal.setitimer(timer, 0.0005, 0.0005)
    while seen < handled:
        yield
    for timer in TIMERS.values():
        signal.setitimer(timer, 0)
