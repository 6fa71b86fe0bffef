"""The parts of a check that were asked for by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def chosen(asked: Sequence[str], known: Collection[str]) -> list[str]:
    """Those asked for, or all; the end of the program if there is no such part."""
    if unknown := set(asked) - set(known):
        raise SystemExit(f"{sorted(unknown)}: expected some of {', '.join(known)}")
    return list(asked or known)
