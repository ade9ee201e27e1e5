# SPDX-License-Identifier: Apache-2.0
"""Values of attributes while a volume is edited: small ones, as a whole.

A value in clusters is never changed where it is: the new one goes to other clusters, and the
record that leads there decides.  Only on a full volume is it overwritten.

Content of files is in `edit.content`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fsdrivers.errors import CorruptError, NoSpaceError
from fsdrivers.ntfs.edit.attributes import EditAttribute
from fsdrivers.ntfs.edit.bits import Allocator
from fsdrivers.ntfs.edit.store import Store
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.runs import HOLE, Run, join_runs
from fsdrivers.ntfs.streams import read_mapped

DEFAULT_LIMIT: Final = 64 << 20  # bytes
_SMALL: Final = 64  # bytes: a value of this size returns into its record


class Values:
    """Reads and replaces values; where all bytes outside records go is known here."""

    def __init__(self, store: Store, geometry: Geometry, allocator: Allocator) -> None:
        self.store = store
        self.geometry = geometry
        self.allocator = allocator
        self._waiting: list[tuple[list[Run], bytes]] = []

    def finish(self) -> None:
        """End an operation: overwrite what has to be."""
        waiting, self._waiting = self._waiting, []
        for runs, value in waiting:
            self._write(runs, value)

    def drop(self) -> None:
        """Take back what the operation under way did."""
        self._waiting = []

    def read(self, attribute: EditAttribute, limit: int = DEFAULT_LIMIT) -> bytes:
        """Return the value of an attribute that is not compressed.

        Raises:
            CorruptError: it has more than `limit` bytes, or leaves the volume.
        """
        if attribute.value is not None:
            return attribute.value
        if attribute.data_size > limit:
            raise CorruptError(
                f"size of attribute {attribute.type:#x}", None, limit, attribute.data_size
            )
        mapped = self.mapped(attribute)
        size = min(attribute.data_size, attribute.initialised_size)
        data = read_mapped(self.store, mapped, 0, size) if size else b""
        return data.ljust(attribute.data_size, b"\0")

    def mapped(self, attribute: EditAttribute) -> list[tuple[int, int, int]]:
        """Return (offset, length, position) of what is allocated of an attribute."""
        limit = self.geometry.cluster_count
        end = max(
            (run.start + run.clusters for run in attribute.runs if run.start != HOLE), default=0
        )
        if end > limit:
            raise CorruptError("a run ends outside the volume", None, f"at most {limit}", end)
        return mapped_runs(attribute.runs, self.geometry.cluster_size)

    def replace(self, attribute: EditAttribute, value: bytes) -> None:
        """Give an attribute another value; in the record or not, as before.

        Raises:
            NoSpaceError: no room; nothing has changed.
        """
        if attribute.value is not None:
            attribute.value = value
            return
        old, room = attribute.runs, attribute.clusters * self.geometry.cluster_size
        if len(value) <= _SMALL:
            self.allocator.free(old)
            attribute.value, attribute.runs = value, []
            return
        try:
            runs = self._write_new(value)
        except NoSpaceError:
            if len(value) > room:
                raise
            self._waiting.append((old, value))
        else:
            self.allocator.free(old)
            attribute.runs = runs
        attribute.data_size = attribute.initialised_size = len(value)

    def move_out(self, attribute: EditAttribute) -> None:
        """Give the value of a resident attribute clusters of its own.

        Raises:
            NoSpaceError: no room; nothing has changed.
        """
        value = attribute.value
        assert value is not None
        attribute.runs = self._write_new(value)
        attribute.data_size = attribute.initialised_size = len(value)
        attribute.value = None
        attribute.resident_flags = 0
        attribute.reserved = b""

    def _write_new(self, value: bytes) -> list[Run]:
        """Write a value into clusters that were free; return them."""
        runs = self.allocator.allocate(self.geometry.clusters_of(len(value)))
        self._write(runs, value)
        return join_runs(runs)

    def clear(self, runs: list[Run]) -> None:
        """Fill clusters with zeros."""
        size = self.geometry.cluster_size
        for start, count in runs:
            self.store.write(start * size, bytes(count * size))

    def _write(self, runs: list[Run], value: bytes) -> None:
        size, at = self.geometry.cluster_size, 0
        for start, count in runs:
            part = value[at : at + count * size]
            if not part:
                return
            self.store.write(start * size, part.ljust(-(-len(part) // size) * size, b"\0"))
            at += len(part)


def mapped_runs(runs: Sequence[Run], cluster_size: int) -> list[tuple[int, int, int]]:
    """Return (offset, length, position) of what is allocated, in bytes."""
    made, vcn = list[tuple[int, int, int]](), 0
    for start, clusters in runs:
        if start != HOLE:
            made.append((vcn * cluster_size, clusters * cluster_size, start * cluster_size))
        vcn += clusters
    return made
