"""Files that hold the state of a training: numpy arrays in a zip, with checksums (``numpy.savez``).

`write` replaces a file as a whole or not at all: it writes another file beside it, has the system
put that on the disk, and renames it. `read` says of a file that is not whole that it is damaged.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CheckpointError", "read", "write"]

FORMAT = "gce training checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or that belongs to another training."""


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, npt.NDArray[Any]],
    header: Mapping[str, Any],
) -> None:
    """Write arrays and what else JSON can hold; a file at `path` is replaced once that is done."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "path is a directory, expected a file", str(path))
    names = list(arrays)
    text = json.dumps({**header, "format": FORMAT, "version": VERSION, "names": names})
    # Names of values in a model can be anything, names in a zip cannot: they are in the header.
    members = {f"array_{i}": arrays[name] for i, name in enumerate(names)}
    # One name for all writes: what a killed process leaves is overwritten by the next.
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            header_bytes = np.frombuffer(text.encode(), np.uint8)
            with interrupts_seen():
                np.savez(file, allow_pickle=False, header=header_bytes, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def interrupts_seen() -> Iterator[None]:
    """Raise an interrupt that zipfile hides, which complains of a part that is not closed."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


def sync_directory(path: Path) -> None:
    """Have the system put the renaming on the disk, where it can."""
    with contextlib.suppress(OSError):
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Arrays and header of a file that `write` has written.

    Raises
    ------
    OSError
        The file cannot be read.
    CheckpointError
        It is damaged, or no checkpoint of this version.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()  # reads all, and compares the checksums
            if broken is not None:
                raise ValueError(f"the checksum of {broken} is wrong")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                header = json.loads(archive["header"].tobytes().decode())
                if header["format"] != FORMAT:
                    raise ValueError(f"its format is {header['format']!r}")
                if header["version"] == VERSION:
                    names = header["names"]
                    arrays = {name: archive[f"array_{i}"] for i, name in enumerate(names)}
        except MemoryError:
            raise
        except Exception as error:  # whatever the readers of zip, npy and JSON make of it
            raise CheckpointError(
                f"{os.fspath(path)} is damaged, or no checkpoint: {error}"
            ) from error
    if header["version"] != VERSION:
        raise CheckpointError(
            f"{os.fspath(path)} has version {header['version']}, expected {VERSION}"
        )
    return arrays, header


def require_same(path: str | os.PathLike[str], where: str, found: Any, expected: Any) -> None:
    """Raise a CheckpointError that names the first difference, in the order of `expected`."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in (*expected, *sorted(found.keys() - expected.keys())):
            inner = f"{where}.{key}" if where else key
            require_same(path, inner, found.get(key), expected.get(key))
    elif found != expected:
        raise CheckpointError(
            f"{os.fspath(path)} is of another training: {where} = {found!r}, expected {expected!r}"
        )
