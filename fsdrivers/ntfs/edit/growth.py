# SPDX-License-Identifier: Apache-2.0
"""The MFT grows: more clusters, blank records in them, a longer bitmap.

Grows by a sixteenth, at least 64 records and at most 4 MiB, or by as little as one record where
there is no room for more.

Source: [ntfs-3g] libntfs-3g/mft.c.  Not here: an MFT that shrinks; Windows has none either.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.ntfs.edit.attributes import EditAttribute, OpenFile
from fsdrivers.ntfs.edit.records import Records
from fsdrivers.ntfs.edit.values import Values
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.runs import Run, join_runs
from fsdrivers.ntfs.streams import Content

_LEAST_RECORDS: Final = 64
_MOST_SIZE: Final = 4 << 20
_PART: Final = 16
_BITMAP_UNIT: Final = 8  # bytes: the size of the MFT's bitmap is a multiple of it


class MftGrowth:
    """Makes the MFT larger."""

    def __init__(self, records: Records, values: Values) -> None:
        self._records = records
        self._mft = records.mft
        self._values = values
        self._before: tuple[Content, int] | None = None  # at the start of the operation

    def grow(self, file: OpenFile) -> None:
        """Make room for at least one record.

        Args:
            file: $MFT.

        Raises:
            NoSpaceError: there is none; nothing has changed.
        """
        data = file.get(AttributeType.DATA)
        record_size, cluster_size = self._records.size, self._values.geometry.cluster_size
        runs, goal = list(data.runs), None
        if data.runs:
            goal = data.runs[-1].start + data.runs[-1].clusters
        spare = data.clusters * cluster_size - data.data_size
        if spare < record_size:
            wanted = max(_LEAST_RECORDS * record_size, min(data.data_size // _PART, _MOST_SIZE))
            runs += self._allocate(wanted, goal)
        size = sum(run.clusters for run in runs) * cluster_size // record_size * record_size
        first, end = data.data_size // record_size, size // record_size
        self._grow_bitmap(file.get(AttributeType.BITMAP), end)
        data.runs = join_runs(runs)
        data.data_size = data.initialised_size = size
        file.touch()
        if self._before is None:
            self._before = self._mft.content, self._records.bits.count
        self._records.bits.grow(end)
        mapped = self._values.mapped(data)
        self._mft.set_content(
            Content(size, size, mapped=mapped, allocated=size, clusters=data.clusters)
        )
        self._records.format(first, end)

    def _allocate(self, wanted: int, goal: int | None) -> list[Run]:
        """Return clusters for records, for one at least."""
        step = max(1, self._records.size // self._values.geometry.cluster_size)
        count = -(-wanted // self._values.geometry.cluster_size // step) * step
        while True:
            try:
                return self._values.allocator.allocate(count, goal, step)
            except NoSpaceError:
                if count <= step:
                    raise
                count = max(step, count // 2 // step * step)

    def _grow_bitmap(self, bitmap: EditAttribute, count: int) -> None:
        """Make the MFT's bitmap long enough; what is new of it is written as zeros."""
        if bitmap.value is not None:
            raise UnsupportedError("an MFT whose bitmap is inside its record")
        needed = -(-count // 8 // _BITMAP_UNIT) * _BITMAP_UNIT
        if needed <= bitmap.data_size:
            return
        missing = self._values.geometry.clusters_of(needed) - bitmap.clusters
        if missing > 0:
            goal = bitmap.runs[-1].start + bitmap.runs[-1].clusters if bitmap.runs else None
            made = self._values.allocator.allocate(missing, goal)
            self._values.clear(made)
            bitmap.runs = join_runs([*bitmap.runs, *made])
        bitmap.data_size = bitmap.initialised_size = needed

    def keep(self) -> None:
        """End an operation."""
        self._before = None

    def drop(self) -> None:
        """Take back what the operation under way did."""
        if self._before is not None:
            content, count = self._before
            self._mft.set_content(content)
            self._records.bits.count = count
            self._before = None
