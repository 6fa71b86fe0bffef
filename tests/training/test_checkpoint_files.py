"""Files of checkpoints: damaged, of other kinds, and what is left when writing them fails."""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed import CALLS, make_trainer
from small_models import FEATURES, batch, everything, linear, perceptron, require_refused

import gce
from gce.onnx.training import SGD, CheckpointError, Trainer, _checkpoint


def trained(steps: int) -> Trainer:
    trainer = Trainer(perceptron())
    for step in range(steps):
        trainer.step(*batch(6, step))
    return trainer


# --- files that are not whole ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A checkpoint of few bytes, mid-accumulation, and what it holds."""
    path = tmp_path_factory.mktemp("small") / "training"
    trainer = small_trainer()
    for step in range(3):
        trainer.step(*batch(6, step))
    trainer.save(path, extra="mine")
    return path, everything(trainer)


def small_trainer() -> Trainer:
    return Trainer(linear((FEATURES, 4)), optimizer=SGD(momentum=0.5), accumulate=2)


def test_every_truncation_is_found(small, tmp_path):
    path, _ = small
    data = path.read_bytes()
    trainer = small_trainer()
    cut = tmp_path / "cut"
    for length in {*range(0, len(data), 7), *range(60), *range(len(data) - 60, len(data))}:
        cut.write_bytes(data[:length])
        require_refused(trainer, cut, "is damaged, or no checkpoint")
    cut.write_bytes(data)
    assert trainer.load(cut) == "mine"


@pytest.mark.parametrize("turn", [0, 1])
def test_every_byte_that_is_flipped_is_found_or_harmless(small, tmp_path, turn):
    # Harmless is what a zip says beside its members' names, places, sizes and checksums: times.
    path, expected = small
    data = path.read_bytes()
    trainer = small_trainer()
    before = everything(trainer)
    damaged, fresh = tmp_path / "damaged", tmp_path / "fresh"
    damaged.write_bytes(data)
    trainer.save(fresh)
    harmless = 0
    with open(damaged, "r+b", buffering=0) as file:
        for position, byte in enumerate(data):
            flip = (0x01, 0x20, 0x80, 0xFF)[(position + turn) % 4]
            os.pwrite(file.fileno(), bytes([byte ^ flip]), position)
            try:
                extra = trainer.load(damaged)
            except CheckpointError:
                assert everything(trainer) == before
            else:
                assert extra == "mine" and everything(trainer) == expected
                harmless += 1
                trainer.load(fresh)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert 0 < harmless < 80 * 4  # members
    assert trainer.load(damaged) == "mine"


def test_checksums_are_compared_first(small, tmp_path):
    # Also of what nobody would have read: an array that says it is shorter than it is.
    data = small[0].read_bytes()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data.replace(b"'shape': (5, 4)", b"'shape': (5, 1)", 1))
    require_refused(small_trainer(), damaged, r"the checksum of array_0\.npy is wrong$")


@pytest.mark.parametrize("seed", range(20))
def test_what_a_disk_may_do(small, tmp_path, seed):
    # Blocks of zeros, of something else, lost, repeated; bytes behind the end.
    path, expected = small
    data = path.read_bytes()
    rng = np.random.default_rng(seed)
    start, end = sorted(rng.integers(0, len(data), 2))
    noise = rng.bytes(end - start)
    for changed in (
        data[:start] + bytes(end - start) + data[end:],
        data[:start] + noise + data[end:],
        data[:start] + data[end:],
        data[:end] + data[start:],
        data + noise,
    ):
        damaged = tmp_path / "damaged"
        damaged.write_bytes(changed)
        trainer = small_trainer()
        before = everything(trainer)
        try:
            assert trainer.load(damaged) == "mine" and everything(trainer) == expected
        except CheckpointError:
            assert everything(trainer) == before


def archive_of(**members: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **members)
    return file.getvalue()


def with_header(small: tuple[Path, list[Any]], **changes: Any) -> bytes:
    """The checkpoint with another header, and right checksums."""
    with np.load(small[0]) as archive:
        members = dict(archive)
    header = {**json.loads(members.pop("header").tobytes()), **changes}
    return archive_of(header=np.frombuffer(json.dumps(header).encode(), np.uint8), **members)


def test_files_of_other_kinds(small, tmp_path):
    trainer = small_trainer()
    path = tmp_path / "other"
    pickled = io.BytesIO()
    np.savez(pickled, header=np.array([object()]))
    later = with_header(small, version=2, names={"no": "list"}, config=None)
    for data, text in (
        (b"", "File is not a zip file"),
        (b"loss: 0.5\n", "File is not a zip file"),
        (perceptron().SerializeToString(), "File is not a zip file"),
        (archive_of(weights=np.ones(3)), "no item named 'header.npy'"),
        (archive_of(header=np.ones(3)), "is damaged, or no checkpoint"),
        (archive_of(header=np.frombuffer(b"[1, 2]", np.uint8)), "is damaged, or no checkpoint"),
        (archive_of(header=np.frombuffer(b"{}", np.uint8)), "is damaged, or no check.*'format'"),
        (pickled.getvalue(), "is damaged, or no checkpoint: Object arrays cannot be loaded"),
        (with_header(small, format="mine"), "is damaged, or no checkpoint: its format is 'mine'"),
        (later, "has version 2, expected 1"),
        (with_header(small, names=["W", "more", "W.momentum"]), "arrays"),
    ):
        path.write_bytes(data)
        require_refused(trainer, path, text)
    path.write_bytes(with_header(small))
    assert trainer.load(path) == "mine"


def test_places_that_cannot_be_read(tmp_path):
    trainer = trained(2)
    before = everything(trainer)
    with pytest.raises(IsADirectoryError):
        trainer.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        trainer.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        trainer.load(tmp_path / "nothing" / "nothing")
    assert everything(trainer) == before


def test_a_header_of_other_things(small, tmp_path):
    trainer = small_trainer()
    path = tmp_path / "other"
    for key in ("steps", "collected"):
        for wrong in ("x", None, [1], -5, 1.5, float("nan"), True):
            path.write_bytes(with_header(small, **{key: wrong}))
            require_refused(trainer, path, rf"is damaged: {key} = .*, expected an integer >= 0")
    path.write_bytes(with_header(small, collected=2))
    require_refused(trainer, path, "collected = 2, expected an integer >= 0 and < 2")
    path.write_bytes(with_header(small, config=None))
    require_refused(trainer, path, "is of another training: parameters = None, expected")


def with_member(small: tuple[Path, list[Any]], name: str, data: bytes) -> bytes:
    """The checkpoint with another part, and right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(small[0]) as old, zipfile.ZipFile(file, "w") as new:
        for each in old.namelist():
            new.writestr(each, data if each == name else old.read(each))
    return file.getvalue()


def test_arrays_of_other_sizes_than_they_say(small, tmp_path):
    trainer = small_trainer()
    path = tmp_path / "other"
    for shape in ((10**12,), (2, 10**12), (0,)):
        part = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(part, header)
        path.write_bytes(with_member(small, "array_0.npy", part.getvalue() + b"1234"))
        require_refused(trainer, path, "array_0 has 4 bytes, expected ")
    for data in (b"no array", b"\x93NUMPY\x07\x00v\x00{}"):
        path.write_bytes(with_member(small, "array_0.npy", data))
        require_refused(trainer, path, "is damaged, or no checkpoint")


def test_many_that_write_one_file(tmp_path):
    """Each reads a whole one at any moment, and nothing is left."""
    path = tmp_path / "training"
    arrays = [{"a": np.full(20_000, i, "f4")} for i in range(4)]
    _checkpoint.write(path, arrays[0], {})
    end = threading.Event()
    found: list[Any] = []

    def write(i: int) -> None:
        try:
            while not end.is_set():
                _checkpoint.write(path, arrays[i], {})
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            read, _ = _checkpoint.read(path)
            assert read["a"].tobytes() in [each["a"].tobytes() for each in arrays]
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert found == []
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_that_another_writer_holds(tmp_path):
    path, beside = tmp_path / "training", tmp_path / "training.gce-tmp"
    beside.write_bytes(b"half of a checkpoint")
    with open(beside, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        trained(1).save(path)
        assert beside.read_bytes() == b"half of a checkpoint"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["training", "training.gce-tmp"]
    trained(2).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["training"]


# --- writing that fails ---------------------------------------------------------------------------


def require_old_file(path: Path, data: bytes) -> None:
    assert path.read_bytes() == data
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_extra_that_json_cannot_hold(tmp_path):
    trainer, path = trained(1), tmp_path / "training"
    trainer.save(path)
    data = path.read_bytes()
    endless: list[Any] = []
    endless.append(endless)
    for extra, error in ((object(), TypeError), (np.ones(2), TypeError), (endless, ValueError)):
        with pytest.raises(error):
            trainer.save(path, extra=extra)
        require_old_file(path, data)


def test_places_that_cannot_be_written(tmp_path):
    trainer, path = trained(1), tmp_path / "training"
    trainer.save(path)
    data = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        trainer.save(tmp_path / "nothing" / "training")
    with pytest.raises(NotADirectoryError):
        trainer.save(path / "training")
    require_old_file(path, data)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder") as raised:
        trainer.save(folder)
    assert raised.value.errno == errno.EISDIR
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "training"]
    with pytest.raises(OSError, match="folders") as raised:
        trainer.save(f"{folder}s/")
    assert raised.value.errno == errno.EISDIR
    assert not Path(f"{folder}s").exists()


def test_what_is_no_file_is_not_replaced(tmp_path):
    trainer, pipe = trained(1), tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/null")):
        with pytest.raises(OSError, match=r"path is a device, a pipe or a socket, expected a file"):
            trainer.save(place)
    assert pipe.is_fifo() and Path("/dev/null").is_char_device()
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


def test_what_others_have_beside_the_file(tmp_path):
    # What a killed process has left is used again; anything else is left as it is.
    trainer, path = make_trainer(), tmp_path / "training"
    other, beside = tmp_path / "other", tmp_path / "training.gce-tmp"
    beside.write_bytes(b"half of a checkpoint")
    trainer.save(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    other.write_bytes(b"another's")
    for put in (
        lambda: beside.symlink_to(other),
        lambda: beside.symlink_to(tmp_path / "nothing"),
        lambda: beside.hardlink_to(other),
        lambda: os.mkfifo(beside),
        lambda: beside.mkdir(),
    ):
        put()
        before = os.lstat(beside)
        trainer.step(*batch(6, 1))
        trainer.save(path)
        assert os.path.samestat(os.lstat(beside), before) and not path.is_symlink()
        assert make_trainer().load(path) is None
        assert other.read_bytes() == b"another's"
        assert sorted(each.name for each in tmp_path.iterdir()) == ["other", path.name, beside.name]
        beside.rmdir() if beside.is_dir() and not beside.is_symlink() else beside.unlink()


def test_a_link_and_permissions_are_kept(tmp_path):
    trainer, path = make_trainer(), tmp_path / "training"
    (tmp_path / "folder").mkdir()
    named, link = tmp_path / "folder" / "step-1", tmp_path / "latest"
    link.symlink_to(named)
    for mode in (None, 0o600, 0o444):
        if mode is not None:
            named.chmod(mode)
        trainer.step(*batch(6, 1))
        trainer.save(link)
        assert link.is_symlink() and link.resolve() == named
        resumed = make_trainer()
        resumed.load(named)
        assert everything(resumed) == everything(trainer)
        if mode is not None:
            assert named.stat().st_mode & 0o777 == mode
    assert [each.name for each in named.parent.iterdir()] == [named.name]
    trainer.save(path)
    umask = os.umask(0o22)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("belongs", [True, False])
def test_nobody_else_reads_the_new_file(tmp_path, monkeypatch, belongs):
    trainer, path = trained(1), tmp_path / "training"
    trainer.save(path)
    path.chmod(0o640)
    modes, groups = [], []
    savez = np.savez

    def watched_savez(file: Any, **arrays: Any) -> None:
        modes.append(os.fstat(file.fileno()).st_mode & 0o777)
        savez(file, **arrays)

    def fchown(descriptor: int, user: int, group: int) -> None:
        groups.append((user, group))
        if not belongs:
            raise PermissionError(errno.EPERM, "not of this group")

    monkeypatch.setattr(np, "savez", watched_savez)
    monkeypatch.setattr(os, "fchown", fchown)
    # What a killed process has left may be for others to read.
    beside = tmp_path / "training.gce-tmp"
    beside.write_bytes(b"half of a checkpoint")
    beside.chmod(0o666)
    expected = (-1, path.stat().st_gid)
    trainer.save(path)
    assert modes == [0o600] and groups == [expected]
    assert path.stat().st_mode & 0o777 == (0o640 if belongs else 0o600)


def test_an_error_while_another_is_handled(tmp_path, monkeypatch):
    # In a handler of another exception, which is not what failed.
    def savez(file: Any, **arrays: Any) -> None:
        raise ValueError("of numpy")

    monkeypatch.setattr(np, "savez", savez)
    try:
        raise KeyError("of the caller")
    except KeyError:
        with pytest.raises(ValueError, match="of numpy"):
            trained(1).save(tmp_path / "training")


def test_paths_of_any_type(tmp_path):
    trainer, path = trained(1), tmp_path / "training"
    for each in (path, str(path), os.fsencode(path)):
        trainer.save(each)
        trainer.load(each)
        path.unlink()
    reading, writing = os.pipe()
    for each in (reading, True, None):
        for call in (trainer.save, trainer.load):
            kind = type(each).__name__
            with pytest.raises(TypeError, match=f"^path has type {kind}, expected str, bytes or"):
                call(each)
    os.close(reading)  # it is open still
    os.close(writing)


def test_an_error_of_the_disk_is_no_damage(tmp_path, monkeypatch):
    trainer, path = trained(1), tmp_path / "training"
    trainer.save(path)
    for number, kind in ((errno.EIO, OSError), (errno.EINVAL, CheckpointError)):

        def testzip(archive: Any, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("zipfile.ZipFile.testzip", testzip)
        with pytest.raises(kind, match=re.escape(os.strerror(number))) as raised:
            trainer.load(path)
        assert raised.type is kind


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path):
    # By a limit on the size of files: an error of the same kind, from the same calls.
    trainer, path = trained(1), tmp_path / "training"
    trainer.save(path)
    data = path.read_bytes()
    trainer.step(*batch(6, 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 1, 100, len(data) // 2, len(data) - 300, len(data) - 30, len(data) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError) as raised:
                trainer.save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert raised.value.errno == errno.EFBIG
        require_old_file(path, data)
    trainer.save(path)
    assert path.read_bytes() != data


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_system_leaves_the_old_file(tmp_path, monkeypatch, call, error):
    trainer, path = trained(1), tmp_path / "training"
    trainer.save(path)
    data = path.read_bytes()

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        trainer.save(path)
    require_old_file(path, data)
    monkeypatch.undo()
    trainer.save(path)


# The archive that was not closed says so when it is freed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TimeoutError, RuntimeError])
def test_an_interrupt_while_a_part_of_the_archive_is_closed(tmp_path, monkeypatch, error):
    trainer, path = trained(1), tmp_path / "training"
    trainer.save(path)
    data = path.read_bytes()

    def close(part: Any) -> None:
        raise error("now")

    monkeypatch.setattr("zipfile._ZipWriteFile.close", close)
    with pytest.raises(error, match="now"):
        trainer.save(path)
    require_old_file(path, data)
    monkeypatch.undo()
    trainer.save(path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells what is synced")
def test_a_file_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    # Written, flushed, synced, renamed, and the folder synced: in this order.
    calls = []
    order = itertools.count()
    fsync, replace = os.fsync, os.replace
    path = tmp_path / "training"

    def watched_fsync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append((next(order), "fsync", target, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def watched_replace(old: Any, new: Any) -> None:
        calls.append((next(order), "replace", str(new), os.stat(old).st_size))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    trained(1).save(path)
    size = path.stat().st_size
    assert [call[1:3] for call in calls] == [
        ("fsync", f"{path}.gce-tmp"), ("replace", str(path)), ("fsync", str(tmp_path)),
    ]  # fmt: skip
    assert calls[0][3] == calls[1][3] == size


# --- processes that are killed --------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where the trainings of killed.py have been, and what it says of them."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder)]
    # The gce that is tested here, be another installed.
    environment = {**os.environ, "PYTHONPATH": str(Path(gce.__file__).parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    return folder, json.loads(run.stdout)


def test_a_training_that_is_killed_again_and_again(killed):
    # At random moments, most of them while it writes; it has the losses of one that was not.
    folder, results = killed
    found = results["random"]
    assert found["code"] == 0 and found["began"]
    assert found["killed"] >= 3
    whole, resumed = make_trainer(), make_trainer()
    expected = [float(whole.step(*batch(6, call))) for call in range(CALLS)]
    assert resumed.load(folder / "random") == expected
    assert everything(resumed) == everything(whole)
    assert resumed.steps == CALLS // 3


@pytest.mark.parametrize("count", [0, 1, 1000, 4000])
def test_killed_while_it_writes(killed, count):
    _, results = killed
    found = results[f"after {count} bytes"]
    assert found == {"signal": signal.SIGXFSZ, "found": "old", "beside": found["beside"]}
    assert 0 <= found["beside"] <= count


@pytest.mark.parametrize(
    ("moment", "found", "beside"),
    [
        ("before fsync", "old", True),
        ("after fsync", "old", True),
        ("before replace", "old", True),
        ("after replace", "new", False),
    ],
)
def test_killed_in_between(killed, moment, found, beside):
    folder, results = killed
    assert results[moment]["signal"] == signal.SIGKILL
    assert results[moment]["found"] == found
    assert (results[moment]["beside"] is not None) is beside
    # The next one is written over what is left.
    trainer = make_trainer()
    trainer.save(folder / moment, extra="newest")
    assert make_trainer().load(folder / moment) == "newest"
    assert not (folder / f"{moment}.gce-tmp").exists()
