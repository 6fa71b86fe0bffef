"""What the commands of ``python -m gce`` share."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CommandError", "check_output"]


class CommandError(Exception):
    """Something that the user can put right; the message says how."""


def check_output(folder: Path) -> None:
    """Find out before the work, and not after it, that there is no place for its results.

    Raises
    ------
    CommandError
        If it is a file, or not in a directory that exists.
    """
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--output {folder}: not a directory")
    if not folder.absolute().parent.is_dir():
        raise CommandError(f"--output {folder}: not in a directory that exists")
