# SPDX-License-Identifier: Apache-2.0
"""An opened ext2, ext3 or ext4 volume, for reading everything there is on it.

A volume that was not unmounted is shown as recovery would leave it: its journal is replayed in
memory and the truncations its orphan list promises are made; nothing is written to the medium.
A damaged superblock or descriptor is read from a copy, which `warnings` says; of a journal that
cannot be read nothing is replayed, which is `damage`.
What is verified: every checksum of what is read, and every bound that keeps a damaged volume
from being read beyond its end or without end.

Not here: the bad block list, the boot loader's inode 5, encrypted files (refused), external
journals that need a replay (refused).
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from fsdrivers.device import Device
from fsdrivers.errors import (
    CorruptError,
    DeviceError,
    PartlyUnsupportedError,
    UnsupportedError,
)
from fsdrivers.ext import contents, description, directory, journal
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, Incompat, InodeFlags, InodeNumber, RoCompat
from fsdrivers.ext.metadata import Metadata, covered_inode
from fsdrivers.ext.nodes import (
    FORMAT_MASK,
    KINDS,
    REFUSED_FLAGS,
    UNREADABLE_FLAGS,
    NodeReader,
    refusal_of,
)
from fsdrivers.ext.orphans import find_orphans, truncated_extents
from fsdrivers.ext.overlay import Overlay
from fsdrivers.ext.quota import QuotaFacts, QuotaFile, QuotaKind, file_inodes, unpack_file
from fsdrivers.extents import read_extents
from fsdrivers.losses import DAMAGE, Damage, Losses, OnDamage, read_units
from fsdrivers.printable import printable
from fsdrivers.record import sparse_codec
from fsdrivers.volume import Entry, Extent, Kind, Node, Plain, Volume

READ_AHEAD = 256 << 10  # bytes of a directory read at once
CACHED_MAPS = 64
MAX_QUOTA_SIZE = 256 << 20  # bytes: three million owners
_BLOCK_AT = ext.Inode.OFFSETS["block"]
_BLOCK_END = _BLOCK_AT + 60
_DOTS = (b".", b"..")
_MODE = sparse_codec(ext.Inode, ("mode",))
_LINKS_AND_FLAGS = sparse_codec(ext.Inode, ("links_count", "flags"))


class ExtVolume(Volume):
    """See `fsdrivers.volume.Volume` for what its methods promise."""

    def __init__(
        self,
        metadata: Metadata,
        log: journal.Journal | None,
        *,
        was_replayed: bool,
        orphans: frozenset[int],
    ) -> None:
        """Show a volume whose frame is loaded.

        Args:
            metadata: of the volume as recovery leaves it.
            log: its internal journal.
            was_replayed: whether the journal had something to say.
            orphans: inodes whose blocks past their size are to be ignored.
        """
        superblock = metadata.superblock
        self.metadata = metadata
        self.device = metadata.device  # positions of extents are to be read through this one
        self.type = description.type_of(superblock)
        self.size = metadata.geometry.size
        self.uuid = str(uuid.UUID(bytes=superblock.uuid)) if any(superblock.uuid) else ""
        self.label = superblock.label.rstrip(b"\0")
        self.block_size = metadata.geometry.block_size
        self.was_replayed = was_replayed
        self._journal = log
        self.orphans = orphans
        self.nodes = NodeReader(metadata)
        self._maps: dict[int, list[Extent]] = {}

    def describe(self) -> dict[str, Plain]:
        """Return all that formatting the same filesystem again needs; see `description`."""
        superblock = self.metadata.superblock
        orphan_file_size = 0
        if superblock.feature_compat & Compat.ORPHAN_FILE:
            with self._spared("the orphan file gets its usual size"):
                orphan_file_size = self.metadata.inode(superblock.orphan_file_inode).size
        boot_block = b""
        with self._spared("boot code in front of the superblock is not kept"):
            boot_block = self.device.read(0, ext.SUPERBLOCK_POSITION)
        return description.describe(
            superblock,
            self.metadata.geometry,
            journal=self._journal.superblock if self._journal else None,
            boot_block=boot_block,
            orphan_file_size=orphan_file_size,
            quotas=[self._quota_facts(kind) for kind in self.quota_inodes()],
        )

    def _quota_facts(self, kind: QuotaKind) -> QuotaFacts:
        """Return what is set for a kind of quota; of a damaged file nothing, with a warning."""
        with self._spared("limits of quota are not kept"):
            return self.quota_file(kind).facts
        return QuotaFacts(kind)

    @contextmanager
    def _spared(self, consequence: str) -> Iterator[None]:
        """Do without what is damaged, with a warning."""
        try:
            yield
        except DAMAGE as error:
            warning = f"{error}: {consequence}"
            if warning not in self.metadata.warnings:
                self.metadata.warnings.append(warning)

    def quota_inodes(self) -> dict[QuotaKind, int]:
        """Return the inodes of the quota files there are."""
        return file_inodes(self.metadata.superblock)

    def quota_file(self, kind: QuotaKind) -> QuotaFile:
        """Return what a quota file holds; `quota_inodes` says which there are.

        Raises:
            CorruptError: it is damaged.
        """
        number = self.quota_inodes()[kind]
        size = self.metadata.inode(number).size
        if size > MAX_QUOTA_SIZE:
            at = self.metadata.inode_position(number)
            raise CorruptError("size of a quota file", at, f"up to {MAX_QUOTA_SIZE}", size)
        mapped = contents.extents_of(self.metadata, number, self.metadata.inode_bytes(number))
        return unpack_file(read_extents(self.device, mapped, 0, size), kind)

    def warnings(self) -> list[str]:
        """Return what was read from copies since it is damaged, or left out of the description."""
        return list(self.metadata.warnings)

    def check_restorable(self) -> None:
        """Look at every inode for files that could not be made again, if the volume may have such.

        Sealed ones can, without their seal: a warning says so.

        Raises:
            PartlyUnsupportedError: there is one, encrypted or sealed; it says where.
        """
        metadata = self.metadata
        superblock = metadata.superblock
        has_such = superblock.feature_incompat & Incompat.ENCRYPT
        if not has_such and not superblock.feature_ro_compat & RoCompat.VERITY:
            return
        refused: dict[int, int] = {}  # flags by inode
        for group in range(metadata.geometry.groups_count):
            first = group * metadata.geometry.inodes_per_group + 1
            for number in range(first, first + metadata.used_inodes(group)):
                try:
                    record = metadata.inode_record(number)
                except DeviceError:
                    continue  # whatever it was is lost, which the walk says
                links, flags = _LINKS_AND_FLAGS.unpack_from(record)
                if links and flags & REFUSED_FLAGS:
                    refused[number] = flags
        sealed = [number for number in refused if not refused[number] & UNREADABLE_FLAGS]
        if sealed:
            more = f", and so do {len(sealed) - 1:,} more" if len(sealed) > 1 else ""
            place = self._find_first(sealed)[0]
            self.metadata.warnings.append(f"{place} comes back without its seal (verity){more}")
        if refused:
            place, number = self._find_first(refused)
            more = f", and {len(refused) - 1:,} more" if len(refused) > 1 else ""
            raise PartlyUnsupportedError(f"{place}, {refusal_of(refused[number])}{more}")

    def _find_first(self, numbers: Collection[int]) -> tuple[str, int]:
        """Return the path of one of some inodes, of those nearest to the root, and its number."""
        metadata, seen = self.metadata, {int(InodeNumber.ROOT)}
        pending = deque([(int(InodeNumber.ROOT), "")])
        while pending:
            directory_number, path = pending.popleft()
            try:
                for name in self._iter_names(directory_number):
                    shown = f"{path}/{printable(name.name)}"
                    if name.inode in numbers:
                        return shown, name.inode
                    mode = _MODE.unpack_from(metadata.inode_record(name.inode))[0]
                    if KINDS.get(mode & FORMAT_MASK) is Kind.DIRECTORY and name.inode not in seen:
                        seen.add(name.inode)
                        pending.append((name.inode, shown))
            except (CorruptError, DeviceError):
                continue
        return f"inode {min(numbers)}", min(numbers)

    def used_size(self) -> int:
        """Return the bytes in use by the group descriptors' account."""
        geometry = self.metadata.geometry
        free = sum(descriptor.free_blocks for descriptor in self.metadata.descriptors)
        return max(0, geometry.size - free * geometry.cluster_size)

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield every name on the volume, the root first, parents before children.

        A root that cannot be read is yielded as an empty directory with nothing of its own.
        """
        losses = Losses(on_damage)
        root, damage = self._root(losses)
        yield Entry(root.number, b"", root)
        for fault in damage:
            losses.add(root.number, fault, is_kept=True)
        node_of, first_inode = self.nodes.node, self.metadata.geometry.first_inode
        shared: dict[int, Node] = {}
        seen = {root.number}
        lost: set[int] = set()
        faults: list[Damage] | None = [] if losses.are_told else None
        pending = [root.number]
        reached = 1
        while pending:
            parent = pending.pop()
            below = []
            for number, name, _ in self._iter_names(parent, losses):
                node = shared.get(number)
                if node is None:
                    try:
                        if number < first_inode:
                            raise CorruptError(
                                f"name {printable(name)} leads to reserved inode {number}"
                            )
                        node = node_of(number, faults)
                        if node.kind is Kind.DIRECTORY and number in seen:
                            raise CorruptError(f"directory {number} has more than one name")
                    except DAMAGE as error:
                        losses.add(parent, error, name, 0 if number in lost else 1)
                        lost.add(number)
                        continue
                    except UnsupportedError as error:
                        count = 0 if number in lost else 1
                        lost.add(number)
                        losses.add(parent, error, name, count + self._count_below(number, lost))
                        continue
                    if faults:
                        losses.add(parent, faults.pop(), name, is_kept=True)
                    reached += 1
                    if node.kind is Kind.DIRECTORY:
                        seen.add(number)
                        below.append(number)
                    elif node.links > 1:
                        shared[number] = node
                yield Entry(parent, name, node)
            pending.extend(reversed(below))
        if losses.count and (counted := self.metadata.count_objects()) is not None:
            losses.add_unreached(root.number, counted - reached)
        else:
            losses.add_uncounted(root.number, "the volume's account of its inodes is of no use")

    def _count_below(self, number: int, lost: set[int]) -> int:
        """Return how many objects are below what is left out; add them to `lost`."""
        metadata, size = self.metadata, self.block_size
        has_types, known = metadata.superblock.has_file_types, len(lost)
        pending = [number]
        while pending:
            parent = pending.pop()
            try:
                mode = _MODE.unpack_from(metadata.inode_record(parent))[0]
                if KINDS.get(mode & FORMAT_MASK) is not Kind.DIRECTORY:
                    continue
                for block, position in self.iter_directory_blocks(parent):
                    for name in directory.iter_block(
                        block,
                        position,
                        has_file_types=has_types,
                        block_size=size,
                        is_encrypted=True,
                    ):
                        if name.name not in _DOTS and name.inode not in lost:
                            lost.add(name.inode)
                            pending.append(name.inode)
            except DAMAGE:
                continue
        return len(lost) - known

    def _root(self, losses: Losses) -> tuple[Node, list[Damage]]:
        """Return the node of the root directory, and what of it is lost.

        Raises:
            CorruptError, DeviceError: something is, and nobody is told.
        """
        number = InodeNumber.ROOT
        faults: list[Damage] = []
        try:
            root = self.nodes.node(number, faults if losses.are_told else None)
            if root.kind is not Kind.DIRECTORY:
                position = self.metadata.inode_position(number)
                raise CorruptError("the root is not a directory", position)
        except DAMAGE as error:
            if not losses.are_told:
                raise
            return Node(number, Kind.DIRECTORY), [error]
        return root, faults

    def _iter_names(self, number: int, losses: Losses | None = None) -> Iterator[directory.Name]:
        """Yield the names in a directory but "." and "..", of which each has one."""
        losses = losses or Losses()
        dots = set(_DOTS)  # that are still to come
        has_types, size = self.metadata.superblock.has_file_types, self.block_size
        for block, position in self.iter_directory_blocks(number, losses):
            try:
                for name in directory.iter_block(
                    block, position, has_file_types=has_types, block_size=size
                ):
                    if name.name not in _DOTS:
                        yield name
                    elif name.name in dots:
                        dots.remove(name.name)
                    else:  # nobody can reach what it leads to
                        what = f"a further {printable(name.name)} leads to inode {name.inode}"
                        losses.add(number, CorruptError(what, position), name.name)
            except CorruptError as error:
                losses.add(number, error)

    def iter_directory_blocks(
        self, number: int, losses: Losses | None = None
    ) -> Iterator[tuple[bytes, int]]:
        """Yield (content, position) of a directory's blocks, their checksums verified.

        An inline directory yields its areas of entries, which have none.

        Args:
            number: of the directory.
            losses: told of what cannot be read; what else there is, is yielded.

        Raises:
            CorruptError: a hole, a size that is not a multiple of the block size, or a checksum;
                not if `losses` are told.
        """
        losses = losses or Losses()
        try:
            yield from self._iter_directory_blocks(number, losses)
        except DAMAGE as error:
            losses.add(number, error)

    def _iter_directory_blocks(self, number: int, losses: Losses) -> Iterator[tuple[bytes, int]]:
        """Yield what `iter_directory_blocks` does; raise what costs the whole directory."""
        metadata = self.metadata
        raw = metadata.inode_bytes(number, ahead=True)
        inode = ext.InodeExtended.unpack(covered_inode(raw))
        if inode.flags & InodeFlags.INLINE_DATA:
            yield from self._inline_directory(number, raw)
            return
        seed = metadata.inode_seed(number, inode.generation)
        size, end, reached = self.block_size, inode.size, 0
        if end == 0 or end % size:
            position = metadata.inode_position(number)
            raise CorruptError(f"size of directory {number}", position, f"n x {size}", end)
        faults: list[Damage] | None = [] if losses.are_told else None
        for extent in contents.extents_of(metadata, number, raw, faults=faults):
            if extent.offset >= end:
                break
            if (extent.offset != reached or extent.is_unwritten) and not faults:
                losses.add(number, CorruptError(f"directory {number} has a hole at {reached:#x}"))
            reached = extent.offset
            length = min(extent.length, end - reached)
            for at in range(0, length, READ_AHEAD):
                count = min(READ_AHEAD, length - at)
                for position, data in read_units(
                    self.device.read, extent.position + at, count, size
                ):
                    if isinstance(data, DeviceError):
                        losses.add(number, data)
                        continue
                    for slot in range(0, len(data), size):
                        block = data[slot : slot + size]
                        try:
                            if seed is not None:
                                directory.verify_block(block, seed, position + slot)
                        except CorruptError as error:
                            losses.add(number, error)
                            continue
                        yield block, position + slot
            reached += length
        for fault in faults or ():
            losses.add(number, fault)
        if reached < end and not faults:
            losses.add(number, CorruptError(f"directory {number} has a hole at {reached:#x}"))

    def _inline_directory(self, number: int, raw: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the areas of a directory inside its inode; the parent's number comes first."""
        position = self.metadata.inode_position(number)
        yield raw[_BLOCK_AT + 4 : _BLOCK_END], position + _BLOCK_AT + 4
        rest = contents.inode_attribute(raw, position)
        if rest and rest.value:
            yield rest.value, position + rest.value_start

    def inline_parent(self, number: int) -> int:
        """Return the parent of a directory inside its inode."""
        return int.from_bytes(
            self.metadata.inode_bytes(number)[_BLOCK_AT : _BLOCK_AT + 4], "little"
        )

    def hidden_facts(self, number: int, changed_ns: int) -> tuple[int, int]:
        """Return flags and project number of an inode that changed at `changed_ns`, else zeros."""
        try:
            return self.nodes.hidden_facts(number, changed_ns)
        except (CorruptError, DeviceError):
            return 0, 0  # in the making

    def extents(self, node: Node) -> list[Extent]:
        """Return the mapped parts of a file; positions are those of `self.device`."""
        number = node.number
        found = self._maps.get(number)
        if found is None:
            raw = self.metadata.inode_bytes(number)
            found = contents.extents_of(self.metadata, number, raw)
            if number in self.orphans:
                found = truncated_extents(found, node.size, self.block_size)
            if len(self._maps) >= CACHED_MAPS:
                self._maps = {}  # replaced as a whole, so that other threads' use of it holds
            self._maps[number] = found
        return found

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of content from `offset`."""
        if node.kind is not Kind.FILE:
            raise UnsupportedError(f"reading the content of a {node.kind.name.lower()}")
        length = min(length, node.size - offset)
        if length <= 0:
            return b""
        mapped = self._maps.get(node.number)
        return read_extents(
            self.device, self.extents(node) if mapped is None else mapped, offset, length
        )


def open_volume(device: Device) -> ExtVolume:
    """Read and verify what is needed to read the rest.

    Raises:
        NotRecognisedError: there is no ext superblock.
        UnsupportedError: a feature would be misread or lost.
        CorruptError, DeviceError: the frame of the volume is damaged, and so are its copies.
    """
    metadata = Metadata.load(device, use_copies=True)
    warnings = metadata.warnings
    overlay: Overlay | None = None
    damage: Damage | None = None
    try:
        overlay = journal.replay(metadata)
    except DAMAGE as error:
        damage = error
        warnings.append(f"what its journal holds cannot be read, and is not shown: {error}")
    if overlay is not None:
        metadata = Metadata.load(overlay, use_copies=True)
        metadata.warnings = warnings or metadata.warnings
    log: journal.Journal | None = None
    try:
        log = journal.open_journal(metadata)
    except DAMAGE as error:  # nothing in it is needed: it was replayed
        metadata.warnings.append(f"the journal is damaged, and is not read: {error}")
    orphans: frozenset[int] = frozenset()
    try:
        orphans = find_orphans(metadata)
    except DAMAGE as error:
        metadata.warnings.append(f"files that were being truncated are not known: {error}")
    volume = ExtVolume(metadata, log, was_replayed=overlay is not None, orphans=orphans)
    volume.damage = damage
    return volume


def open_frame(device: Device) -> ExtVolume:
    """Open a volume that is mounted, for its facts alone.

    Its journal is in use: replaying it would mix two moments.  Raises as `open_volume`.
    """
    metadata = Metadata.load(device)
    log = journal.open_journal(metadata)
    return ExtVolume(metadata, log, was_replayed=False, orphans=frozenset())
