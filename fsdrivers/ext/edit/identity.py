# SPDX-License-Identifier: Apache-2.0
"""Label and UUID of a volume that is being edited, in every copy of the superblock.

A UUID goes into all checksums of a volume with metadata_csum unless its seed is stored
(metadata_csum_seed).  All of them are made anew then, in one operation; a volume with more
metadata than its journal holds refuses that.  The feature metadata_csum_seed is not turned on:
boot loaders before 2023 cannot read such volumes.
"""

from __future__ import annotations

import uuid as uuids

from fsdrivers.errors import InvalidNameError, UnsupportedError
from fsdrivers.ext import checksum, contents
from fsdrivers.ext.edit.session import Session
from fsdrivers.ext.edit.store import Role
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, InodeFlags
from fsdrivers.ext.metadata import covered_inode, volume_seed_of
from fsdrivers.ext.nodes import FORMAT_MASK, KINDS
from fsdrivers.volume import Kind

LABEL_SIZE = 16  # bytes


def identity_of(superblock: ext.Superblock) -> tuple[str, bytes]:
    """Return UUID and label as a `Volume` gives them."""
    raw = superblock.uuid
    return str(uuids.UUID(bytes=raw)) if any(raw) else "", superblock.label.rstrip(b"\0")


def set_label(session: Session, label: bytes) -> None:
    """Set the label.

    Raises:
        InvalidNameError: it has more than 16 bytes, or a zero among them.
    """
    if len(label) > LABEL_SIZE or b"\0" in label:
        raise InvalidNameError(f"a label has at most {LABEL_SIZE} bytes, none of them zero")
    session.allocator.edit_superblock().label = label.ljust(LABEL_SIZE, b"\0")
    _copy_to_backups(session)


def set_uuid(session: Session, text: str) -> None:
    """Set the UUID.

    Raises:
        InvalidNameError: it is not a UUID.
        UnsupportedError: more would depend on it than can be changed at once.
    """
    try:
        raw = uuids.UUID(text).bytes
    except ValueError as error:
        raise InvalidNameError(
            f"{text!r} is not a UUID like 0f8fad5b-d9cb-469f-a165-70867728950e"
        ) from error
    metadata = session.metadata
    superblock = metadata.superblock
    if superblock.feature_compat & Compat.STABLE_INODES:
        raise UnsupportedError("another UUID with ext feature stable_inodes")
    if superblock.has_value_inodes and not superblock.has_checksum_seed:
        raise UnsupportedError("another UUID with ext feature ea_inode and no checksum seed")
    session.allocator.edit_superblock().uuid = raw
    before, metadata.seed = metadata.seed, volume_seed_of(superblock)
    try:
        if metadata.seed != before:
            metadata.seed, after = before, metadata.seed
            _Resealer(session, before or 0, after or 0).run()
            metadata.seed = after
        if superblock.has_group_checksums:
            for group in range(metadata.geometry.groups_count):
                session.allocator.touch_group(group)
        _copy_to_backups(session)
        session.inodes.save()
        session.allocator.seal()
        if session.store.changed_count() > session.committer.capacity:
            raise UnsupportedError("another UUID: more checksums than the journal holds")
    except BaseException:
        metadata.seed = before
        raise


class _Resealer:
    """Makes all checksums of a volume anew, from another seed."""

    def __init__(self, session: Session, before: int, after: int) -> None:
        self._session = session
        self._metadata = session.metadata
        self._store = session.store
        self._before = before
        self._after = after

    def run(self) -> None:
        geometry = self._metadata.geometry
        superblock = self._metadata.superblock
        for group in range(geometry.groups_count):
            first = group * geometry.inodes_per_group + 1
            for number in range(first, first + self._metadata.used_inodes(group)):
                self._inode(number)
        if superblock.has_mmp and superblock.mmp_block:
            data = self._store.edit(superblock.mmp_block, Role.FRAME)
            checksum.seal_mmp(self._after, data)

    def _inode(self, number: int) -> None:
        metadata = self._metadata
        raw = metadata.inode_record(number)
        if not any(raw):
            return
        raw = metadata.inode_bytes(number)
        inode = ext.InodeExtended.unpack(covered_inode(raw))
        if inode.links_count or number < metadata.geometry.first_inode:
            self._blocks(number, raw, inode)
        block, at = divmod(metadata.inode_position(number), metadata.geometry.block_size)
        data = self._store.edit(block, Role.INODES)
        sealed = bytearray(raw)
        checksum.seal_inode(self._after, number, sealed)
        data[at : at + len(sealed)] = sealed

    def _blocks(self, number: int, raw: bytes, inode: ext.InodeExtended) -> None:
        """Seal what belongs to an inode."""
        metadata = self._metadata
        seed = checksum.inode_seed(self._after, number, inode.generation)
        kind = KINDS.get(inode.mode & FORMAT_MASK)
        if inode.xattr_block and self._store_has(inode.xattr_block):
            data = self._store.edit(inode.xattr_block, Role.MAP)
            checksum.seal_xattr_block(self._after, inode.xattr_block, data)
        is_mapped = inode.flags & InodeFlags.EXTENTS
        if kind is Kind.DIRECTORY and not inode.flags & InodeFlags.INLINE_DATA:
            for offset, block in contents.iter_blocks(metadata, number, raw):
                if offset < inode.size:
                    self._directory_block(block, seed)
        if number == metadata.superblock.orphan_file_inode:
            for _, block in contents.iter_blocks(metadata, number, raw):
                checksum.seal_orphan_block(seed, block, self._store.edit(block, Role.FRAME))
        if is_mapped:
            visited: list[int] = []
            contents.runs_of(metadata, number, raw, visited)
            for place in visited:
                data = self._store.edit(place, Role.MAP)
                slots = ext.ExtentHeader.unpack(data).max_entries
                checksum.seal_extent_block(seed, data, slots)

    def _store_has(self, block: int) -> bool:
        return 0 < block < self._metadata.geometry.blocks_count

    def _directory_block(self, block: int, seed: int) -> None:
        data = self._store.edit(block, Role.DIRECTORY)
        at = checksum.dx_count_offset(data)
        if at is not None:
            checksum.seal_dx(seed, data, at)
        elif checksum.has_directory_tail(data):
            checksum.seal_directory_block(seed, data)


def _copy_to_backups(session: Session) -> None:
    """Give every backup superblock the identity of the primary, nothing else."""
    metadata = session.metadata
    geometry = metadata.geometry
    for group in range(1, geometry.groups_count):
        if not geometry.has_superblock(group):
            continue
        block = geometry.backup_superblock_block(group)
        data = session.store.block(block)
        backup = ext.Superblock.unpack(data)
        if backup.magic != ext.SUPERBLOCK_MAGIC:
            continue
        backup.label, backup.uuid = metadata.superblock.label, metadata.superblock.uuid
        packed = checksum.sealed_superblock(backup)
        session.store.edit(block, Role.FRAME)[: len(packed)] = packed
