# SPDX-License-Identifier: Apache-2.0
"""Content ids, signatures, and security attributes stored once.

A content id is the keyed BLAKE3 hash of a piece's plain bytes.  An object's signature is the
keyed BLAKE3 hash of the canonical encoding of its attributes and content: equal exactly when
both are equal.  It does not depend on where pieces lie, nor on the numbers of objects: an
object that the attributes refer to counts by its signature (security) or by its identification
(the target of a hard link, of a marker).  Name and parent are identification, no attributes.

Source: EP1168174A1 [0027] to [0029]; docs/formats.md "Signature".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from blake3 import blake3

from backup.objects.data_keys import DataKey
from backup.objects.encoding import canonical, make_packer
from backup.objects.identification import Lookup, identification
from backup.objects.model import (
    BackupObject,
    DiskObject,
    LabelObject,
    MarkerObject,
    NodeObject,
    Piece,
    SecurityObject,
    StreamContent,
    VolumeObject,
)
from backup.objects.records import stream_fields

PIECE_SIZE: Final = (
    1 << 20
)  # bytes; content is cut at multiples of it, so equal content is cut alike
CONTENT_ID_SIZE: Final = 32
SIGNATURE_SIZE: Final = 32
DESCRIPTOR_XATTR: Final = b"system.ntfs_acl"  # as what a descriptor is seen among the others

Buffer = bytes | bytearray | memoryview
Xattrs = tuple[tuple[bytes, bytes], ...]


def content_id(master: DataKey, plain: Buffer) -> bytes:
    """Return the 32-byte content id of a piece's plain bytes."""
    return blake3(plain, key=master.content_id_key).digest()


class Signer:
    """Computes signatures under one master key.

    `lookup` finds objects by number; those that an object refers to must be known, and a
    security object signed, before the object is.  One signer serves one thread.
    """

    def __init__(self, master: DataKey, lookup: Lookup) -> None:
        self._key = master.signature_key
        self._lookup = lookup
        self._packer = make_packer()

    def signature_of(self, obj: BackupObject) -> bytes:
        """Return the 32-byte signature; `obj.signature` is neither read nor set."""
        fields = self._node(obj) if isinstance(obj, NodeObject) else self._other(obj)
        return blake3(self._packer.pack(fields), key=self._key).digest()

    def _node(self, node: NodeObject) -> tuple[object, ...]:
        """Return what a node's signature covers."""
        pieces = node.pieces
        return (
            node.kind,
            node.size,
            node.mode,
            node.uid,
            node.gid,
            node.modified_ns,
            node.accessed_ns,
            node.changed_ns,
            node.created_ns,
            node.flags,
            node.device,
            node.target,
            node.short_name,
            node.name_flags,
            self._lookup(node.security).signature if node.security else b"",
            self._identification(node.target_number),
            node.regions,
            [piece[:3] for piece in pieces] if pieces else (),
            [_stream(stream) for stream in node.streams] if node.streams else (),
            *((node.name_times, node.xattrs) if node.name_times or node.xattrs else ()),
        )

    def _other(self, obj: BackupObject) -> tuple[object, ...]:
        """Return what the signature of anything but a node covers."""
        kind = obj.kind
        match obj:
            case DiskObject():
                attributes: tuple[object, ...] = (
                    obj.size,
                    obj.sector_size,
                    obj.scheme,
                    canonical(obj.table),
                    obj.model,
                    obj.serial,
                )
                return (kind, *attributes, _content(obj.pieces))
            case VolumeObject():
                attributes = (
                    obj.type,
                    obj.size,
                    obj.used_size,
                    obj.uuid,
                    obj.label,
                    canonical(obj.description),
                    obj.minimum_size,
                    obj.mount_point,
                )
                return (kind, *attributes, _content(obj.pieces))
            case LabelObject():
                return (kind, obj.label, self._identification(obj.volume))
            case SecurityObject():
                return (kind, sorted_xattrs(obj.xattrs), obj.descriptor)
            case MarkerObject():
                attributes = (obj.name, self._identification(obj.target), canonical(obj.data))
                return (kind, *attributes, _content(obj.pieces))
        raise TypeError(f"{type(obj).__name__} has no signature")

    def _identification(self, number: int) -> bytes:
        """Return the identification of the object referred to; empty for no object."""
        return identification(self._lookup(number), self._lookup) if number else b""


class SecuritySets:
    """Finds out which security attributes are already in a data set, so that they go in once.

    Args:
        next_number: gives the number of the next object; called for each new set.
    """

    def __init__(self, next_number: Callable[[], int]) -> None:
        self._next_number = next_number
        self._known: dict[tuple[tuple[tuple[bytes, bytes], ...], bytes], SecurityObject] = {}

    def share(
        self, xattrs: Iterable[tuple[bytes, bytes]], descriptor: bytes = b""
    ) -> tuple[SecurityObject, bool]:
        """Return the object of these attributes, and whether it is new and must be signed and
        added to the table first."""
        key = (sorted_xattrs(xattrs), descriptor)
        known = self._known.get(key)
        if known is not None:
            return known, False
        made = self._known[key] = SecurityObject(self._next_number(), *key)
        return made, True


def sorted_xattrs(xattrs: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Return attributes in the order that is stored and signed: by name."""
    return tuple(sorted((bytes(name), bytes(value)) for name, value in xattrs))


def iter_pieces(obj: BackupObject) -> Iterator[Piece]:
    """Yield all pieces of an object: its content's, then those of its streams."""
    match obj:
        case NodeObject():
            yield from obj.pieces
            for stream in obj.streams:
                yield from stream.pieces
        case DiskObject() | VolumeObject() | MarkerObject():
            yield from obj.pieces


def content_size(obj: BackupObject) -> int:
    """Return the bytes that an object's pieces hold, before compression; holes count nothing."""
    return sum(piece.length for piece in iter_pieces(obj))


def xattrs_of(node: NodeObject, security: SecurityObject | None) -> Xattrs:
    """Return all extended attributes of a node, sorted by name.

    Args:
        node: that has them.
        security: the object that its `security` names.
    """
    if security is None:
        return node.xattrs
    shared = shared_xattrs(security)
    return tuple(sorted(shared + node.xattrs)) if node.xattrs else shared


def shared_xattrs(security: SecurityObject) -> Xattrs:
    """Return the extended attributes that a security object stands for, sorted by name."""
    if not security.descriptor:
        return security.xattrs
    return tuple(sorted(((DESCRIPTOR_XATTR, security.descriptor), *security.xattrs)))


def _stream(stream: StreamContent) -> tuple[object, ...]:
    """Return what a signature covers of a stream; as in records, defaults are left out."""
    name, size, pieces, *rest = stream_fields(stream)
    return (name, size, _content(pieces), *rest)


def _content(pieces: tuple[Piece, ...]) -> list[tuple[object, ...]]:
    """Return what of an object's pieces is content: place in the object, length, content id."""
    return [piece[:3] for piece in pieces]
