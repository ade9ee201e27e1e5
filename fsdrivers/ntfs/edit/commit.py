# SPDX-License-Identifier: Apache-2.0
"""The order of writes: how finished operations get to the medium so that a crash does no harm.

Windows has a log for that.  This driver empties the log instead, which every Windows accepts,
marks the volume so that Windows checks it after a crash, and writes in an order in which what
leads somewhere is never on the medium before what it leads to.

Before the first change of an editor:

1. $LogFile is filled with FF from its end to its start, unless it is empty; flush.
2. $Volume and its copy in $MFTMirr get the dirty flag; flush.

Content is written when it is given (`edit.content`), into clusters that nothing on the medium
leads to, or into the file that is being written.  Clusters, records and index blocks that were
freed are not used again before the commit that freed them.

Then, several operations at a time, with a flush after each step that writes anything:

3. The bitmaps of clusters, records and index blocks with what is newly taken, nothing given
   back yet.
4. What nothing leads to yet: new records, new index blocks.
5. $MFT's own record and those that continue it, if the MFT grew.
6. Records that continue others and only gain.
7. Base records without an index.
8. Index blocks, and base records with the root of an index, in rounds: a node that loses a name
   which stands in another node now is not written before that other node; nor one that loses
   the old name of a renamed object before the node that has the new one.  `edit.rounds` finds
   these rounds.
9. Records that were freed, and records that continue others and lose something.
10. The bitmaps as they are now.

And when the editor is flushed:

11. The sizes and times in the index entries of directories' parents, in the same way.
12. $Volume and its copy lose the dirty flag; flush.

Records that $MFTMirr has a copy of are written to both places, $MFT first.

A crash in between leaves clusters and records that are marked and used by nobody, records that
no name leads to, names that are listed twice, or a name that its object does not know any more:
what CHKDSK repairs without loss of any other file, and what the reader of this package passes
over.  A record or block of which only a part was written is known by its update numbers; that
costs the directory it belongs to, as on any medium that breaks writes apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.edit.bits import Bits
from fsdrivers.ntfs.edit.files import Files
from fsdrivers.ntfs.edit.records import Records
from fsdrivers.ntfs.edit.rounds import has_index, rounds_of
from fsdrivers.ntfs.edit.storage import BlockUse
from fsdrivers.ntfs.edit.store import Item, ItemKind, Store
from fsdrivers.ntfs.fixups import open_record
from fsdrivers.ntfs.format import records as ntfs

LOG_PIECE: Final = 1 << 20  # bytes of the log that are filled at a time


class Committer:
    """Writes what a store and the bitmaps have pending."""

    def __init__(
        self, store: Store, records: Records, files: Files, clusters: Bits, use: BlockUse
    ) -> None:
        self._use = use
        self._store = store
        self._records = records
        self._files = files
        self._bitmaps = (clusters, records.bits)

    def empty_log(self, mapped: Sequence[tuple[int, int, int]], size: int) -> None:
        """Fill the log with FF, its start last."""
        for start, length, position in reversed(mapped):
            length = min(length, size - start)
            for at in range((length - 1) // LOG_PIECE * LOG_PIECE, -1, -LOG_PIECE):
                self._store.write(position + at, b"\xff" * min(LOG_PIECE, length - at))
        self._store.flush()

    def commit(self) -> None:
        """Write everything pending."""
        store = self._store
        items = sorted(store.items)
        if not items and not any(bits.is_changed for bits in self._bitmaps):
            return
        self._write_bitmaps([item for item in items if item.kind is ItemKind.BITS])
        steps = self._steps([item for item in items if item.kind is not ItemKind.BITS])
        for step in steps:
            self._step(step)
        freed = [bits.write_freed() for bits in self._bitmaps]
        bits = [item for item in items if item.kind is ItemKind.BITS]
        for item in bits:
            store.write_parts(store.items[item], store.item_data(item))
        if any(freed) or bits:
            store.flush()
        store.written()
        self._records.committed()
        self._use.committed()
        self._files.committed()

    def _write_bitmaps(self, items: Sequence[Item]) -> None:
        """Write bitmaps with what is taken, nothing given back."""
        store = self._store
        taken = [bits.write_taken() for bits in self._bitmaps]
        for item in items:
            old = int.from_bytes(store.item_on_medium(item), "little")
            data = store.item_data(item)
            merged = old | int.from_bytes(data, "little")
            store.write_parts(store.items[item], merged.to_bytes(len(data), "little"))
        if any(taken) or items:
            store.flush()

    def _steps(self, items: Iterable[Item]) -> Iterable[Sequence[Item]]:
        """Yield what is to be written together, in order."""
        fresh: list[Item] = []
        own: list[Item] = []
        gaining: list[Item] = []
        plain: list[Item] = []
        indexed: list[Item] = []
        late: list[Item] = []
        for item in items:
            if item.kind is not ItemKind.RECORD:
                (fresh if item in self._use.taken else indexed).append(item)
                continue
            data = open_record(self._store.item_data(item))
            head = ntfs.RecordHead.unpack(data)
            base = ntfs.number_of(head.base_reference)
            if not self._was_used(item):
                fresh.append(item)
            elif not head.flags & ntfs.RecordFlag.IN_USE or item.number in self._files.late:
                late.append(item)
            elif ntfs.SystemRecord.MFT in (item.number, base if head.base_reference else None):
                own.append(item)
            elif head.base_reference:
                gaining.append(item)
            elif has_index(data):
                indexed.append(item)
            else:
                plain.append(item)
        yield fresh
        own.sort(reverse=True)  # what continues $MFT before its own record
        yield from ([item] for item in own)
        yield gaining
        yield plain
        yield from rounds_of(self._store, indexed, fresh, self._use.freed())
        yield late

    def _was_used(self, item: Item) -> bool:
        """Tell whether a record on the medium is in use."""
        try:
            old = open_record(self._store.item_on_medium(item))
        except CorruptError:
            return False
        head = ntfs.RecordHead.unpack(old)
        return head.magic == ntfs.FILE_MAGIC and bool(head.flags & ntfs.RecordFlag.IN_USE)

    def _step(self, items: Sequence[Item]) -> None:
        """Write items; return when they are on the medium."""
        if not items:
            return
        store = self._store
        for item in items:
            data = store.item_data(item)
            store.write_parts(store.items[item], data)
            if item.kind is ItemKind.RECORD:
                store.write_parts(self._records.mirror_places(item.number), data)
        store.flush()
