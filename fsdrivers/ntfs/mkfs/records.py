# SPDX-License-Identifier: Apache-2.0
"""Records and index entries of planned nodes as bytes, made when they are written.

Two ways: records of simple files are packed in place, thousands to a buffer; those of special
nodes are put together attribute by attribute.

Measured: 7 microseconds for the record of a simple file and its entry in a directory, 15 for a
special one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.format.attributes import (
    END_SIZE,
    INDEX_NAME,
    AttributeFlag,
    AttributeType,
    FileName,
    NonResidentHead,
    ResidentFlag,
    ResidentHead,
    StandardInformation,
    StandardInformation3,
)
from fsdrivers.ntfs.format.index import Collation, IndexEntry
from fsdrivers.ntfs.format.records import (
    FILE_MAGIC,
    SEQUENCE_SHIFT,
    FileAttribute,
    Namespace,
    NumberedRecordHead,
    RecordFlag,
    SystemRecord,
    reference_of,
)
from fsdrivers.ntfs.mkfs.index import TreePlan, TreeWriter, pack_root
from fsdrivers.ntfs.mkfs.items import Item
from fsdrivers.ntfs.mkfs.nodes import (
    ALLOCATION_KIND,
    EMPTY,
    FIRST_RESIDENT,
    LIST_KIND,
    NodePlan,
)
from fsdrivers.ntfs.mkfs.special import Part, Special
from fsdrivers.ntfs.names import units_of
from fsdrivers.ntfs.packing import (
    END,
    INFORMATION_SIZE,
    NON_RESIDENT_SIZE,
    NameFields,
    aligned,
    attributes_start,
    blank_record,
    file_name,
    pack_list_entry,
    pack_non_resident,
    pack_record,
    pack_resident,
    placed_runs,
)
from fsdrivers.ntfs.runs import pack_runs
from fsdrivers.ntfs.times import EPOCH, MAXIMUM, UNIT_NS
from fsdrivers.record import joined_codec, sparse_codec
from fsdrivers.volume import Entry, Node

_RECORDS_AT_ONCE: Final = 1024
ROOT_REFERENCE: Final = reference_of(SystemRecord.ROOT, SystemRecord.ROOT)
_USER: Final = 1 << SEQUENCE_SHIFT  # sequence of everything that is not a system file
_INDEXED: Final = ResidentFlag.INDEXED.value
_IN_USE: Final = RecordFlag.IN_USE.value
_DIRECTORY: Final = RecordFlag.DIRECTORY.value
_IS_INDEX: Final = FileAttribute.INDEX.value
_COMPRESSED: Final = FileAttribute.COMPRESSED.value
_PACKED: Final = (AttributeFlag.COMPRESSED | AttributeFlag.SPARSE).value
_DOS: Final = Namespace.DOS.value
_BOTH: Final = Namespace.WIN32_AND_DOS.value
_INFORMATION_KIND: Final = AttributeType.STANDARD_INFORMATION.value
_NAME_KIND: Final = AttributeType.FILE_NAME.value
_DATA: Final = AttributeType.DATA.value
_NAME_SIZE: Final = FileName.SIZE
_HEAD_SIZE: Final = ResidentHead.SIZE
_pack_resident_into = sparse_codec(ResidentHead).pack_into
_pack_name_into = joined_codec(sparse_codec(ResidentHead), FileName.codec()).pack_into
_pack_non_resident_into = sparse_codec(NonResidentHead).pack_into
_pack_entry = joined_codec(sparse_codec(IndexEntry), FileName.codec()).pack
_ENTRY_SIZE: Final = IndexEntry.SIZE + _NAME_SIZE
_pack_information = StandardInformation3.codec().pack
_DIRECTORY_INDEX: Final = INDEX_NAME.encode("utf-16-le")


def filetimes_of(
    created: int | None, modified: int, changed: int | None, accessed: int | None
) -> tuple[int, int, int, int]:
    """Return times as on disk, within their bounds; those that are missing are the modified one."""
    second = modified // UNIT_NS + EPOCH
    first = second if created is None else created // UNIT_NS + EPOCH
    third = second if changed is None else changed // UNIT_NS + EPOCH
    fourth = second if accessed is None else accessed // UNIT_NS + EPOCH
    if (first | second | third | fourth) >> 64:  # one of them is negative or too large
        first, second, third, fourth = (
            min(max(time, 0), MAXIMUM) for time in (first, second, third, fourth)
        )
    return first, second, third, fourth


class RecordWriter:
    """Makes the records of one volume's nodes."""

    def __init__(self, plan: NodePlan, record_size: int, first_record: int) -> None:
        """Take what is planned.

        Args:
            plan: of the nodes; everything in it has its place when records are made.
            record_size: bytes.
            first_record: number of the record of the first node behind the root.
        """
        self._plan = plan
        self._tree = plan.tree
        self._entries = plan.tree.entries
        self._record_size = record_size
        self._first = first_record - 1  # number of a record less the index of its node
        self._first_extension = self._first + plan.tree.count
        self.extra: Sequence[bytes] = ()  # entries of the root's index for the system files
        self._extra_code = 2 * len(self._entries)
        self._start = attributes_start(record_size)
        self._pack_head_into = joined_codec(
            sparse_codec(NumberedRecordHead, end=self._start),
            sparse_codec(ResidentHead),
            StandardInformation3.codec(),
        ).pack_into

    @property
    def end(self) -> int:
        """One behind the last record that is in use."""
        return self._first_extension + self._plan.extension_count

    def number_of(self, index: int) -> int:
        """Return the record number of a node."""
        return self._first + index if index else SystemRecord.ROOT.value

    def reference_of(self, index: int) -> int:
        """Return the file reference of a node."""
        return _USER | self._first + index if index else ROOT_REFERENCE

    def _times(self, entry: Entry) -> tuple[int, int, int, int]:
        """Return the times that go with a name."""
        if entry.name_times is None:
            return self._node_times(entry.node)
        created, modified, changed, accessed = entry.name_times
        return filetimes_of(created, modified, changed, accessed)

    def _node_times(self, node: Node) -> tuple[int, int, int, int]:
        """Return the times of $STANDARD_INFORMATION."""
        return filetimes_of(node.created_ns, node.modified_ns, node.changed_ns, node.accessed_ns)

    def _details(self, index: int, node: Node) -> tuple[int, int, int, int]:
        """Return allocated size, size, flags and tag that go with a name of a node."""
        special = self._plan.specials.get(index)
        if special is None:
            size, place = node.size, self._plan.places[index]
            unit = self._plan.cluster_size if place >= 0 else 8
            return (size + unit - 1) & -unit, size, node.flags, 0
        flags = node.flags | special.added_flags
        if special.tree is not None:
            return 0, 0, flags | _IS_INDEX, special.tag
        content = special.content
        assert content is not None, "every file has content"
        cluster_size = self._plan.cluster_size
        if content.is_resident:
            allocated = aligned(content.size)
        elif content.flags & _PACKED:
            allocated = content.clusters * cluster_size
        else:
            allocated = content.vcns * cluster_size
        return allocated, content.size, flags, special.tag

    def _namespace(self, code: int, entry: Entry) -> int:
        """Return the namespace of a name; one that cannot stand alone becomes one that can."""
        if code & 1:
            return _DOS
        flags = entry.name_flags
        return _BOTH if flags == _DOS else flags & 3

    def name_value(self, code: int) -> bytes:
        """Return the value of a $FILE_NAME."""
        ordinal = code >> 1
        entry, index = self._entries[ordinal], self._tree.node_of[ordinal]
        parent = self.reference_of(self._tree.parent_of[ordinal])
        fields = NameFields(parent, *self._times(entry), *self._details(index, entry.node))
        if not ordinal:
            return file_name(fields, ".".encode("utf-16-le"), _BOTH)
        return file_name(fields, units_of(self._tree.name_of(code)), self._namespace(code, entry))

    def entry(self, code: int) -> bytes:
        """Return an entry of a directory's index.

        Its times are the node's own, not those of the name: it is what listing a directory shows.
        Measured: Windows brings them up to date when a file is closed, those in the record never.
        """
        if code >= self._extra_code:
            return self.extra[code - self._extra_code]
        ordinal, tree = code >> 1, self._tree
        entry, index = self._entries[ordinal], tree.node_of[ordinal]
        node = entry.node
        name = entry.short_name if code & 1 else entry.name
        units = name.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
        length = len(units)
        allocated, size, flags, tag = self._details(index, node)
        parent = tree.parent_of[ordinal]
        body = _pack_entry(
            _USER | self._first + index,
            (_ENTRY_SIZE + length + 7) & ~7,
            _NAME_SIZE + length,
            0,
            _USER | self._first + parent if parent else ROOT_REFERENCE,
            *self._node_times(node),
            allocated,
            size,
            flags,
            tag,
            length >> 1,
            self._namespace(code, entry),
        )
        return b"".join((body, units, bytes(-(_ENTRY_SIZE + length) & 7)))

    def iter_records(self) -> Iterator[bytearray]:
        """Yield the sealed records of all nodes but the root, then those that continue them."""
        count, size = self._tree.count, self._record_size
        specials = self._plan.specials
        for first in range(1, count, _RECORDS_AT_ONCE):
            stop = min(first + _RECORDS_AT_ONCE, count)
            buffer = bytearray((stop - first) * size)
            self._fill_simple(buffer, first, stop)
            for index in range(first, stop):
                if index in specials:
                    at = (index - first) * size
                    buffer[at : at + size] = self.special_records(specials[index])[0]
            fixups.seal_all(buffer, size, NumberedRecordHead.SIZE)
            yield buffer
        buffer = bytearray()
        for special in specials.values():
            if special.list_item is not None:
                buffer += b"".join(self.special_records(special)[1:])
                if len(buffer) >= _RECORDS_AT_ONCE * size:
                    fixups.seal_all(buffer, size, NumberedRecordHead.SIZE)
                    yield buffer
                    buffer = bytearray()
        if buffer:
            fixups.seal_all(buffer, size, NumberedRecordHead.SIZE)
            yield buffer

    def _fill_simple(self, buffer: bytearray, first: int, stop: int) -> None:
        """Put the records of simple files where they belong in a buffer."""
        plan, tree, entries = self._plan, self._tree, self._entries
        specials, shapes, shape_of = plan.specials, plan.shapes, plan.shape_of
        pack_head_into, size, start = self._pack_head_into, self._record_size, self._start
        fixups_count = fixups.fixups_size(size) // 2
        at = 0
        for index in range(first, stop):
            if index not in specials:
                ordinal = tree.first[index]
                entry = entries[ordinal]
                node = entry.node
                end = at + start + INFORMATION_SIZE
                links = 1
                if index in tree.links or ordinal in tree.dos_units:
                    links = 0
                    for code in tree.links_of(index):
                        links += 1
                        end = self._put_name(buffer, end, code, links)
                else:
                    end = self._put_name(buffer, end, 2 * ordinal, links)
                end = self._put_content(buffer, end, plan.places[index], node.size, links + 1)
                buffer[end : end + END_SIZE] = END
                shape = shapes[shape_of[index]]
                pack_head_into(
                    buffer, at, FILE_MAGIC, NumberedRecordHead.SIZE, fixups_count, 0, 1, links,
                    start, _IN_USE, end + END_SIZE - at, size, 0, links + 2,
                    self._first + index & 0xFFFFFFFF,
                    _INFORMATION_KIND, INFORMATION_SIZE, 0, 0, _HEAD_SIZE, 0, 0,
                    StandardInformation3.SIZE, _HEAD_SIZE, 0,
                    *self._node_times(node), node.flags, *shape.information, shape.security_id,
                    0, 0,
                )  # fmt: skip
            at += size

    def _put_name(self, buffer: bytearray, at: int, code: int, identifier: int) -> int:
        """Put a $FILE_NAME of a simple file into a buffer; returns its end."""
        ordinal = code >> 1
        entry, tree = self._entries[ordinal], self._tree
        node = entry.node
        name = entry.short_name if code & 1 else entry.name
        units = name.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
        length = len(units)
        end = at + ((_HEAD_SIZE + _NAME_SIZE + length + 7) & ~7)
        size, place = node.size, self._plan.places[tree.node_of[ordinal]]
        unit = self._plan.cluster_size if place >= 0 else 8
        parent = tree.parent_of[ordinal]
        _pack_name_into(
            buffer, at, _NAME_KIND, end - at, 0, 0, _HEAD_SIZE, 0, identifier,
            _NAME_SIZE + length, _HEAD_SIZE, _INDEXED,
            _USER | self._first + parent if parent else ROOT_REFERENCE,
            *self._times(entry), (size + unit - 1) & -unit, size, node.flags, 0,
            length >> 1, self._namespace(code, entry),
        )  # fmt: skip
        at += _HEAD_SIZE + _NAME_SIZE
        buffer[at : at + length] = units
        return end

    def _put_content(
        self, buffer: bytearray, at: int, place: int, size: int, identifier: int
    ) -> int:
        """Put the unnamed stream of a simple file into a buffer; returns its end."""
        if place < 0:
            resident = size if place <= FIRST_RESIDENT else 0
            assert resident or place == EMPTY, "all content has its place"
            end = at + _HEAD_SIZE + aligned(resident)
            _pack_resident_into(
                buffer, at, _DATA, end - at, 0, 0, _HEAD_SIZE, 0, identifier, resident,
                _HEAD_SIZE, 0,
            )  # fmt: skip
            at += _HEAD_SIZE
            if resident:
                first = FIRST_RESIDENT - place
                buffer[at : at + size] = self._plan.resident[first : first + size]
            return end
        cluster_size = self._plan.cluster_size
        clusters = -(-size // cluster_size)
        pairs = pack_runs(((place, clusters),))
        end = at + aligned(NON_RESIDENT_SIZE + len(pairs))
        allocated = clusters * cluster_size
        _pack_non_resident_into(
            buffer, at, _DATA, end - at, 1, 0, NON_RESIDENT_SIZE, 0, identifier, 0, clusters - 1,
            NON_RESIDENT_SIZE, 0, allocated, size, size,
        )  # fmt: skip
        at += NON_RESIDENT_SIZE
        buffer[at : at + len(pairs)] = pairs
        return end

    def special_records(self, special: Special) -> list[bytes]:
        """Return the open records of a special node: the base, then those that continue it."""
        plan, index = self._plan, special.index
        parts = plan.parts_of(special)
        groups = plan.arrange(special, parts)
        number, reference = self.number_of(index), self.reference_of(index)
        first = self._first_extension + special.first_extension - 1
        list_value = b""
        if special.list_item is not None:
            list_value = self.list_value(special, groups)
        made: list[bytes] = []
        for at, group in enumerate(groups):
            attributes = [
                self._attribute(special, part, identifier, list_value)
                for identifier, part in enumerate(group)
            ]
            made.append(
                pack_record(
                    self._record_size,
                    number if not at else first + at,
                    attributes,
                    sequence=1 if at else reference >> SEQUENCE_SHIFT,
                    links=0 if at else len(special.links),
                    flags=_IN_USE | (0 if at or special.tree is None else _DIRECTORY),
                    base_reference=reference if at else 0,
                )
            )
        return made

    def list_value(self, special: Special, groups: Sequence[Sequence[Part]]) -> bytes:
        """Return the attribute list of a node."""
        first = self._first_extension + special.first_extension - 1
        own = self.reference_of(special.index)
        return b"".join(
            pack_list_entry(
                part.kind, part.name, part.lowest_vcn, _USER | first + at if at else own, identifier
            )
            for at, group in enumerate(groups)
            for identifier, part in enumerate(group)
            if part.kind != LIST_KIND
        )

    def _attribute(self, special: Special, part: Part, identifier: int, list_value: bytes) -> bytes:
        """Return one attribute."""
        what = part.what
        if what is None:
            return self._information(special, identifier)
        if isinstance(what, int):
            value = self.name_value(what)
            return pack_resident(part.kind, value, identifier=identifier, resident_flags=_INDEXED)
        if isinstance(what, bytes):
            return pack_resident(part.kind, what, identifier=identifier)
        if isinstance(what, TreePlan):
            return self._index_root(special, identifier)
        if isinstance(what, Item):
            if part.kind == LIST_KIND:
                if what.is_resident:
                    return pack_resident(part.kind, list_value, identifier=identifier)
                what = (what, 0, len(what.pattern))
            else:
                return pack_resident(
                    part.kind,
                    self._resident_value(what),
                    name=part.name,
                    flags=what.flags,
                    identifier=identifier,
                )
        item, first, stop = what
        runs = placed_runs(item.pattern, item.offset)[first:stop]
        return pack_non_resident(
            part.kind,
            runs,
            item.sizes(self._plan.cluster_size),
            shift=item.shift,
            name=part.name,
            flags=item.flags,
            identifier=identifier,
            lowest_vcn=part.lowest_vcn,
        )

    def _resident_value(self, item: Item) -> bytes | memoryview:
        """Return the value of a resident item."""
        if item.value is not None:
            return item.value
        return self._plan.resident[item.offset : item.offset + item.whole]

    def _information(self, special: Special, identifier: int) -> bytes:
        """Return $STANDARD_INFORMATION: the short form beside a descriptor of the node's own."""
        node = self._entries[self._tree.first[special.index]].node
        flags = node.flags | special.added_flags
        shape = special.shape
        times = self._node_times(node)
        if any(kind == AttributeType.SECURITY_DESCRIPTOR for kind, _ in special.fixed):
            old = StandardInformation(*times, flags, *shape.information[:3])
            return pack_resident(_INFORMATION_KIND, old.pack(), identifier=identifier)
        value = _pack_information(*times, flags, *shape.information, shape.security_id, 0, 0)
        return pack_resident(_INFORMATION_KIND, value, identifier=identifier)

    def _index_root(self, special: Special, identifier: int) -> bytes:
        """Return the $INDEX_ROOT of a directory."""
        plan = self._plan
        assert special.tree is not None
        codes = self._tree.children[special.index]
        entries, flags = self._tree_writer(special).root(lambda at: self.entry(codes[at]))
        value = pack_root(
            _NAME_KIND, Collation.FILE_NAME, plan.block_size, plan.cluster_size, entries, flags
        )
        node = self._entries[self._tree.first[special.index]].node
        return pack_resident(
            AttributeType.INDEX_ROOT,
            value,
            name=_DIRECTORY_INDEX,
            flags=AttributeFlag.COMPRESSED.value if node.flags & _COMPRESSED else 0,
            identifier=identifier,
        )

    def _tree_writer(self, special: Special) -> TreeWriter:
        """Return what makes the index of a directory."""
        plan = self._plan
        assert special.tree is not None
        return TreeWriter(special.tree, block_size=plan.block_size, cluster_size=plan.cluster_size)

    def iter_value(self, special: Special, item: Item) -> Iterator[bytes | bytearray]:
        """Yield the bytes of a value that is in clusters and no content."""
        if item.kind == ALLOCATION_KIND:
            codes = self._tree.children[special.index]
            yield from self._tree_writer(special).iter_blocks(lambda at: self.entry(codes[at]))
        elif item.kind == LIST_KIND:
            parts = self._plan.parts_of(special)
            yield self.list_value(special, self._plan.arrange(special, parts))
        else:
            assert item.value is not None, "only content is made by others"
            yield item.value

    def blanks(self, first: int, stop: int) -> bytearray:
        """Return sealed records that nobody uses."""
        buffer = bytearray()
        for number in range(first, stop):
            sequence = number if number < SystemRecord.QUOTA else 1
            buffer += blank_record(self._record_size, number, max(sequence, 1))
        fixups.seal_all(buffer, self._record_size, NumberedRecordHead.SIZE)
        return buffer
