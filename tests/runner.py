"""The core in a process of its own, which reads calls from a pipe: ``tests/native/runner.cpp``.

Arrays are sent as the memory that they lie in, with all that is between their elements, and come
back as that: views of any strides, alignment and overlap are in the other process what they are
here.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Sequence
from typing import IO, Any

DTYPES = (
    *("float16", "bfloat16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
ERRORS = {1: TypeError, 2: ValueError, 3: IndexError, 4: MemoryError, 5: RuntimeError}


class Runner:
    """The process, to which calls are sent one after the other."""

    def __init__(self, name: str, command: Sequence[str], isa: str, forced: bool) -> None:
        self.name = name
        self._command = command
        self._isa = isa
        self._forced = forced
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()  # start() after a death is within a call

    def start(self) -> None:
        """Start the process and see that it runs the ISA that it should."""
        if self._process is None:
            environment = {**os.environ, "GCE_FORCE_ISA": self._isa if self._forced else ""}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, env=environment
            )
            assert self.isa_name() == self._isa

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            with process:
                assert process.stdin
                process.stdin.close()

    def isa_name(self) -> str:
        """What the process says that it runs."""
        return self.send("isa", [], {}, {})[1]

    def send(
        self, action: str, lines: list[tuple[Any, ...]], inputs: Any, outputs: Any
    ) -> tuple[int, str]:
        """Send a call, fill `outputs` with what comes back, and raise what went wrong."""
        arrays = {**inputs, **outputs}
        blocks = _Blocks([*arrays.values()], [*outputs.values()])
        lines = lines + [block.line() for block in blocks.blocks]
        lines += [("array", name, *blocks.describe(array)) for name, array in arrays.items()]
        text = "".join(" ".join(map(str, line)) + "\n" for line in [*lines, (action,)])
        with self._lock:
            assert self._process and self._process.stdin and self._process.stdout
            try:
                self._process.stdin.write(text.encode())
                for block in blocks.blocks:
                    self._process.stdin.write(block.contents())
                self._process.stdin.flush()
                reply = self._process.stdout
                status, number, length = map(int, reply.readline().split())
                message = _read(reply, length).decode()
                for block in blocks.blocks:
                    if block.comes_back:
                        block.write_back(_read(reply, block.high - block.low))
            except (OSError, ValueError, EOFError) as error:
                process, self._process = self._process, None
                process.kill()
                process.communicate()
                self.start()  # for the tests that follow
                raise RuntimeError(
                    f"{self.name}: the process died ({process.returncode})"
                ) from error
        if status != 0:
            raise ERRORS[status](message)
        return number, message


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


class _Block:
    """A stretch of memory that arrays lie in."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.comes_back = False

    def line(self) -> tuple[Any, ...]:
        return ("block", self.high - self.low, self.low % 64, int(self.comes_back))

    def contents(self) -> bytes:
        return ctypes.string_at(self.low, self.high - self.low)

    def write_back(self, data: bytes) -> None:
        # A read-only array is refused, so nothing was written; its memory may not be ours to write.
        if data != self.contents():
            ctypes.memmove(self.low, data, len(data))


class _Blocks:
    """The memory of all arrays of a call: arrays that share memory here share it there."""

    def __init__(self, arrays: list[Any], outputs: list[Any]) -> None:
        self.blocks: list[_Block] = []
        for low, high in sorted(_extent(array) for array in arrays):
            if self.blocks and low < self.blocks[-1].high:
                self.blocks[-1].high = max(high, self.blocks[-1].high)
            else:
                self.blocks.append(_Block(low, high))
        for array in outputs:
            self.blocks[self._of(array)].comes_back = True

    def _of(self, array: Any) -> int:
        low, high = _extent(array)
        return next(i for i, b in enumerate(self.blocks) if b.low <= low and high <= b.high)

    def describe(self, array: Any) -> tuple[Any, ...]:
        number = self._of(array)
        offset = array.ctypes.data - self.blocks[number].low
        dtype = DTYPES.index(array.dtype.name)
        readonly = int(not array.flags.writeable)
        return (number, offset, dtype, readonly, array.ndim, *array.shape, *array.strides)


def _extent(array: Any) -> tuple[int, int]:
    """Addresses that an array reaches."""
    low = high = array.ctypes.data
    if array.size == 0:
        return low, high
    for n, stride in zip(array.shape, array.strides, strict=True):
        reach = (n - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.itemsize
