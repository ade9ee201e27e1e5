# SPDX-License-Identifier: Apache-2.0
"""Content of files: written, cut and made longer, inside the record and outside it.

Bytes go to the medium at the end of the operation they are given in: into clusters to which
nothing leads yet, or into the file that is written.  What its record says follows with the
commit.

* A stream stays in its record while there is room, and leaves it for good then.
* A gap of 64 KiB or more becomes a hole, and the stream sparse; a smaller one is zeros.
* Making a stream longer allocates nothing that is written: what is behind the initialised size
  reads as zeros.

Refused: writing into compressed and encrypted streams, and cutting them other than to nothing.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.errors import UnsupportedError
from fsdrivers.ntfs.edit.attributes import EditAttribute, OpenFile, slice_runs
from fsdrivers.ntfs.edit.files import Files
from fsdrivers.ntfs.edit.store import clipped
from fsdrivers.ntfs.edit.values import Values, mapped_runs
from fsdrivers.ntfs.format.attributes import COMPRESSION_UNIT_SHIFT, AttributeFlag
from fsdrivers.ntfs.runs import HOLE, Run, join_runs
from fsdrivers.ntfs.streams import read_mapped

MAXIMUM_SIZE: Final = (1 << 44) - (64 << 10)  # bytes: what Windows allows with small clusters
_HOLE_SIZE: Final = 64 << 10
_STORED_OTHERWISE: Final = (AttributeFlag.COMPRESSION_MASK | AttributeFlag.ENCRYPTED).value
_SPARSE: Final = AttributeFlag.SPARSE.value


class Contents:
    """Changes streams; callers save the file afterwards."""

    def __init__(self, files: Files, values: Values) -> None:
        self._files = files
        self._values = values
        self._size = values.geometry.cluster_size
        self._waiting: list[tuple[int, memoryview | int]] = []  # position, bytes or how many zeros

    @property
    def is_waiting(self) -> bool:
        """Whether the operation under way has content to write."""
        return bool(self._waiting)

    def finish(self) -> None:
        """End an operation: nothing can fail any more but the medium, so write what waits."""
        waiting, self._waiting = self._waiting, []
        for position, data in waiting:
            if isinstance(data, int):
                self._values.store.zero(position, data)
            else:
                self._values.store.write(position, data)

    def drop(self) -> None:
        """Take back what the operation under way did."""
        self._waiting = []

    def write(
        self,
        file: OpenFile,
        attribute: EditAttribute,
        offset: int,
        data: memoryview,
        *,
        with_holes: bool = True,
    ) -> None:
        """Write bytes into a stream; with zeros for every gap if it is to have no holes.

        Raises:
            NoSpaceError: no room; nothing was written.
            UnsupportedError: see the module; or the stream would become too large.
        """
        if not data:
            return
        end = offset + len(data)
        self._check(attribute, end)
        file.touch()
        if attribute.value is not None:
            old = attribute.value
            if max(end, len(old)) <= self._files.resident_room(file, attribute):
                made = old.ljust(offset, b"\0")
                attribute.value = made[:offset] + bytes(data) + old[end:]
                return
            self._make_non_resident(attribute)
        self._write_clusters(attribute, offset, data, with_holes)

    def _check(self, attribute: EditAttribute, size: int) -> None:
        if size > MAXIMUM_SIZE:
            raise UnsupportedError(f"a file of {size} bytes")
        if attribute.flags & _STORED_OTHERWISE:
            if attribute.value is not None and not attribute.flags & AttributeFlag.ENCRYPTED:
                return
            is_compressed = attribute.flags & AttributeFlag.COMPRESSION_MASK
            raise UnsupportedError(
                f"writing into {'a compressed' if is_compressed else 'an encrypted'} file"
            )

    def _make_non_resident(self, attribute: EditAttribute) -> None:
        """Give what is in the record clusters of its own."""
        # Compressed content in a record is stored as it is; outside it goes on that way.
        attribute.flags &= ~AttributeFlag.COMPRESSION_MASK
        self._values.move_out(attribute)

    def _write_clusters(
        self, attribute: EditAttribute, offset: int, data: memoryview, with_holes: bool
    ) -> None:
        size = self._size
        end = offset + len(data)
        first, stop = offset // size, -(-end // size)
        runs, flags = list(attribute.runs), attribute.flags
        total = sum(run.clusters for run in runs)
        initialised = attribute.initialised_size
        if first > total:
            is_long = with_holes and offset - attribute.data_size >= _HOLE_SIZE
            if is_long or flags & _SPARSE:
                runs.append(Run(HOLE, first - total))
                flags |= _SPARSE
            else:
                first = total
        is_gap_zeroed = initialised < offset
        if is_gap_zeroed:
            first = min(first, max(initialised // size, 0))
        runs, fresh = self._fill(runs, offset // size if flags & _SPARSE else first, stop)
        mapped = mapped_runs(runs, size)
        if is_gap_zeroed:
            self._zero(mapped, initialised, offset)
        self._zero_edges(mapped, fresh, offset, end)
        self._put(mapped, offset, data)
        attribute.runs = join_runs(runs)
        self._set_flags(attribute, flags)
        attribute.data_size = max(attribute.data_size, end)
        attribute.initialised_size = max(initialised, end)

    def _fill(self, runs: list[Run], first: int, stop: int) -> tuple[list[Run], list[Run]]:
        """Return runs with clusters wherever there were none from VCN `first` to `stop`.

        Returns:
            The runs, and the (VCN, clusters) of what is new.
        """
        total = sum(run.clusters for run in runs)
        if first == total:  # at the end, as nearly always
            parts, middle = list(runs), list[Run]()
        else:
            parts = slice_runs(runs, 0, first)
            middle = slice_runs(runs, first, max(0, stop - first))
        if stop > total:
            middle.append(Run(HOLE, stop - max(total, first)))
        missing = sum(run.clusters for run in middle if run.start == HOLE)
        goal = next((r.start + r.clusters for r in reversed(parts) if r.start != HOLE), None)
        free = self._values.allocator.allocate(missing, goal)
        made: list[Run] = []
        fresh: list[Run] = []
        vcn = first
        for start, clusters in middle:
            if start != HOLE:
                made.append(Run(start, clusters))
                vcn += clusters
                continue
            fresh.append(Run(vcn, clusters))
            vcn += clusters
            while clusters:
                run = free.pop(0)
                count = min(clusters, run.clusters)
                made.append(Run(run.start, count))
                if count < run.clusters:
                    free.insert(0, Run(run.start + count, run.clusters - count))
                clusters -= count
        rest = slice_runs(runs, stop, total - stop) if stop < total else []
        return [*parts, *made, *rest], fresh

    def _zero(self, mapped: list[tuple[int, int, int]], start: int, end: int) -> None:
        """Write zeros over what is allocated of a part of a stream."""
        self._waiting += [(position, size) for _, size, position in clipped(mapped, start, end)]

    def _zero_edges(
        self, mapped: list[tuple[int, int, int]], fresh: list[Run], offset: int, end: int
    ) -> None:
        """Write zeros into those parts of new clusters that no content goes to."""
        size = self._size
        for vcn, clusters in fresh:
            low, high = vcn * size, (vcn + clusters) * size
            self._zero(mapped, low, min(high, max(low, offset)))
            self._zero(mapped, max(low, min(end, high)), high)

    def _put(self, mapped: list[tuple[int, int, int]], offset: int, data: memoryview) -> None:
        """Write content where it belongs."""
        for low, size, position in clipped(mapped, offset, offset + len(data)):
            self._waiting.append((position, data[low - offset : low - offset + size]))

    def truncate(self, file: OpenFile, attribute: EditAttribute, size: int) -> None:
        """Make a stream `size` bytes long.

        Raises: as `write`.
        """
        if size == attribute.size:
            return
        file.touch()
        if not size:
            self.empty(attribute)
            return
        self._check(attribute, size)
        if attribute.value is not None:
            if size <= max(len(attribute.value), self._files.resident_room(file, attribute)):
                attribute.value = attribute.value[:size].ljust(size, b"\0")
                return
            self._make_non_resident(attribute)
        if size < attribute.data_size:
            self._cut(attribute, size)
        else:
            self._extend(attribute, size)

    def empty(self, attribute: EditAttribute) -> None:
        """Cut a stream to nothing; whatever way it was stored, that works."""
        if attribute.value is None:
            self._values.allocator.free(attribute.runs)
            attribute.runs = []
        attribute.data_size = attribute.initialised_size = 0
        attribute.reserved = b""
        if attribute.flags & AttributeFlag.ENCRYPTED:
            attribute.value = None  # Windows has no encrypted stream in a record
        else:
            attribute.value = b""
            attribute.unit_shift = 0
            attribute.flags &= ~_SPARSE

    def _cut(self, attribute: EditAttribute, size: int) -> None:
        kept = self._values.geometry.clusters_of(size)
        total = attribute.clusters
        if kept < total:
            self._values.allocator.free(slice_runs(attribute.runs, kept, total - kept))
            attribute.runs = slice_runs(attribute.runs, 0, kept)
        attribute.data_size = size
        attribute.initialised_size = min(attribute.initialised_size, size)

    def _extend(self, attribute: EditAttribute, size: int) -> None:
        total, wanted = attribute.clusters, self._values.geometry.clusters_of(size)
        runs, flags = list(attribute.runs), attribute.flags
        if wanted > total:
            if size - attribute.data_size >= _HOLE_SIZE or flags & _SPARSE:
                runs.append(Run(HOLE, wanted - total))
                flags |= _SPARSE
            else:
                goal = runs[-1].start + runs[-1].clusters if runs else None
                if goal is not None and runs[-1].start == HOLE:
                    goal = None
                runs += self._values.allocator.allocate(wanted - total, goal)
        attribute.runs = join_runs(runs)
        self._set_flags(attribute, flags)
        attribute.data_size = size

    def _set_flags(self, attribute: EditAttribute, flags: int) -> None:
        """Set flags; a sparse stream states a unit as if it were compressed, as on Windows."""
        if flags & ~attribute.flags & _SPARSE:
            unit = min(self._size << COMPRESSION_UNIT_SHIFT, _HOLE_SIZE)
            attribute.unit_shift = (unit // self._size).bit_length() - 1
        attribute.flags = flags

    def read(self, attribute: EditAttribute, offset: int, length: int) -> bytes:
        """Return what is stored of a plain stream; for tests and small uses."""
        if attribute.value is not None:
            return attribute.value[offset : offset + length]
        return read_mapped(
            self._values.store, mapped_runs(attribute.runs, self._size), offset, length
        )
