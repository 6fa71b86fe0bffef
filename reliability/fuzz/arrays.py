"""Arrays of any layout, and bytes of all that an array could reach."""

from __future__ import annotations

from typing import Any

import numpy as np

from reliability.fuzz.choices import Choices


class Subclass(np.ndarray[Any, Any]):
    """An ndarray of another class."""


def plain(array: Any) -> Any:
    """In C order, as it is."""
    return array


def transposed(array: Any) -> Any:
    """In Fortran order."""
    return np.asfortranarray(array)


def strided(array: Any) -> Any:
    """With gaps along the last axis."""
    wide = np.zeros((*array.shape[:-1], 3 * array.shape[-1]), array.dtype)
    wide[..., ::3] = array
    return wide[..., ::3]


def backwards(array: Any) -> Any:
    """With negative strides along every axis."""
    turned = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[turned])[turned]


def unaligned(array: Any) -> Any:
    """One byte off, in memory that ends where the array does."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def repeated(array: Any) -> Any:
    """The first along the first axis, for all of it: its stride is 0."""
    if array.shape[0] == 0:
        return array
    return np.broadcast_to(array[:1].copy(), array.shape)


def read_only(array: Any) -> Any:
    """A copy that cannot be written."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def subclass(array: Any) -> Any:
    """Of another class."""
    return array.view(Subclass)


LAYOUTS = (plain, transposed, strided, backwards, unaligned, read_only, subclass, repeated)
WRITABLE = LAYOUTS[:5]


def laid_out(choices: Choices, array: Any, layouts: Any = LAYOUTS) -> Any:
    """The array with one of these layouts."""
    if array.ndim == 0 or not choices.chance(0.5):
        return array
    return choices.one(layouts)(array)


def memory(array: Any) -> Any:
    """The array whose memory this one is in; itself where that is no array's."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return owner


class Snapshot:
    """What arrays and their surroundings hold; elements with references to objects apart."""

    def __init__(self, arrays: list[Any]) -> None:
        owners = {id(owner): owner for owner in map(memory, arrays) if not owner.dtype.hasobject}
        # Huge ones have strides of 0 and hold one element.
        self.owners = [owner for owner in owners.values() if owner.size < 1 << 24]
        self.bytes = [owner.tobytes() for owner in self.owners]

    def changed(self) -> list[Any]:
        """Those that hold something else now."""
        pairs = zip(self.owners, self.bytes, strict=True)
        return [owner for owner, before in pairs if owner.tobytes() != before]

    def restore(self) -> None:
        """Make it so again."""
        for owner, before in zip(self.owners, self.bytes, strict=True):
            if owner.flags.writeable and owner.size:
                owner[...] = np.frombuffer(before, owner.dtype).reshape(owner.shape)
