# SPDX-License-Identifier: Apache-2.0
"""The inodes of a new volume: one buffer that holds all of them back to back.

Inode n stands at (n - 1) x inode size, whatever group it will be in, so a group's table is a
slice.  An inode is packed once when its node is seen; what only the placement tells (its map,
later its checksum) is patched in.

Source: [kernel-ext4] "Index Nodes", "Inode Timestamps".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.checksum import crc32c
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import FILE_FLAGS_ONLY, RESTORED_INODE_FLAGS, InodeFlags
from fsdrivers.ext.nodes import FORMAT_MASK, TYPE_BITS
from fsdrivers.record import U16, joined_codec, sparse_codec, words_codec
from fsdrivers.volume import Kind, Node

_BILLION = 1_000_000_000
_MIN_S, _MAX_S = -(2**31), 2**31 - 1  # what 32 bits hold
_MAX_EPOCH_S = 2**34 - 2**31 - 1  # with the two bits of the extra word
_MASK32 = 0xFFFFFFFF
_BEFORE_EXTRA = (
    "mode", "uid_low", "size_low", "accessed_s", "changed_s", "modified_s", "gid_low",
    "links_count", "blocks_low", "flags", "block", "generation", "size_high", "uid_high",
    "gid_high",
)  # fmt: skip
_EXTRA = (
    "extra_isize", "changed_extra", "modified_extra", "accessed_extra", "created_s",
    "created_extra",
)  # fmt: skip
_FEATURE_FLAGS = InodeFlags.PROJINHERIT | InodeFlags.CASEFOLD  # which not all volumes have
_LINK_BLOCK_FLAGS = (Kind.SYMLINK, Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE, Kind.FIFO, Kind.SOCKET)
# i_block of a file that is one run: header and leaf in one call.
PACK_SINGLE_EXTENT = joined_codec(ext.ExtentHeader.codec(), ext.ExtentLeaf.codec()).pack_into
_OWNERS = sparse_codec(
    ext.Inode, ("uid_low", "gid_low", "blocks_low", "blocks_high", "uid_high", "gid_high")
)
_AT = ext.InodeExtended.OFFSETS
_FIELDS = {
    name: sparse_codec(ext.InodeExtended, (name,), start=offset) for name, offset in _AT.items()
}
BLOCK_OFFSET = _AT["block"]


class InodeTable:
    """All inodes of a volume.

    `data` has room for `capacity` inodes; those never put are zeros.
    """

    def __init__(
        self,
        *,
        inode_size: int,
        extra_isize: int,
        capacity: int,
        generation: int,
        kept_flags: int = int(RESTORED_INODE_FLAGS & ~_FEATURE_FLAGS),
    ) -> None:
        self._kept_flags = kept_flags  # those of nodes that inodes get
        self.inode_size = inode_size
        self.generation = generation
        self.data = bytearray(capacity * inode_size)
        self.tail_size = max(inode_size - ext.OLD_INODE_SIZE - extra_isize, 0)
        self._extra_isize = extra_isize
        self.has_extra = inode_size > ext.OLD_INODE_SIZE
        end = ext.OLD_INODE_SIZE + (extra_isize if self.has_extra else 0)
        self._has_project = self.has_extra and end >= ext.InodeExtended.SIZE
        names = _BEFORE_EXTRA + (_EXTRA if self.has_extra else ())
        codec = sparse_codec(ext.InodeExtended, names, end=end)
        self._pack = joined_codec(codec, inode_size - end).pack_into

    def put(
        self,
        number: int,
        node: Node,
        *,
        size: int,
        blocks: int,
        flags: int,
        block: bytes = b"",
        tail: bytes = b"",
        generation: int | None = None,
    ) -> None:
        """Pack an inode with one link.

        Args:
            number: where it goes.
            node: mode, owners, times and flags.
            size: bytes, as i_size.
            blocks: 512-byte sectors, below 2**32.
            flags: InodeFlags that say how it is stored; those of the node are added.
            block: up to 60 bytes of i_block.
            tail: attributes after the extra fields, with their magic.
            generation: of an internal inode; None is the volume's.
        """
        kind = node.kind
        if node.flags:
            kept = node.flags & self._kept_flags
            flags |= kept & ~FILE_FLAGS_ONLY if kind in _LINK_BLOCK_FLAGS else kept
        modified = node.modified_ns
        accessed = node.accessed_ns
        changed = node.changed_ns
        modified_s, modified_x = divmod(modified, _BILLION)
        accessed_s, accessed_x = divmod(modified if accessed is None else accessed, _BILLION)
        changed_s, changed_x = divmod(modified if changed is None else changed, _BILLION)
        modified_x <<= 2
        accessed_x <<= 2
        changed_x <<= 2
        if not (_MIN_S <= modified_s <= _MAX_S):
            modified_s, modified_x = self._wide(modified_s, modified_x)
        if not (_MIN_S <= accessed_s <= _MAX_S):
            accessed_s, accessed_x = self._wide(accessed_s, accessed_x)
        if not (_MIN_S <= changed_s <= _MAX_S):
            changed_s, changed_x = self._wide(changed_s, changed_x)
        uid, gid = node.uid, node.gid
        at = (number - 1) * self.inode_size
        if not self.has_extra:
            self._pack(
                self.data, at, TYPE_BITS[kind] | node.mode & 0o7777, uid & 0xFFFF,
                size & _MASK32, accessed_s, changed_s, modified_s, gid & 0xFFFF, 1, blocks,
                flags, block, self.generation if generation is None else generation,
                size >> 32, uid >> 16, gid >> 16, tail,
            )  # fmt: skip
            return
        created_s, created_x = divmod(node.created_ns or 0, _BILLION)
        created_x <<= 2
        if not (_MIN_S <= created_s <= _MAX_S):
            created_s, created_x = self._wide(created_s, created_x)
        self._pack(
            self.data, at, TYPE_BITS[kind] | node.mode & 0o7777, uid & 0xFFFF,
            size & _MASK32, accessed_s, changed_s, modified_s, gid & 0xFFFF, 1, blocks,
            flags, block, self.generation if generation is None else generation,
            size >> 32, uid >> 16, gid >> 16,
            self._extra_isize, changed_x, modified_x, accessed_x, created_s, created_x, tail,
        )  # fmt: skip

    def _wide(self, seconds: int, extra: int) -> tuple[int, int]:
        """Return the two words of a time that 31 bits and a sign cannot hold.

        Two bits of the extra word add 0 to 3 times 2**32 seconds to the signed 32-bit ones.
        A time beyond even that becomes the nearest that can be stored.
        """
        if not self.has_extra:
            return (_MIN_S if seconds < 0 else _MAX_S), 0
        seconds = max(_MIN_S, min(seconds, _MAX_EPOCH_S))
        low = (seconds + 2**31) % 2**32 - 2**31
        return low, extra | (seconds - low >> 32)

    def set_map(
        self, number: int, block: bytes, *, blocks: int, size: int | None = None, flags: int = 0
    ) -> None:
        """Give an inode its i_block, its sectors and, for directories, size and more flags.

        Raises:
            UnsupportedError: more sectors than 48 bits count.
        """
        if blocks >> 48:
            raise UnsupportedError("ext file of 2**48 or more sectors")
        self._set(number, "block", block.ljust(60, b"\0"))
        self._set(number, "blocks_low", blocks & _MASK32)
        self._set(number, "blocks_high", blocks >> 32)
        if size is not None:
            self._set(number, "size_low", size & _MASK32)
            self._set(number, "size_high", size >> 32)
        if flags:
            self._set(number, "flags", self._get(number, "flags") | flags)

    def set_links(self, number: int, links: int) -> None:
        self._set(number, "links_count", links)

    def set_version(self, number: int, version: int) -> None:
        """Set the low half of i_version, where an attribute's inode counts its references."""
        self._set(number, "version_low", version)

    def set_project(self, number: int, project: int) -> None:
        """Set the project an inode belongs to; it must have the field."""
        self._set(number, "project", project)

    def iter_owners(self, numbers: Iterable[int]) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (inode, user, group, project, sectors) of inodes."""
        size, data = self.inode_size, self.data
        for number in numbers:
            at = (number - 1) * size
            uid, gid, blocks, high, uid_high, gid_high = _OWNERS.unpack_from(data, at)
            project = self._get(number, "project") if self._has_project else 0
            yield (
                number, uid | uid_high << 16, gid | gid_high << 16, project, blocks | high << 32
            )  # fmt: skip

    def grow(self, inodes: int) -> None:
        """Make room for more inodes at the end."""
        self.data.extend(bytes(inodes * self.inode_size))

    def set_xattr_block(self, number: int, block: int, sectors: int) -> None:
        """Point an inode to its attribute block and count that block among its own."""
        self._set(number, "xattr_block_low", block & _MASK32)
        self._set(number, "xattr_block_high", block >> 32)
        total = self._get(number, "blocks_low") + (self._get(number, "blocks_high") << 32)
        total += sectors
        self._set(number, "blocks_low", total & _MASK32)
        self._set(number, "blocks_high", total >> 32)

    def _set(self, number: int, name: str, value: int | bytes) -> None:
        offset = (number - 1) * self.inode_size + _AT[name]
        _FIELDS[name].pack_into(self.data, offset, value)

    def _get(self, number: int, name: str) -> int:
        offset = (number - 1) * self.inode_size + _AT[name]
        return int(_FIELDS[name].unpack_from(self.data, offset)[0])

    def generation_of(self, number: int) -> int:
        """Return the generation an inode was put with."""
        return self._get(number, "generation")

    def is_file(self, number: int) -> bool:
        return self._get(number, "mode") & FORMAT_MASK == TYPE_BITS[Kind.FILE]

    def map_of(self, number: int) -> bytes:
        """Return the i_block of an inode."""
        at = (number - 1) * self.inode_size + BLOCK_OFFSET
        return bytes(self.data[at : at + 60])

    def seal(self, volume_seed: int, numbers: Iterable[int]) -> None:
        """Store the checksums of some inodes.  Measured: 1 us an inode."""
        size = self.inode_size
        pack_identity, put_half = words_codec(2).pack, U16.pack_into
        low = _AT["checksum_low"]
        high = _AT["checksum_high"]
        get_generation = _FIELDS["generation"].unpack_from
        generation_at = _AT["generation"]
        data, has_extra = self.data, self.has_extra
        with memoryview(data) as view:
            for number in numbers:
                at = (number - 1) * size
                (generation,) = get_generation(data, at + generation_at)
                seed = crc32c(volume_seed, pack_identity(number, generation))
                value = crc32c(seed, view[at : at + size])
                put_half(data, at + low, value & 0xFFFF)
                if has_extra:
                    put_half(data, at + high, value >> 16)
