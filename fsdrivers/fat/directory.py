# SPDX-License-Identifier: Apache-2.0
"""Directories: slots of 32 bytes to names and nodes, and back.

Source: [fatgen103] "FAT Directory Structure", "FAT Long Directory Entries".

Tolerated when reading: parts of long names that belong to no 8.3 entry, are out of order or
carry another checksum; the 8.3 name then stands alone, as in Linux.  `faults` collects them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fsdrivers.fat.codepage import DEFAULT_CODE_PAGE, CodePage, code_page
from fsdrivers.fat.format import (
    DOT,
    DOT_DOT,
    ENTRY_DELETED,
    ENTRY_END,
    LONG_NAME_LAST,
    LONG_NAME_ORDINAL,
    Attribute,
    DirectoryEntry,
    LongNameEntry,
)
from fsdrivers.fat.names import StoredName, checksum_of, name_of_units, pack_long_name, shown_name
from fsdrivers.fat.times import dos_of, ns_of
from fsdrivers.volume import Kind, Node

ROOT_NUMBER = 1  # node number of the root; that of others is the position of their 8.3 entry
DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
# The two bytes that OS/2 and Windows NT keep in FAT12/16 entries: an index into "EA DATA. SF".
EA_HANDLE = b"system.fat.ea_handle"

_OEM_437 = code_page(DEFAULT_CODE_PAGE)
_DIRECTORY = Attribute.DIRECTORY.value
_VOLUME_LABEL = Attribute.VOLUME_LABEL.value
_LONG_NAME = Attribute.LONG_NAME.value
_LONG_NAME_MASK = Attribute.LONG_NAME_MASK.value
_ATTRIBUTES_AT = DirectoryEntry.OFFSETS["attributes"]


class Fault(NamedTuple):
    """Something wrong in a directory that does not keep it from being read."""

    position: int  # bytes from the start of the volume
    what: str
    rule: str = "long-name"  # as in the findings of `check`


class Slot(NamedTuple):
    """An 8.3 entry in use and the name it goes by."""

    position: int  # bytes from the start of the volume; the node's number
    entry: DirectoryEntry
    name: bytes
    has_long_name: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory, "." and ".." included."""
        return bool(self.entry.attributes & _DIRECTORY)

    @property
    def is_label(self) -> bool:
        """Whether it holds the volume label and is not a file."""
        return bool(self.entry.attributes & _VOLUME_LABEL)

    @property
    def is_dots(self) -> bool:
        """Whether it is "." or ".."."""
        return self.entry.name in (DOT, DOT_DOT)


def iter_slots(
    segments: Iterable[tuple[int, bytes]],
    faults: list[Fault] | None = None,
    page: CodePage = _OEM_437,
) -> Iterator[Slot]:
    """Yield the entries in use, in the order on the medium, up to the end mark.

    Args:
        segments: (position, data) of the directory's parts, whole slots each.
        faults: gets the damaged long names, and what stands behind the end mark, if given.
        page: OEM code page of the 8.3 names.
    """
    parts: list[bytes] = []
    expected = checksum = -1  # ordinal and checksum of the part read last
    remaining = iter(segments)
    for base, data in remaining:
        for at in range(0, len(data), DirectoryEntry.SIZE):
            first = data[at]
            if first == ENTRY_END:
                _note(faults, base + at, "long name without an entry", parts)
                if faults is not None:
                    _note_behind_end(faults, [(base + at, data[at:]), *remaining])
                return
            if first == ENTRY_DELETED:
                _note(faults, base + at, "long name before a deleted entry", parts)
                parts = []
                continue
            if data[at + _ATTRIBUTES_AT] & _LONG_NAME_MASK == _LONG_NAME:
                part = LongNameEntry.unpack(data, at)
                if part.kind or part.first_cluster_low or part.attributes != _LONG_NAME:
                    _note(faults, base + at, "part of a long name with more than a name", [data])
                if part.ordinal & LONG_NAME_LAST:
                    _note(faults, base + at, "long name without an entry", parts)
                    parts, expected = [part.units], part.ordinal & LONG_NAME_ORDINAL
                    checksum = part.checksum
                elif parts and part.ordinal == expected - 1 and part.checksum == checksum:
                    parts.append(part.units)
                    expected = part.ordinal
                else:
                    _note(faults, base + at, "part of a long name out of order", [part.units])
                    parts = []
                continue
            entry = DirectoryEntry.unpack(data, at)
            name = None
            if parts:
                if expected == 1 and checksum == checksum_of(entry.name):
                    name = name_of_units(b"".join(reversed(parts)))
                if name is None:
                    _note(faults, base + at, "long name that does not fit its entry", parts)
                parts = []
            shown = name or shown_name(entry.name, entry.case_flags, page)
            yield Slot(base + at, entry, shown, name is not None)
    if parts:
        _note(faults, base, "long name without an entry", parts)


def node_of(slot: Slot, bits: int) -> Node:
    """Return the node of an entry on a FAT of `bits` bits."""
    entry = slot.entry
    is_directory = bool(entry.attributes & _DIRECTORY)
    handle = entry.first_cluster_high if bits != 32 else 0
    return Node(
        number=slot.position,
        kind=Kind.DIRECTORY if is_directory else Kind.FILE,
        size=0 if is_directory else entry.size,
        mode=DIRECTORY_MODE if is_directory else FILE_MODE,
        modified_ns=ns_of(entry.modified_date, entry.modified_time) or 0,
        accessed_ns=ns_of(entry.accessed_date, 0),
        created_ns=ns_of(entry.created_date, entry.created_time, entry.created_10ms),
        flags=entry.attributes,
        xattrs=((EA_HANDLE, handle.to_bytes(2, "little")),) if handle else (),
        first_unit=entry.first_cluster(bits),
    )


def entry_of(node: Node, name: StoredName, first_cluster: int, bits: int) -> DirectoryEntry:
    """Return the 8.3 entry of a node on a FAT of `bits` bits."""
    is_directory = node.kind is Kind.DIRECTORY
    attributes = node.flags & 0xFF & ~(_DIRECTORY | _VOLUME_LABEL)
    created_date, created_time, created_10ms = dos_of(node.created_ns)
    modified_date, modified_time, _ = dos_of(node.modified_ns)
    high = first_cluster >> 16
    if node.xattrs and bits != 32:
        high = int.from_bytes(dict(node.xattrs).get(EA_HANDLE, b""), "little")
    return DirectoryEntry(
        name=name.short_name,
        attributes=attributes | _DIRECTORY if is_directory else attributes,
        case_flags=name.case_flags & 0xFF,
        created_10ms=created_10ms,
        created_time=created_time,
        created_date=created_date,
        accessed_date=dos_of(node.accessed_ns)[0],
        first_cluster_high=high,
        modified_time=modified_time,
        modified_date=modified_date,
        first_cluster_low=first_cluster & 0xFFFF,
        size=0 if is_directory else node.size,
    )


def pack_slots(node: Node, name: StoredName, first_cluster: int, bits: int) -> bytes:
    """Return all slots of one name: the parts of the long one, then the 8.3 entry."""
    entry = entry_of(node, name, first_cluster, bits).pack()
    return pack_long_name(name.units, name.short_name) + entry if name.units else entry


def pack_dots(node: Node, first_cluster: int, parent_cluster: int, bits: int) -> bytes:
    """Return "." and ".." of a directory; `parent_cluster` is 0 below the root."""
    return b"".join(
        entry_of(node, StoredName(short_name, 0, b""), cluster, bits).pack()
        for short_name, cluster in ((DOT, first_cluster), (DOT_DOT, parent_cluster))
    )


def _note(faults: list[Fault] | None, position: int, what: str, parts: list[bytes]) -> None:
    """Record that `parts` are lost, if there are any and somebody wants to know."""
    if parts and faults is not None:
        faults.append(Fault(position, what))


def _note_behind_end(faults: list[Fault], segments: Iterable[tuple[int, bytes]]) -> None:
    """Record the first slot in use behind the end mark: DOS does not see it, Linux does."""
    for base, data in segments:
        for at in range(0, len(data), DirectoryEntry.SIZE):
            if data[at] not in (ENTRY_END, ENTRY_DELETED):
                faults.append(Fault(base + at, "entry behind the end of a directory", "end"))
                return
