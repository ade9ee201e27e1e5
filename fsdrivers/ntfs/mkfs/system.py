# SPDX-License-Identifier: Apache-2.0
"""The system files of a new volume: what they hold and their records.

They are laid out as Windows does: records 0 to 11 with names in the root, 12 to 15 in use without
names, 16 to 23 free, then what is in $Extend.

Source: [ntfs-3g] ntfsprogs/mkntfs.c.  Measured: dissect.ntfs test volume (Windows 8 or later)
for which attributes a record has, names' namespaces and sizes, and who has a descriptor of its
own.

Left out: $RmMetadata and $Deleted in $Extend, which Windows makes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fsdrivers.ntfs.format.attributes import (
    INDEX_NAME,
    AttributeFlag,
    AttributeHead,
    AttributeType,
    ObjectId,
    ResidentFlag,
    StandardInformation,
    StandardInformation3,
    VolumeInformation,
)
from fsdrivers.ntfs.format.index import Collation, ObjectIdData, ReparseKey
from fsdrivers.ntfs.format.records import (
    MIRRORED_RECORDS,
    SYSTEM_NAMES,
    FileAttribute,
    Namespace,
    RecordFlag,
    SystemRecord,
    VolumeFlag,
    reference_of,
)
from fsdrivers.ntfs.geometry import Geometry
from fsdrivers.ntfs.index import words_of_key
from fsdrivers.ntfs.mkfs.description import Frame, Template
from fsdrivers.ntfs.mkfs.index import (
    INNER_END_SIZE,
    ROOT_OVERHEAD,
    TreePlan,
    TreeWriter,
    pack_root,
    plan_tree,
)
from fsdrivers.ntfs.mkfs.security import DESCRIPTOR_HEAD_SIZE, SecurityTable
from fsdrivers.ntfs.packing import (
    INFORMATION_SIZE,
    NameFields,
    Sizes,
    aligned,
    file_name,
    pack_non_resident,
    pack_record,
    pack_resident,
    pack_view_entry,
    record_room,
    resident_size,
    unit_shift,
)
from fsdrivers.ntfs.runs import HOLE
from fsdrivers.record import U16

# Names in the root that lead to system files; "." is the root itself.
ROOT_RECORDS: Final = tuple(
    number for number in sorted(SYSTEM_NAMES) if number < SystemRecord.FIRST_RESERVED
)
ROOT_NAMES: Final = tuple(SYSTEM_NAMES[number].encode() for number in ROOT_RECORDS)
VIEW_BLOCK_SIZE: Final = 4096
_LARGEST_OWN_DESCRIPTOR: Final = 368  # bytes, so that every record holds the rest beside it
_ROOT_REFERENCE: Final = reference_of(SystemRecord.ROOT, SystemRecord.ROOT)
_EXTEND_REFERENCE: Final = reference_of(SystemRecord.EXTEND, SystemRecord.EXTEND)
_NOT_OWN: Final = frozenset({SystemRecord.SECURE.value})
_DATA: Final = AttributeType.DATA.value
_INDEXED: Final = ResidentFlag.INDEXED.value
_ID_AT: Final = AttributeHead.OFFSETS["id"]
_USN_RECORD: Final = SystemRecord.REPARSE_POINTS + 1
_USN_NAME: Final = "$UsnJrnl"
_USN_MAXIMUM_SIZE: Final = 32
# States that end with the volume on which they began.
_DROPPED_FLAGS: Final = (
    VolumeFlag.DIRTY
    | VolumeFlag.RESIZE_LOG_FILE
    | VolumeFlag.DELETE_USN_UNDERWAY
    | VolumeFlag.CHKDSK_UNDERWAY
).value


def has_own_security(frame: Frame, number: int, descriptor: bytes) -> bool:
    """Tell whether a system file gets a descriptor of its own rather than an id."""
    return (
        frame.has_own_security
        and number not in _NOT_OWN
        and number < SystemRecord.QUOTA
        and DESCRIPTOR_HEAD_SIZE <= len(descriptor) <= _LARGEST_OWN_DESCRIPTOR
    )


@dataclass(slots=True)
class Area:
    """Clusters of a system file's stream."""

    size: int  # bytes
    make: Callable[[], Iterator[bytes | bytearray | memoryview]]
    lcn: int = -1
    clusters: int = 0


@dataclass(slots=True)
class View:
    """A view index of a system file."""

    name: str
    collation: Collation
    entries: list[bytes]
    plan: TreePlan


class SystemFiles:
    """The system files of one new volume."""

    def __init__(
        self, template: Template, security: SecurityTable, geometry: Geometry, now: int
    ) -> None:
        """Take what is kept; descriptors that are shared get the first ids."""
        self.template = template
        self._geometry = geometry  # of the new volume
        self._cluster_size = geometry.cluster_size
        self._now = now
        self.extend: dict[int, str] = {
            number.value: SYSTEM_NAMES[number]
            for number in (
                SystemRecord.QUOTA, SystemRecord.OBJECT_IDS, SystemRecord.REPARSE_POINTS,
            )
        }  # fmt: skip
        if template.usn_maximum is not None:
            self.extend[_USN_RECORD] = _USN_NAME
        self._ids: dict[int, int] = {}  # security ids by record number
        for number in (*range(SystemRecord.FIRST_FREE), *self.extend):
            frame = template.frame(number)
            is_shared = not has_own_security(frame, number, frame.security)
            if frame.security and is_shared and number != SystemRecord.ROOT:
                self._ids[number] = security.add(frame.security)
        self._security = security
        self.views: dict[int, list[View]] = {}
        self.areas: dict[str, Area] = {}

    @property
    def first_record(self) -> int:
        """Number of the first record that a file of the user may have."""
        return max(self.extend) + 1

    def plan_views(
        self,
        object_ids: Sequence[tuple[bytes, int]],
        reparse_points: Sequence[tuple[int, int]],
    ) -> None:
        """Plan the view indexes.

        Args:
            object_ids: 16 or 64 bytes, and the file reference.
            reparse_points: tag and file reference.
        """
        template = self.template
        owners = list(object_ids)
        if template.object_id:
            volume = reference_of(SystemRecord.VOLUME, SystemRecord.VOLUME)
            owners.append((template.object_id[: ObjectId.SIZE], volume))
        keyed = {
            value[:16]: ObjectIdData(reference, *_births(value)).pack()
            for value, reference in owners
        }
        ids = [pack_view_entry(key, keyed[key]) for key in sorted(keyed, key=words_of_key)]
        keys = [ReparseKey(tag, reference).pack() for tag, reference in reparse_points]
        points = [pack_view_entry(key, b"") for key in sorted(keys, key=words_of_key)]
        self.views = {
            SystemRecord.SECURE: self._plan(
                SystemRecord.SECURE,
                ("$SDH", Collation.SECURITY_HASH, self._security.hash_entries()),
                ("$SII", Collation.ULONG, self._security.id_entries()),
            ),
            SystemRecord.QUOTA: self._plan(
                SystemRecord.QUOTA,
                ("$O", Collation.SID, [pack_view_entry(*item) for item in template.quota_owners]),
                (
                    "$Q",
                    Collation.ULONG,
                    [pack_view_entry(*item) for item in template.quota_entries],
                ),
            ),
            SystemRecord.OBJECT_IDS: self._plan(
                SystemRecord.OBJECT_IDS,
                ("$O", Collation.ULONGS, ids),
            ),
            SystemRecord.REPARSE_POINTS: self._plan(
                SystemRecord.REPARSE_POINTS,
                ("$R", Collation.ULONGS, points),
            ),
        }

    def _plan(self, number: int, *views: tuple[str, Collation, list[bytes]]) -> list[View]:
        """Plan the views of one file, which share the room that its record has."""
        room = record_room(self._geometry.record_size) - INFORMATION_SIZE - resident_size(b"", 96)
        share = room // len(views) - (96 if number == SystemRecord.SECURE else 0)
        overhead = resident_size(b"$\0I\0I\0", ROOT_OVERHEAD)
        made = []
        for name, collation, entries in views:
            root_room = max(INNER_END_SIZE, min(share - overhead - 192, 256))
            sizes = list(map(len, entries))
            plan = plan_tree(sizes, VIEW_BLOCK_SIZE, share - overhead, root_room)
            made.append(View(name, collation, entries, plan))
            if plan.levels:
                self._add_view_areas(number, made[-1])
        return made

    def _writer(self, view: View) -> TreeWriter:
        """Return what makes the blocks of a view."""
        return TreeWriter(view.plan, block_size=VIEW_BLOCK_SIZE, cluster_size=self._cluster_size)

    def _add_view_areas(self, number: int, view: View) -> None:
        """Give a view the clusters of its blocks."""

        def make() -> Iterator[bytearray]:
            return self._writer(view).iter_blocks(view.entries.__getitem__)

        self.areas[f"{number}:{view.name}"] = Area(view.plan.block_count * VIEW_BLOCK_SIZE, make)
        bits = _bits(view.plan.block_count)
        if len(bits) > 64:
            self.areas[f"{number}:{view.name}:bits"] = Area(len(bits), lambda: iter((bits,)))

    def records(self) -> dict[int, bytes]:
        """Return the open records of all system files but the root."""
        made: dict[int, list[bytes]] = {
            SystemRecord.MFT: [
                self._stream("mft"),
                self._stream("mft-bitmap", AttributeType.BITMAP),
            ],
            SystemRecord.MFT_MIRROR: [self._stream("mirror")],
            SystemRecord.LOG_FILE: [self._stream("log")],
            SystemRecord.VOLUME: self._volume(),
            SystemRecord.ATTRIBUTE_DEFINITIONS: [self._stream("definitions")],
            SystemRecord.BITMAP: [self._stream("bitmap")],
            SystemRecord.BOOT: [self._stream("boot")],
            SystemRecord.BAD_CLUSTERS: [pack_resident(_DATA, b""), self._bad_clusters()],
            SystemRecord.SECURE: [
                self._stream("security", name="$SDS"),
                *self._view_attributes(SystemRecord.SECURE),
            ],
            SystemRecord.UPCASE: [self._stream("upcase")],
            SystemRecord.EXTEND: [self._extend_index()],
        }
        if self.template.upcase_info:
            info = pack_resident(_DATA, self.template.upcase_info, name=_units("$Info"))
            made[SystemRecord.UPCASE].append(info)
        for number in range(SystemRecord.FIRST_RESERVED, SystemRecord.FIRST_FREE):
            made[number] = [pack_resident(_DATA, b"")]
        for number in self.extend:
            made[number] = (
                self._journal() if number == _USN_RECORD else self._view_attributes(number)
            )
        return {number: self._record(number, parts) for number, parts in made.items()}

    def _record(self, number: int, parts: Sequence[bytes]) -> bytes:
        """Return an open record with what every system file has besides its own."""
        frame = self.template.frame(number)
        attributes = [self._information(number, frame)]
        links = 0
        if not SystemRecord.FIRST_RESERVED <= number < SystemRecord.FIRST_FREE:
            links = 1
            value = self.name_value(number)
            attributes.append(
                pack_resident(AttributeType.FILE_NAME, value, resident_flags=_INDEXED)
            )
        before = [part for part in parts if part[0] < AttributeType.SECURITY_DESCRIPTOR]
        attributes += before
        if has_own_security(frame, number, frame.security):
            attributes.append(pack_resident(AttributeType.SECURITY_DESCRIPTOR, frame.security))
        attributes += parts[len(before) :]
        numbered = [
            part[:_ID_AT] + U16.pack(identifier) + part[_ID_AT + U16.size :]
            for identifier, part in enumerate(attributes)
        ]
        return pack_record(
            self._geometry.record_size,
            number,
            numbered,
            sequence=self._sequence(number),
            links=links,
            flags=self._record_flags(number),
        )

    def _record_flags(self, number: int) -> int:
        """Return RecordFlag of a system file."""
        flags = RecordFlag.IN_USE
        if number == SystemRecord.EXTEND:
            flags |= RecordFlag.DIRECTORY
        if number == SystemRecord.SECURE or number in self.views:
            flags |= RecordFlag.VIEW_INDEX
        if number in self.extend:
            flags |= RecordFlag.IN_EXTEND
        return flags.value

    def _sequence(self, number: int) -> int:
        """Return the sequence number of a system file."""
        return number if 0 < number < SystemRecord.FIRST_FREE else 1

    def _attributes_of(self, number: int) -> int:
        """Return FILE_ATTRIBUTE_* of a system file."""
        if number == _USN_RECORD:
            flags = FileAttribute.HIDDEN | FileAttribute.SYSTEM | FileAttribute.SPARSE
            return flags.value
        return self.template.frame(number).file_attributes

    def _information(self, number: int, frame: Frame) -> bytes:
        """Return $STANDARD_INFORMATION."""
        flags = self._attributes_of(number)
        if has_own_security(frame, number, frame.security):
            old = StandardInformation(*frame.times, flags, 0, 0, 0)
            return pack_resident(AttributeType.STANDARD_INFORMATION, old.pack())
        identifier = self._ids.get(number, 0)
        new = StandardInformation3(*frame.times, flags, 0, 0, 0, 0, identifier, 0, 0)
        return pack_resident(AttributeType.STANDARD_INFORMATION, new.pack())

    def name_value(self, number: int) -> bytes:
        """Return the value of a system file's $FILE_NAME."""
        names = {SystemRecord.MFT: "mft", SystemRecord.MFT_MIRROR: "mirror",
                 SystemRecord.LOG_FILE: "log", SystemRecord.ATTRIBUTE_DEFINITIONS: "definitions",
                 SystemRecord.BITMAP: "bitmap", SystemRecord.BOOT: "boot",
                 SystemRecord.UPCASE: "upcase"}  # fmt: skip
        area = self.areas.get(names.get(SystemRecord(number), "")) if number < 27 else None
        size = area.size if area else 0
        allocated = area.clusters * self._cluster_size if area else 0
        flags = self._attributes_of(number)
        if number == SystemRecord.EXTEND:
            flags |= FileAttribute.INDEX.value
        in_extend = number in self.extend
        fields = NameFields(
            _EXTEND_REFERENCE if in_extend else _ROOT_REFERENCE,
            *self.template.frame(number).times,
            allocated,
            size,
            flags,
            0,
        )
        name = self.extend[number] if in_extend else SYSTEM_NAMES[SystemRecord(number)]
        namespace = Namespace.POSIX if in_extend else Namespace.WIN32_AND_DOS
        return file_name(fields, _units(name), namespace)

    def entry(self, number: int, value: bytes | None = None) -> bytes:
        """Return the entry of a system file in the index of its directory."""
        value = self.name_value(number) if value is None else value
        length = aligned(16 + len(value))
        head = reference_of(number, self._sequence(number)).to_bytes(8, "little")
        head += length.to_bytes(2, "little") + len(value).to_bytes(2, "little") + bytes(4)
        return (head + value).ljust(length, b"\0")

    def _stream(
        self, area_name: str, kind: AttributeType = AttributeType.DATA, name: str = ""
    ) -> bytes:
        """Return the attribute of a stream that is in one area."""
        area = self.areas[area_name]
        allocated = area.clusters * self._cluster_size
        return pack_non_resident(
            kind,
            ((area.lcn, area.clusters),),
            Sizes(allocated, area.size, area.size, allocated),
            name=_units(name),
        )

    def _volume(self) -> list[bytes]:
        """Return the attributes of $Volume."""
        template = self.template
        flags = template.volume_flags & ~_DROPPED_FLAGS
        information = VolumeInformation(0, template.major, template.minor, flags).pack()
        made = []
        if template.object_id:
            made.append(pack_resident(AttributeType.OBJECT_ID, template.object_id))
        return [
            *made,
            pack_resident(AttributeType.VOLUME_NAME, template.label),
            pack_resident(AttributeType.VOLUME_INFORMATION, information),
            pack_resident(_DATA, b""),
        ]

    def _bad_clusters(self) -> bytes:
        """Return $BadClus:$Bad: as large as the volume, and all hole."""
        count = self._geometry.cluster_count
        size = count * self._cluster_size
        runs = ((HOLE, count),)
        return pack_non_resident(_DATA, runs, Sizes(size, size, 0, 0), name=_units("$Bad"))

    def _extend_index(self) -> bytes:
        """Return the index of $Extend, which has to stand in its record."""
        names = sorted(self.extend, key=lambda number: self.extend[number].upper())
        plan = plan_tree([0] * len(names), VIEW_BLOCK_SIZE, 1 << 16, 1 << 16)
        writer = TreeWriter(plan, block_size=VIEW_BLOCK_SIZE, cluster_size=VIEW_BLOCK_SIZE)
        entries, flags = writer.root(lambda at: self.entry(names[at]))
        value = pack_root(
            AttributeType.FILE_NAME,
            Collation.FILE_NAME,
            self.template.geometry.index_block_size,
            self._cluster_size,
            entries,
            flags,
        )
        return pack_resident(AttributeType.INDEX_ROOT, value, name=_units(INDEX_NAME))

    def _view_attributes(self, number: int) -> list[bytes]:
        """Return the attributes of a file's views, in order."""
        roots: list[bytes] = []
        blocks: list[bytes] = []
        bitmaps: list[bytes] = []
        for view in self.views[number]:
            entries, flags = self._writer(view).root(view.entries.__getitem__)
            value = pack_root(
                0, view.collation, VIEW_BLOCK_SIZE, self._cluster_size, entries, flags
            )
            name = _units(view.name)
            roots.append(pack_resident(AttributeType.INDEX_ROOT, value, name=name))
            key = f"{number}:{view.name}"
            if key in self.areas:
                blocks.append(self._stream(key, AttributeType.INDEX_ALLOCATION, view.name))
                if f"{key}:bits" in self.areas:
                    bitmaps.append(self._stream(f"{key}:bits", AttributeType.BITMAP, view.name))
                else:
                    bits = _bits(view.plan.block_count)
                    bitmaps.append(pack_resident(AttributeType.BITMAP, bits, name=name))
        return [*roots, *blocks, *bitmaps]

    def _journal(self) -> list[bytes]:
        """Return the attributes of the change journal, which starts anew with its old limits."""
        maximum = (self.template.usn_maximum or b"").ljust(_USN_MAXIMUM_SIZE, b"\0")
        limits = maximum[:16]  # MaximumSize, AllocationDelta; then UsnJournalID, LowestValidUsn
        value = limits + self._now.to_bytes(8, "little") + bytes(8)
        empty = pack_non_resident(
            _DATA,
            (),
            Sizes(0, 0, 0, 0),
            name=_units("$J"),
            flags=AttributeFlag.SPARSE.value,
            shift=unit_shift(AttributeFlag.SPARSE.value, self._cluster_size),
        )
        return [empty, pack_resident(_DATA, value, name=_units("$Max"))]

    def mirrored_records(self) -> int:
        """Return how many records $MFTMirr holds: four, or as many as fill a cluster."""
        return max(MIRRORED_RECORDS, self._cluster_size // self._geometry.record_size)


def _births(value: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the three ids of birth behind an object id, zeros if they are not known."""
    value = value.ljust(ObjectId.SIZE, b"\0")
    return value[16:32], value[32:48], value[48:64]


def _bits(count: int) -> bytes:
    """Return a bitmap whose first `count` bits are set."""
    return ((1 << count) - 1).to_bytes((count + 63) // 64 * 8, "little")


def _units(name: str) -> bytes:
    """Return a name as UTF-16LE."""
    return name.encode("utf-16-le")
