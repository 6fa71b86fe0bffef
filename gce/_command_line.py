"""What the commands of ``python -m gce`` share."""

from __future__ import annotations

import tempfile
from pathlib import Path

__all__ = ["CommandError", "check_output"]


class CommandError(Exception):
    """Something that the user can put right; the message says how."""


def check_output(folder: Path) -> None:
    """Find out before the work, and not after it, that there is no place for its results.

    Raises
    ------
    CommandError
        If it is a file, not in a directory that exists, or cannot be made or written in.
    """
    try:
        is_new = not folder.exists()
        if not is_new and not folder.is_dir():
            raise CommandError(f"--output {folder}: not a directory")
        if not folder.absolute().parent.is_dir():
            raise CommandError(f"--output {folder}: not in a directory that exists")
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        if is_new:  # what comes next may end in an error
            folder.rmdir()
    except OSError as error:
        raise CommandError(f"--output {folder}: {error.strerror}") from error
