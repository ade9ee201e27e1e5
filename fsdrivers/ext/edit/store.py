# SPDX-License-Identifier: Apache-2.0
"""Metadata blocks of a volume that is being edited, and their changes: see `fsdrivers.layered`.

Not here: when and in which order pending blocks are written (`edit.commit`).
"""

from __future__ import annotations

from enum import IntEnum

from fsdrivers.device import Device
from fsdrivers.errors import CorruptError
from fsdrivers.layered import LayeredDevice


class Role(IntEnum):
    """What a block is: where it stands in the order of writes."""

    MAP = 1  # extent blocks, indirect blocks, attribute blocks, new directory blocks
    INODES = 2
    DIRECTORY = 3
    BITMAP = 4
    FRAME = 5  # group descriptors, superblock, orphan file


class Store(LayeredDevice[bytearray]):
    """The blocks of one volume."""

    def __init__(self, device: Device, block_size: int) -> None:
        super().__init__(device, block_size)
        self.block_size = block_size
        self.blocks_count = device.size // block_size  # those of the volume, once it is known
        self.roles: dict[int, Role] = {}
        self.late_inodes: set[int] = set()  # whose links fall: see `edit.commit`
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
        self.roles.update(self._changed_roles)
        self.late_inodes |= self._changed_late
        super().keep()

    def drop(self) -> None:
        """Take back what the operation under way changed."""
        super().drop()
        self._changed_roles = {}
        self._changed_late = set()

    def written(self) -> None:
        """Forget the pending blocks: they are on the medium."""
        super().written()
        self.roles = {}
        self.late_inodes = set()
