# SPDX-License-Identifier: Apache-2.0
"""The part of the check that follows indexes: their trees, order, and what they list.

Source: as `index`.  Each block is visited at most once, so a circle ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fsdrivers.errors import CorruptError, FilesystemError
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.check.report import Check
from fsdrivers.ntfs.format import records as ntfs
from fsdrivers.ntfs.format.attributes import AttributeType, FileName
from fsdrivers.ntfs.format.index import (
    SECURITY_BLOCK_SIZE,
    SUBNODE_VCN_SIZE,
    EntryFlag,
    IndexBlock,
    IndexEntry,
    IndexHead,
    IndexRoot,
    NodeFlag,
    ReparseKey,
    SecurityHead,
)
from fsdrivers.ntfs.geometry import vcn_size_of
from fsdrivers.ntfs.index import DIRECTORY_INDEX, iter_view, units_of_key, words_of_key
from fsdrivers.ntfs.mft import FileRecord
from fsdrivers.ntfs.security import iter_descriptors
from fsdrivers.ntfs.streams import Content, read_content
from fsdrivers.ntfs.system import SECURITY_STREAM
from fsdrivers.printable import printable
from fsdrivers.record import U64

_MAXIMUM_DEPTH = 64
_MAXIMUM_DESCRIPTORS = 256 << 20
_UNLISTED = (ntfs.SystemRecord.FIRST_RESERVED, ntfs.SystemRecord.FIRST_FREE)  # nameless

Key = tuple[Any, ...]


class _Tree:
    """Walks one index in the order of its keys."""

    def __init__(
        self, check: Check, file: FileRecord, name: bytes, key_of: Callable[[bytes], Key]
    ) -> None:
        self.check = check
        self.file = file
        self.key_of = key_of
        self.entries: list[tuple[int, bytes]] = []  # reference (or what is there), key
        self.mft = check.volume.mft
        self.position = self.mft.record_position(file.number)
        roots = file.find(AttributeType.INDEX_ROOT, name)
        if not roots:
            raise CorruptError("there is no index", self.position)
        self.root = IndexRoot.unpack(roots[0].value)
        self.value = roots[0].value
        size = self.root.block_size
        if not 512 <= size <= ntfs.MAXIMUM_INDEX_BLOCK_SIZE or size.bit_count() != 1:
            raise CorruptError("size of index blocks", self.position, None, size)
        self.blocks: Content | None = self.mft.content_of(
            file, AttributeType.INDEX_ALLOCATION, name
        )
        self.bitmap = self.mft.read_all(file, AttributeType.BITMAP, name, limit=64 << 20) or b""
        self.seen: set[int] = set()
        self.last: Key | None = None

    def run(self) -> None:
        """Visit all nodes."""
        head = IndexHead.unpack(self.value, IndexRoot.SIZE)
        if head.used_size != head.allocated_size or head.used_size + 16 != len(self.value):
            self.add("index-root", "sizes of the root differ")
        if head.flags & NodeFlag.HAS_SUBNODES.value and self.blocks is None:
            self.add("index-root", "the root leads to blocks that are not there")
        self.node(self.value, IndexRoot.SIZE, 0)
        marked = {
            number
            for number in range(8 * len(self.bitmap))
            if self.bitmap[number >> 3] >> (number & 7) & 1
        }
        if marked != self.seen:
            wrong = min(marked ^ self.seen)
            self.add("index-bitmap", f"block {wrong} is marked wrongly in the index's bitmap")

    def add(self, rule: str, what: str) -> None:
        """Note a finding."""
        self.check.add(rule, f"index of MFT record {self.file.number}: {what}", self.position)

    def node(self, data: bytes | bytearray, head_at: int, depth: int) -> None:
        """Visit a node and what is below it."""
        head = IndexHead.unpack(data, head_at)
        at, end = head_at + head.entries_offset, head_at + head.used_size
        while True:
            if at + IndexEntry.SIZE > end or end > len(data):
                raise CorruptError("a node has no end", self.position)
            entry = IndexEntry.unpack(data, at)
            if entry.length < IndexEntry.SIZE or at + entry.length > end:
                raise CorruptError("an entry leaves its node", self.position)
            has_subnode = bool(entry.flags & EntryFlag.HAS_SUBNODE.value)
            if has_subnode != bool(head.flags & NodeFlag.HAS_SUBNODES.value):
                self.add(
                    "index-node",
                    "an entry of a leaf has a node below it, or one of an inner node has none",
                )
            if has_subnode:
                (vcn,) = U64.unpack_from(data, at + entry.length - SUBNODE_VCN_SIZE)
                self.block(vcn, depth + 1)
            if entry.flags & EntryFlag.END.value:
                break
            key = bytes(data[at + 16 : at + 16 + entry.key_length])
            order = self.key_of(key)
            if self.last is not None and order <= self.last:
                self.add("index-order", f"keys are out of order at {printable(key[:80])}")
            self.last = order
            self.entries.append((entry.reference, key))
            at += entry.length
        if at + entry.length != end:
            self.add("index-node", "something follows the last entry of a node")

    def block(self, vcn: int, depth: int) -> None:
        """Visit the block with number `vcn`."""
        size = self.root.block_size
        unit = vcn_size_of(self.mft.geometry.cluster_size, size)
        number, rest = divmod(vcn * unit, size)
        if rest or depth > _MAXIMUM_DEPTH or number in self.seen or self.blocks is None:
            raise CorruptError(
                f"a node leads to block {vcn}, which does not exist or was reached before"
            )
        self.seen.add(number)
        data = read_content(self.mft.device, self.blocks, number * size, size)
        if len(data) != size or data[:4] != ntfs.INDEX_MAGIC:
            raise CorruptError(f"block {vcn} is not an index block", self.position)
        record = fixups.open_record(data)
        if IndexBlock.unpack(record).vcn != vcn:
            self.add("index-vcn", f"block {vcn} says that it is another")
        if IndexHead.unpack(record, IndexBlock.SIZE).allocated_size != size - IndexBlock.SIZE:
            self.add("index-node", f"block {vcn} has a wrong size")
        self.node(record, IndexBlock.SIZE, depth)


def check_indexes(check: Check) -> None:
    """Check all directories, then $Secure, $ObjId and $Reparse."""
    for file in check.directories:
        try:
            _check_directory(check, file)
        except FilesystemError as error:
            check.add("index", f"index of MFT record {file.number}: {error}")
    for parent, reference, _, units in sorted(check.names):
        number = reference & ntfs.REFERENCE_MASK
        if not _UNLISTED[0] <= number < _UNLISTED[1]:
            name = units.decode("utf-16-le", "replace")
            check.add(
                "name-not-listed",
                f"MFT record {number} is named {name!r} in directory "
                f"{parent & ntfs.REFERENCE_MASK}, which does not list it",
                check.volume.mft.record_position(number),
            )
    for part in (_check_secure, _check_object_ids, _check_reparse_points):
        try:
            part(check)
        except FilesystemError as error:
            check.add("view-index", str(error))


def _check_directory(check: Check, file: FileRecord) -> None:
    """Check the names in a directory: order, and against the records they lead to."""

    def key_of(key: bytes) -> Key:
        return check.upcase.full_key(units_of_key(key))

    tree = _Tree(check, file, DIRECTORY_INDEX, key_of)
    tree.run()
    own = file.sequence << 48 | file.number
    for reference, key in tree.entries:
        name = FileName.unpack(key)
        listed = (name.parent, reference, name.namespace, units_of_key(key))
        if name.parent != own or listed not in check.names:
            text = units_of_key(key).decode("utf-16-le", "replace")
            tree.add("listed-not-named", f"{text!r} is listed, its record says otherwise")
            continue
        check.names.discard(listed)
        number = reference & ntfs.REFERENCE_MASK
        size = check.sizes.get(number)
        if file.number in check.system_directories:
            check.system_directories.add(number)
            continue  # Measured: Windows leaves old sizes below $Extend
        is_cached = number >= ntfs.SystemRecord.FIRST_FREE and name.namespace != ntfs.Namespace.DOS
        if is_cached and size is not None and size != name.data_size:
            text = units_of_key(key).decode("utf-16-le", "replace")
            tree.add("index-size", f"{text!r} is listed with {name.data_size} bytes, has {size}")


def _check_secure(check: Check) -> None:
    """Check $SDS, its copies, its indexes, and that every id in use is there."""
    volume = check.volume
    file = volume.mft.file(ntfs.SystemRecord.SECURE)
    stream = volume.mft.read_all(
        file, AttributeType.DATA, SECURITY_STREAM, limit=_MAXIMUM_DESCRIPTORS
    )
    if stream is None:
        return  # before version 3
    heads: dict[int, bytes] = {}
    for item in iter_descriptors(stream):
        size = SecurityHead.SIZE + len(item.descriptor)
        head = SecurityHead(item.hash, item.id, item.offset, size).pack()
        copy = item.offset + SECURITY_BLOCK_SIZE
        for at in (item.offset, copy):
            if stream[at : at + size] != head + item.descriptor:
                check.add("secure-copy", f"$SDS: copies of the descriptor {item.id} differ")
        heads[item.id] = head
    for name, id_at in (("$SDH", 4), ("$SII", 0)):
        units = name.encode("utf-16-le")
        _Tree(check, file, units, words_of_key).run()
        listed = {
            int.from_bytes(key[id_at : id_at + 4], "little"): data[: SecurityHead.SIZE]
            for key, data in iter_view(volume.mft, file, name)
        }
        for identifier in sorted(heads.keys() | listed.keys()):
            if heads.get(identifier) != listed.get(identifier):
                check.add("secure-index", f"$Secure:{name} is wrong about descriptor {identifier}")
    for identifier in sorted(check.security_ids - heads.keys() - {0}):
        check.add("secure-missing", f"security id {identifier} is in use and not in $Secure")


def _check_object_ids(check: Check) -> None:
    """Check that $ObjId lists the object ids of files, and no others."""
    file = check.volume.system.extend_file("$ObjId")
    if file is None:
        return
    _Tree(check, file, "$O".encode("utf-16-le"), words_of_key).run()
    listed = {
        key: int.from_bytes(data[:8], "little")
        for key, data in iter_view(check.volume.mft, file, "$O")
    }
    for key in sorted(listed.keys() | check.object_ids.keys()):
        if listed.get(key) != check.object_ids.get(key):
            check.add("object-id", f"$ObjId is wrong about object id {key.hex()}")


def _check_reparse_points(check: Check) -> None:
    """Check that $Reparse lists the reparse points there are, and no others."""
    file = check.volume.system.extend_file("$Reparse")
    if file is None:
        return
    _Tree(check, file, "$R".encode("utf-16-le"), words_of_key).run()
    listed = {}
    for raw, _ in iter_view(check.volume.mft, file, "$R"):
        key = ReparseKey.unpack(raw)
        listed[key.reference] = key.tag
    for reference in sorted(listed.keys() | check.reparse_tags.keys()):
        if listed.get(reference) != check.reparse_tags.get(reference):
            number = reference & ntfs.REFERENCE_MASK
            check.add("reparse", f"$Reparse is wrong about MFT record {number}")
