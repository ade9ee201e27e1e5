# SPDX-License-Identifier: Apache-2.0
"""Damaged volumes, drawn by seed: small changes in the metadata of a volume in memory.

Metadata is whatever holds something and is not content of a file; so the same code serves every
filesystem.  Most changes hit bytes that are not zero, where fields are.
"""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fsdrivers.device import Device, MemoryDevice
from fsdrivers.errors import FilesystemError
from fsdrivers.volume import Kind, Volume

LARGEST = 64 << 20  # bytes of memory that looking at one small damaged volume may take
UNIT = 512  # bytes: metadata is looked for in pieces of this size
_SLOT = 32  # bytes: what is wiped as a whole


class Damage(NamedTuple):
    """Bytes that replace others."""

    position: int
    data: bytes


def metadata_units(device: MemoryDevice, volume: Volume) -> list[int]:
    """Return the positions of all pieces of UNIT bytes that hold metadata.

    Of equal pieces side by side (the pages of a blank log) only the first and the last count.
    """
    content: set[int] = set()
    for entry in volume.walk():
        if entry.node.kind is Kind.FILE:
            for extent in volume.extents(entry.node):
                first, end = extent.position // UNIT, extent.position + extent.length
                content.update(range(first, -(-end // UNIT)))
    found: list[int] = []
    last: list[bytes] = []
    for position in range(0, device.size, UNIT):
        data = device.read(position, UNIT)
        if position // UNIT in content or not any(data):
            last.clear()
            continue
        if last[-2:] == [data, data]:
            found[-1] = position
            continue
        found.append(position)
        last.append(data)
    return found


def draw_damages(
    device: MemoryDevice, units: Sequence[int], count: int, seed: int
) -> Iterator[Damage]:
    """Yield `count` changes, each of one to UNIT bytes, the same for the same seed."""
    choices = random.Random(seed)
    while count:
        unit = choices.choice(units)
        old = device.read(unit, UNIT)
        filled = [at for at, value in enumerate(old) if value]
        at = choices.choice(filled) if choices.random() < 0.7 else choices.randrange(UNIT - 4)
        value = old[at]
        step = int.from_bytes(old[at : at + 2], "little") + choices.choice((-1, 1)) & 0xFFFF
        slot = at - at % _SLOT
        at, new = choices.choice(
            (
                (at, bytes([value ^ 1 << choices.randrange(8)])),
                (at, bytes([value ^ 0xFF])),
                (at, bytes(2)),
                (at, b"\xff" * 4),
                (at, step.to_bytes(2, "little")),
                (at, choices.randbytes(2)),
                (slot, bytes(_SLOT)),
                (slot, device.read(choices.choice(units), _SLOT)),
            )
        )
        new = new[: UNIT - at]
        if new != old[at : at + len(new)]:
            count -= 1
            yield Damage(unit + at, new)


def assert_nothing_missed(
    device: MemoryDevice,
    volume: Volume,
    image: Path,
    theirs: Callable[[Path], list[str]],
    ours: Callable[[Device], Sequence[object]],
    *,
    count: int,
    seed: int,
    share: int = 4,
    is_legal: Callable[[list[str]], bool] = lambda complaints: False,
) -> None:
    """Assert that what a foreign checker objects to is clean to ours in no case.

    Args:
        device: holds a sound volume.
        volume: that one, opened.
        image: where the foreign checker finds it.
        theirs: gives the complaints of the foreign checker.
        ours: gives the findings of our own.
        count: of damaged volumes.
        seed: of the damages.
        share: one in so many damaged volumes must be objected to.
        is_legal: whether these complaints are of what the format allows.
    """

    def findings() -> Sequence[object]:
        try:
            return ours(device)
        except FilesystemError as error:
            return [error]

    image.write_bytes(device.read(0, device.size))
    assert theirs(image) == []
    assert findings() == []
    missed, objections = [], 0
    with open(image, "r+b", buffering=0) as file:
        for damage in draw_damages(device, metadata_units(device, volume), count, seed):
            with damaged(device, damage) as before:
                os.pwrite(file.fileno(), damage.data, damage.position)
                complaints = theirs(image)
                objections += bool(complaints)
                if complaints and not findings() and not is_legal(complaints):
                    missed.append((hex(damage.position), before, damage.data, complaints[:3]))
                os.pwrite(file.fileno(), before, damage.position)

    assert missed == []
    assert objections > count // share, "the damage is such as a checker can see"


@contextmanager
def bounded_memory(*, is_traced: bool = False) -> Iterator[None]:
    """Assert that the block takes no more than LARGEST bytes more than there were before.

    What was touched is measured by the kernel, at no cost; traced, which is slow, also what was
    only asked for.
    """
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back.  Source: proc(5)
    before = _memory("VmRSS")
    if is_traced:
        tracemalloc.start()
    try:
        yield
        if is_traced:
            assert tracemalloc.get_traced_memory()[1] < LARGEST
    finally:
        tracemalloc.stop()
    assert _memory("VmHWM") - before < LARGEST


def _memory(key: str) -> int:
    """Return what the kernel counts of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"no {key}")


@contextmanager
def damaged(device: MemoryDevice, damage: Damage) -> Iterator[bytes]:
    """Apply a change for the time of the block; gives what was there before."""
    before = device.read(damage.position, len(damage.data))
    device.write(damage.position, damage.data)
    try:
        yield before
    finally:
        device.write(damage.position, before)
