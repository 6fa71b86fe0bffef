"""Files that hold the state of a training: numpy arrays in a zip, with checksums (``numpy.savez``).

`write` replaces a file as a whole or not at all: it writes another file beside it, has the system
put that on the disk, and renames it. `read` says of a file that is not whole that it is damaged.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

if sys.platform != "win32":
    import fcntl

__all__ = ["CheckpointError", "read", "text_of", "write"]

FORMAT = "gce training checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or that belongs to another training."""


def write(
    path: str | bytes | os.PathLike[Any],
    arrays: Mapping[str, npt.NDArray[Any]],
    header: Mapping[str, Any],
) -> None:
    """Write arrays and what else JSON can hold; a file at `path` is replaced once that is done."""
    place = place_of(path)
    names = list(arrays)
    text = json.dumps({**header, "format": FORMAT, "version": VERSION, "names": names})
    # Names of values in a model can be anything, names in a zip cannot: they are in the header.
    members = {f"array_{i}": arrays[name] for i, name in enumerate(names)}
    header_bytes = np.frombuffer(text.encode(), np.uint8)
    with replacing(place) as file, causes_seen():
        np.savez(file, allow_pickle=False, header=header_bytes, **members)
    sync_directory(place.parent)


def text_of(path: str | bytes | os.PathLike[Any]) -> str:
    """The path as text. A number, which is an open file to `open`, is none."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"path has type {type(path).__name__}, expected str, bytes or os.PathLike"
        ) from None


def place_of(path: str | bytes | os.PathLike[Any]) -> Path:
    """Where the file is to be: links are followed, as by `open`, and only a file is replaced."""
    text = text_of(path)
    place = Path(os.path.realpath(text))
    if place.is_dir() or text.endswith((os.sep, os.altsep or os.sep)):
        raise IsADirectoryError(errno.EISDIR, "path is a directory, expected a file", text)
    if place.exists() and not place.is_file():
        raise OSError(errno.EINVAL, "path is a device, a pipe or a socket, expected a file", text)
    return place


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file beside `path` for this writer alone; without an error it then replaces `path`.

    What a killed process leaves is used again. A lock, which ends with its process, tells that from
    the file of another writer, who takes ``.gce-tmp`` while the next one takes ``.gce-tmp1``.
    Windows does not rename open files, so that a lock would end too early: there each writer has a
    name of its own, what a killed one leaves stays, and who replaces `path` while another does has
    an OSError.
    """
    old = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        old = os.stat(path)
    for i in itertools.count():
        beside = path.with_name(f"{path.name}.gce-tmp{number_of_writer(i)}")
        with opened(beside, 0o666 if old is None else 0o600) as file:
            if file is None or not (is_locked_now(file) and is_same(file, beside)):
                continue
            try:
                if old is not None:
                    set_mode(file, 0o600)  # of what a killed process has left, too
                file.truncate()
                yield file
                file.flush()
                os.fsync(file.fileno())
                if old is not None:
                    take_permissions(file, old)
                if sys.platform == "win32":
                    file.close()
                os.replace(beside, path)
            except BaseException:
                remove(file, beside)
                raise
            return


def number_of_writer(i: int) -> str:
    """What tells the files of writers to the same path from each other."""
    numbers = f"{os.getpid()}-{threading.get_ident()}" if sys.platform == "win32" else i or ""
    return str(numbers)


def opened(beside: Path, mode: int) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    """A new file, or one that this user has left; never another's, and nothing behind a link."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        return os.fdopen(os.open(beside, flags | os.O_CREAT | os.O_EXCL, mode), "r+b")
    except FileExistsError:
        pass
    try:
        descriptor = os.open(beside, flags)
    except OSError:  # a link, a directory, another user's, or gone by now
        return contextlib.nullcontext()
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == own_id():
        return os.fdopen(descriptor, "r+b")
    os.close(descriptor)
    return contextlib.nullcontext()


def own_id() -> int:
    """Whose files this process writes; on Windows all files are said to be of user 0."""
    return 0 if sys.platform == "win32" else os.geteuid()


def take_permissions(file: IO[bytes], old: os.stat_result) -> None:
    """Let those read the file who could read the old one, as far as the system lets one say so."""
    if sys.platform != "win32":
        mode = old.st_mode & 0o777
        try:
            os.fchown(file.fileno(), -1, old.st_gid)
        except OSError:  # this user is not of that group: then no group's is it
            mode &= ~0o070
        set_mode(file, mode)


def set_mode(file: IO[bytes], mode: int) -> None:
    """Set the file's permissions, where its file system has them."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            os.fchmod(file.fileno(), mode)


def is_locked_now(file: IO[bytes]) -> bool:
    """Take a file's lock, if nobody has it; file systems without locks have one writer."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


def remove(file: IO[bytes], beside: Path) -> None:
    """Remove what this writer has begun, unless another's file has its name now."""
    if sys.platform == "win32":
        file.close()
    elif not is_same(file, beside):
        return
    with contextlib.suppress(OSError):
        beside.unlink()


def is_same(file: IO[bytes], path: Path) -> bool:
    """Whether the file is still the one at `path`: another writer may have renamed it."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


@contextlib.contextmanager
def causes_seen() -> Iterator[None]:
    """Raise what zipfile hides, an interrupt or a full disk: it complains of a part not closed."""
    handled = sys.exc_info()[1]
    try:
        yield
    except ValueError as error:
        if error.__context__ not in (None, handled):
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


def read(path: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
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
                header = json.loads(array_of(archive, "header").tobytes().decode())
                if header["format"] != FORMAT:
                    raise ValueError(f"its format is {header['format']!r}")
                if header["version"] == VERSION:
                    names = header["names"]
                    arrays = {n: array_of(archive, f"array_{i}") for i, n in enumerate(names)}
        except Exception as error:  # whatever the readers of zip, npy and JSON make of it
            if isinstance(error, MemoryError) or is_of_the_system(error):
                raise
            raise CheckpointError(f"{path} is damaged, or no checkpoint: {error}") from error
    if header["version"] != VERSION:
        raise CheckpointError(f"{path} has version {header['version']}, expected {VERSION}")
    return arrays, header


def is_of_the_system(error: Exception) -> bool:
    """Whether reading failed, whatever the file holds; EINVAL is a place before its beginning."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def array_of(archive: Any, name: str) -> npt.NDArray[Any]:
    """An array of a file of `np.savez`, whose size is checked before memory is asked for."""
    member = f"{name}.npy"
    with archive.zip.open(member) as file:
        version = np.lib.format.read_magic(file)
        of_version = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = of_version[version](file)
        needed, found = dtype.itemsize * math.prod(shape), -file.tell()
    found += archive.zip.getinfo(member).file_size
    if needed != found and not dtype.hasobject:  # which numpy refuses
        raise ValueError(f"{name} has {found} bytes, expected {needed}")
    array: npt.NDArray[Any] = archive[name]
    return array


def count(path: str, header: Mapping[str, Any], key: str, below: float = math.inf) -> int:
    """A number of things that a header has."""
    found = header.get(key)
    if type(found) is not int or not 0 <= found < below:
        limit = "" if below == math.inf else f" and < {below}"
        raise CheckpointError(
            f"{path} is damaged: {key} = {found!r}, expected an integer >= 0{limit}"
        )
    return found


def require_same(path: str, where: str, found: Any, expected: Any) -> None:
    """Raise a CheckpointError that names the first difference, in the order of `expected`."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in (*expected, *sorted(found.keys() - expected.keys())):
            inner = f"{where}.{key}" if where else key
            require_same(path, inner, found.get(key), expected.get(key))
    elif found != expected:
        raise CheckpointError(
            f"{path} is of another training: {where} = {found!r}, expected {expected!r}"
        )
