# SPDX-License-Identifier: Apache-2.0
"""From an MFT record to a `Node`: kind, sizes, times, attributes, streams, security.

What a file has beyond names, content and times is kept as extended attributes under the names
that Linux' NTFS drivers give them, values to the byte as they are on disk:

    system.ntfs_acl           self-relative security descriptor, from $Secure or its own
    system.ntfs_reparse_data  the whole $REPARSE_POINT
    system.ntfs_object_id     the object id, and the ids of its birth if the index of $ObjId or
                              the attribute has them: 16 or 64 bytes
    system.ntfs_ea            the whole $EA
    system.ntfs_efsinfo       the $EFS stream of an encrypted file
    system.ntfs_information   fields of $STANDARD_INFORMATION nobody else shows, if not all
                              zero: maximum_versions, version, class_id, owner_id, 4 bytes each

Not kept: quota charged, update sequence numbers (their journal starts anew), $TXF_DATA
(Windows makes a new transaction log), $PROPERTY_SET (no Windows has written one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.attributes import Attribute
from fsdrivers.ntfs.format.attributes import (
    MAXIMUM_EA_SIZE,
    AttributeFlag,
    AttributeType,
    FileName,
    NonResidentHead,
    ObjectId,
    ReparseHead,
    ReparseTag,
    StandardInformation,
    StandardInformation3,
)
from fsdrivers.ntfs.format.records import REFERENCE_MASK, FileAttribute, Namespace, RecordFlag
from fsdrivers.ntfs.mft import FileRecord, Mft
from fsdrivers.ntfs.names import name_of
from fsdrivers.ntfs.times import EPOCH, UNIT_NS
from fsdrivers.record import sparse_codec
from fsdrivers.volume import Kind, Node, Stream

XATTR_ACL: Final = b"system.ntfs_acl"
XATTR_REPARSE: Final = b"system.ntfs_reparse_data"
XATTR_OBJECT_ID: Final = b"system.ntfs_object_id"
XATTR_EA: Final = b"system.ntfs_ea"
XATTR_EFS: Final = b"system.ntfs_efsinfo"
XATTR_INFORMATION: Final = b"system.ntfs_information"
# Value of XATTR_INFORMATION: neighbours in $STANDARD_INFORMATION.
INFORMATION: Final = sparse_codec(
    StandardInformation3,
    ("maximum_versions", "version", "class_id", "owner_id"),
    start=StandardInformation3.OFFSETS["maximum_versions"],
)
EFS_STREAM: Final = "$EFS".encode("utf-16-le")

_MODE: Final = 0o777
_MAXIMUM_DESCRIPTOR: Final = 256 << 10
_MAXIMUM_REPARSE: Final = 64 << 10
_MAXIMUM_EFS: Final = 256 << 10
_DIRECTORY: Final = RecordFlag.DIRECTORY.value
_DOS: Final = Namespace.DOS.value
_NAMESPACE_AT: Final = FileName.OFFSETS["namespace"]
_STANDARD_INFORMATION: Final = AttributeType.STANDARD_INFORMATION.value
_FILE_NAME: Final = AttributeType.FILE_NAME.value
_DATA: Final = AttributeType.DATA.value
_DESCRIPTOR: Final = AttributeType.SECURITY_DESCRIPTOR.value
_REPARSE: Final = AttributeType.REPARSE_POINT.value
_OBJECT_ID: Final = AttributeType.OBJECT_ID.value
_EA: Final = AttributeType.EA.value
_LOGGED: Final = AttributeType.LOGGED_UTILITY_STREAM.value
_SMALL: Final = {
    _REPARSE: (XATTR_REPARSE, _MAXIMUM_REPARSE),
    _OBJECT_ID: (XATTR_OBJECT_ID, 256),
    _EA: (XATTR_EA, 2 * MAXIMUM_EA_SIZE),
}
_KEPT_FLAGS: Final = (
    AttributeFlag.COMPRESSED | AttributeFlag.ENCRYPTED | AttributeFlag.SPARSE
).value
_KNOWN_KINDS: Final = frozenset(_SMALL) | {_DATA, _DESCRIPTOR, _LOGGED}
_FRAME_KINDS: Final = (_STANDARD_INFORMATION, _FILE_NAME, _DESCRIPTOR)
_OBJECT_ID_SIZE: Final = ObjectId.OFFSETS["birth_volume_id"]
_OLD_SIZE: Final = StandardInformation.SIZE
_NEW_SIZE: Final = StandardInformation3.SIZE
_unpack_new = StandardInformation3.codec().unpack_from
_unpack_old = StandardInformation.codec().unpack_from
_unpack_name = FileName.codec().unpack_from
_unpack_sizes = sparse_codec(
    NonResidentHead, ("lowest_vcn", "allocated_size", "data_size")
).unpack_from

Xattr = tuple[bytes, bytes]
NameTimes = tuple[int, int, int, int]


class NodeReader:
    """Makes nodes of one volume."""

    def __init__(
        self,
        mft: Mft,
        descriptors: Mapping[int, bytes] | None,
        birth_ids: Callable[[], Mapping[bytes, bytes]],
    ) -> None:
        """Take what is shared.

        Args:
            mft: of the volume.
            descriptors: security descriptors by their id; None if none can be read, and nodes
                have to do without.
            birth_ids: gives the 48 bytes that an index has beside each object id; called once,
                and only if a file has an object id.
        """
        self._birth_ids: Callable[[], Mapping[bytes, bytes]] = lru_cache(birth_ids)
        self._mft = mft
        self._descriptors = descriptors
        self.unknown_descriptors: dict[int, int] = {}  # MFT record -> id that $Secure lacks
        self.substitute: tuple[Xattr, ...] = ()  # what such a file is shown with
        self._acls: dict[int, tuple[Xattr, ...]] = {}
        self._own_acls: dict[bytes, tuple[Xattr, ...]] = {}

    def node(self, file: FileRecord) -> Node:
        """Return the node of a file or directory.

        Raises:
            CorruptError: an attribute is damaged or missing.
        """
        attributes = file.attributes
        first = attributes[0] if attributes else None
        if first is None or first.type != _STANDARD_INFORMATION or first.value_length < _OLD_SIZE:
            position = self._mft.record_position(file.number)
            raise CorruptError(f"MFT record {file.number} has no information", position)
        owner = security_id = 0
        if first.value_length >= _NEW_SIZE:
            (
                created, modified, changed, accessed, flags, maximum_versions, version, class_id,
                owner, security_id, _, _,
            ) = _unpack_new(first.record, first.value_start)  # fmt: skip
        else:
            (
                created, modified, changed, accessed, flags, maximum_versions, version, class_id,
            ) = _unpack_old(first.record, first.value_start)  # fmt: skip
        is_directory = file.flags & _DIRECTORY
        node = Node(
            file.number,
            Kind.DIRECTORY if is_directory else Kind.FILE,
            mode=_MODE,
            modified_ns=(modified - EPOCH) * UNIT_NS,
            accessed_ns=(accessed - EPOCH) * UNIT_NS,
            changed_ns=(changed - EPOCH) * UNIT_NS,
            created_ns=(created - EPOCH) * UNIT_NS,
            links=0,
            flags=flags,
        )
        others: list[Attribute] = []
        for part in attributes:
            kind = part.type
            if kind == _FILE_NAME:
                if (
                    part.value_length >= FileName.SIZE
                    and part.record[part.value_start + _NAMESPACE_AT] != _DOS
                ):
                    node.links += 1
            elif kind == _DATA and not part.name and not part.flags & _KEPT_FLAGS:
                if part.value_start >= 0:
                    node.size = part.value_length
                else:
                    lowest_vcn, allocated, size = _unpack_sizes(part.record, part.start)
                    if not lowest_vcn:
                        node.size = size if size <= allocated else self._bad_size(file, size)
            elif kind == _DESCRIPTOR and (security_id or part.value_start >= 0):
                if not security_id:  # one of its own, as before version 3
                    node.xattrs = self._own_acl(part)
            elif kind in _KNOWN_KINDS:
                others.append(part)
        if security_id:
            node.xattrs = self._acls.get(security_id) or self._acl(file, security_id)
        if maximum_versions or version or class_id or owner:
            value = INFORMATION.pack(maximum_versions, version, class_id, owner)
            node.xattrs += ((XATTR_INFORMATION, value),)
        if others:
            self._add_streams(file, node, others)
            node.xattrs += self._small(file, others)
        if len(node.xattrs) > 1:
            node.xattrs = tuple(sorted(node.xattrs))
        return node

    def _bad_size(self, file: FileRecord, size: int) -> int:
        """Raise CorruptError for content that is larger than its clusters."""
        position = self._mft.record_position(file.number)
        raise CorruptError(f"size of MFT record {file.number}", position, None, size)

    def _own_acl(self, part: Attribute) -> tuple[Xattr, ...]:
        """Return a resident descriptor as the attribute it is shown as; equal ones are shared."""
        descriptor = part.value
        made = self._own_acls.get(descriptor)
        if made is None:
            made = self._own_acls[descriptor] = ((XATTR_ACL, descriptor),)
        return made

    def frame_node(self, file: FileRecord) -> Node:
        """Return what a system file has of a node: flags, times, descriptor; no sizes.

        Raises:
            CorruptError: as `node`.
        """
        kept = [part for part in file.attributes if part.type in _FRAME_KINDS]
        return self.node(FileRecord(file.number, file.sequence, file.links, file.flags, kept))

    def name_times(self, file: FileRecord, parent: int, units: bytes) -> NameTimes | None:
        """Return created, modified, changed and accessed as the record of a name has them.

        Args:
            file: that has the name.
            parent: number of the directory it is in.
            units: the name.
        """
        for part in file.attributes:
            if part.type == _FILE_NAME and part.value_length >= FileName.SIZE:
                (
                    reference, created, modified, changed, accessed, _, _, _, _, length, _,
                ) = _unpack_name(part.record, part.value_start)  # fmt: skip
                start = part.value_start + FileName.SIZE
                if part.record[start : start + 2 * length] == units and not (
                    (reference ^ parent) & REFERENCE_MASK
                ):
                    return (
                        (created - EPOCH) * UNIT_NS,
                        (modified - EPOCH) * UNIT_NS,
                        (changed - EPOCH) * UNIT_NS,
                        (accessed - EPOCH) * UNIT_NS,
                    )
        return None

    def _acl(self, file: FileRecord, security_id: int) -> tuple[Xattr, ...]:
        """Return the descriptor of an id as the attribute it is shown as.

        An id that $Secure lacks costs the descriptor, never the file: it is shown with what
        laying it out anew would give it, and `unknown_descriptors` names it.
        """
        if self._descriptors is None:
            return ()
        descriptor = self._descriptors.get(security_id)
        if descriptor is None:
            self.unknown_descriptors[file.number] = security_id
            return self.substitute
        made = ((XATTR_ACL, descriptor),)
        self._acls[security_id] = made
        return made

    def _add_streams(self, file: FileRecord, node: Node, parts: list[Attribute]) -> None:
        """Set the size and the streams of a node."""
        extents: dict[bytes, list[Attribute]] = {}
        for part in parts:
            if part.type == _DATA:
                extents.setdefault(part.name, []).append(part)
        streams: list[Stream] = []
        for units, found in extents.items():
            content = self._mft.content_of_parts(file, found)
            flags = found[0].flags & _KEPT_FLAGS
            if not units:
                node.size = content.size
            if units or flags:
                streams.append(Stream(name_of(units), content.size, flags, content.padding))
        if node.kind is Kind.DIRECTORY and b"" in extents:
            position = self._mft.record_position(file.number)
            raise CorruptError(f"directory {file.number} has content", position)
        streams.sort()
        node.streams = tuple(streams)

    def _small(self, file: FileRecord, parts: list[Attribute]) -> tuple[Xattr, ...]:
        """Return the attributes that are shown as extended attributes."""
        made: list[Xattr] = []
        position = self._mft.record_position(file.number)
        for part in parts:
            kind = part.type
            if kind in _SMALL:
                name, limit = _SMALL[kind]
            elif kind == _DESCRIPTOR:
                name, limit = XATTR_ACL, _MAXIMUM_DESCRIPTOR
            elif kind == _LOGGED and part.name == EFS_STREAM:
                name, limit = XATTR_EFS, _MAXIMUM_EFS
            else:
                continue
            if any(name == known for known, _ in made):
                continue  # a further extent
            same = [other for other in parts if other.type == kind and other.name == part.name]
            value = self._mft.read_small(same, limit, position)
            if kind == _OBJECT_ID and len(value) == _OBJECT_ID_SIZE:
                value += self._birth_ids().get(value, b"")
            made.append((name, value))
        return tuple(made)


def reparse_tag_of(node: Node) -> int:
    """Return the tag of a node's reparse point, 0 if it has none."""
    if node.flags & FileAttribute.REPARSE_POINT.value:
        for name, value in node.xattrs:
            if name == XATTR_REPARSE and len(value) >= ReparseHead.SIZE:
                return ReparseHead.unpack(value).tag
    return 0


def refuse_unreadable(node: Node) -> None:
    """Raise UnsupportedError if the content of a node is kept elsewhere."""
    if reparse_tag_of(node) == ReparseTag.DEDUP:
        raise UnsupportedError("content of a deduplicated file")
