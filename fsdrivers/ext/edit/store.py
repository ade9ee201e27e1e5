# SPDX-License-Identifier: Apache-2.0
"""Metadata blocks of a volume that is being edited, and their changes.

Changes are kept in two layers: those of the operation under way, which `drop` takes back, and
those of finished operations that are not on the medium yet (`pending`).  A `Store` is itself a
read-only device that shows both, so the readers of this package see the volume as edited.

Not here: when and in which order pending blocks are written (`edit.commit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError
from fsdrivers.guarded import GuardedDevice


class Role(IntEnum):
    """What a block is: where it stands in the order of writes."""

    MAP = 1  # extent blocks, indirect blocks, attribute blocks, new directory blocks
    INODES = 2
    DIRECTORY = 3
    BITMAP = 4
    FRAME = 5  # group descriptors, superblock, orphan file


class Store(GuardedDevice):
    """See the module.  `is_writable` is that of `Device`: writes come through the methods below."""

    def __init__(self, device: Device, block_size: int) -> None:
        super().__init__(device)
        self.block_size = block_size
        self.blocks_count = device.size // block_size  # those of the volume, once it is known
        self.pending: dict[int, bytearray] = {}
        self.roles: dict[int, Role] = {}
        self.late_inodes: set[int] = set()  # whose links fall: see `edit.commit`
        self._changed: dict[int, bytearray] = {}
        self._changed_roles: dict[int, Role] = {}
        self._changed_late: set[int] = set()

    def block(self, number: int) -> bytes | bytearray:
        """Return a block as it is now; the caller must not change it.

        Raises:
            CorruptError: the volume has no such block; a damaged map led there.
        """
        if not 0 <= number < self.blocks_count:
            raise CorruptError("block number", None, f"less than {self.blocks_count}", number)
        found = self._changed.get(number)
        if found is None:
            found = self.pending.get(number)
        if found is None:
            return self.device.read(number * self.block_size, self.block_size)
        return found

    def edit(self, number: int, role: Role) -> bytearray:
        """Return a block to be changed in place by the operation under way."""
        found = self._changed.get(number)
        if found is None:
            found = self._changed[number] = bytearray(self.block(number))
            self._changed_roles[number] = role
        return found

    def put(self, number: int, data: bytes | bytearray, role: Role) -> bytearray:
        """Set the content of a block whose old one does not matter; return it for changes."""
        assert len(data) == self.block_size, "a whole block"
        found = self._changed[number] = bytearray(data)
        self._changed_roles[number] = role
        return found

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write to the medium at once, as `GuardedDevice.write` does.

        Raises:
            CorruptError: the volume ends before; a damaged map led there.
            DeviceError: it failed, now or earlier; the state of the medium is unknown.
        """
        if position + memoryview(data).nbytes > self.blocks_count * self.block_size:
            raise CorruptError("place of content", position, "a place on the volume")
        super().write(position, data)

    def hold_back(self, inode: int) -> None:
        """Note that an inode loses links in the operation under way."""
        self._changed_late.add(inode)

    def changed_count(self, *, with_pending: bool = False) -> int:
        """Return how many blocks the operation under way, or it and those before, changed."""
        if with_pending:
            return len(self._changed.keys() | self.pending.keys())
        return len(self._changed)

    def keep(self) -> None:
        """End an operation: its changes are pending now."""
        self.pending.update(self._changed)
        self.roles.update(self._changed_roles)
        self.late_inodes |= self._changed_late
        self.drop()

    def drop(self) -> None:
        """Take back what the operation under way changed."""
        self._changed = {}
        self._changed_roles = {}
        self._changed_late = set()

    def written(self) -> None:
        """Forget the pending blocks: they are on the medium."""
        self.pending = {}
        self.roles = {}
        self.late_inodes = set()

    def read(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes of the volume as edited."""
        if not (self._changed or self.pending) or not length:
            return self.device.read(position, length)
        size = self.block_size
        first, end = position // size, -(-(position + length) // size)
        if end - first == 1:
            start = position - first * size
            return bytes(memoryview(self.block(first))[start : start + length])
        data: bytearray | None = None
        for number in self._known(first, end):
            if data is None:
                data = bytearray(self.device.read(position, length))
            low, high = max(position, number * size), min(position + length, (number + 1) * size)
            content = memoryview(self.block(number))[low - number * size : high - number * size]
            data[low - position : high - position] = content
        return self.device.read(position, length) if data is None else bytes(data)

    def _known(self, first: int, end: int) -> Iterator[int]:
        """Yield the blocks of a range that are changed or pending."""
        for layer in (self.pending, self._changed):
            if len(layer) < end - first:
                yield from [number for number in layer if first <= number < end]
            else:
                yield from [number for number in range(first, end) if number in layer]
