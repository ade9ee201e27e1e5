# SPDX-License-Identifier: Apache-2.0
"""ISO 9660 images for tests: of foreign programs, and small ones put together byte by byte."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from fsdrivers.iso9660.format import SECTOR_SIZE, DirectoryRecord, VolumeDescriptor
from fsdrivers.iso9660.geometry import even
from fsdrivers.iso9660.volume import IsoVolume
from fsdrivers.volume import Entry, Kind

ZERO_TIME = bytes(7)
NO_TIME = b"0" * 16 + b"\0"
TIME_S = 1_600_000_000  # of every object of the source tree


def both(value: int, size: int) -> bytes:
    """A number stored twice in `size` bytes."""
    return value.to_bytes(size // 2, "little") + value.to_bytes(size // 2, "big")


def make_tree(root: Path) -> Path:
    """Make a tree of every kind of object below `root`."""
    root.mkdir()
    (root / "hello.txt").write_bytes(b"hello\n" * 1000)
    os.chmod(root / "hello.txt", 0o4750)
    os.chown(root / "hello.txt", 1000, 100_001)
    os.link(root / "hello.txt", root / "hard link")
    (root / "empty").touch()
    (root / "exact").write_bytes(bytes(range(256)) * 8)
    (root / "over").write_bytes(b"x" * 2049)
    (root / ("n" * 240 + ".long")).write_bytes(b"long")
    os.symlink("dir/../dir/./x", root / "soft")
    os.symlink("/" + "a" * 200 + "/../b", root / "soft long")
    os.symlink("/".join(f"component{n}" for n in range(18)), root / "soft parts")
    os.symlink("/", root / "soft root")
    (root / "dir").mkdir(mode=0o711)
    (root / "dir" / "ünï.txt").write_bytes(b"u")
    deep = root.joinpath(*map(str, range(1, 12)))
    deep.mkdir(parents=True)
    (deep / "deep").write_bytes(b"deep")
    many = root / "many"
    many.mkdir()
    for number in range(150):
        (many / f"file number {number:04d}.data").write_bytes(b"%d" % number)
    for name, mode, device in (
        ("null", 0o20666, (1, 3)),
        ("disk", 0o60640, (8, 16)),
        ("large", 0o60600, (259, 300)),
    ):
        os.mknod(root / name, mode, os.makedev(*device))
        os.chmod(root / name, mode & 0o7777)
    os.mkfifo(root / "fifo", 0o644)
    for parent, names, files in os.walk(root, topdown=False):
        for name in names + files:
            os.utime(os.path.join(parent, name), (TIME_S, TIME_S), follow_symlinks=False)
    os.utime(root, (TIME_S, TIME_S))
    return root


def facts_of_tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Return what a host directory holds, by path; `facts_of` says the same of a volume."""
    facts: dict[bytes, tuple[object, ...]] = {}
    base = os.fsencode(root)
    paths = [base]
    for parent, names, files in os.walk(base):
        paths += [os.path.join(parent, name) for name in names + files]
    for path in paths:
        status = os.lstat(path)
        mode = status.st_mode
        content, device = b"", (0, 0)
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).digest()
        elif stat.S_ISLNK(mode):
            content = os.readlink(path)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            device = os.major(status.st_rdev), os.minor(status.st_rdev)
        facts[path[len(base) + 1 :]] = (
            stat.S_IFMT(mode),
            stat.S_IMODE(mode),
            status.st_uid,
            status.st_gid,
            int(status.st_mtime),
            device,
            content,
        )
    return facts


_FORMATS = {
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}


def paths_of(volume: IsoVolume) -> dict[bytes, Entry]:
    """Return the entries of a volume by path; the root has an empty one."""
    directories: dict[int, bytes] = {}
    found: dict[bytes, Entry] = {}
    for entry in volume.walk():
        base = directories.get(entry.parent, b"") if found else b""
        path = base + b"/" + entry.name if base else entry.name
        found[path] = entry
        if entry.node.kind == Kind.DIRECTORY:
            directories[entry.node.number] = path
    return found


def facts_of(volume: IsoVolume) -> dict[bytes, tuple[object, ...]]:
    """Return what a volume holds as `facts_of_tree` does."""
    facts: dict[bytes, tuple[object, ...]] = {}
    for path, entry in paths_of(volume).items():
        node = entry.node
        content = node.target
        if node.kind == Kind.FILE:
            content = hashlib.sha256(volume.read(node, 0, node.size)).digest()
        facts[path] = (
            _FORMATS[node.kind],
            node.mode,
            node.uid,
            node.gid,
            node.modified_ns // 10**9,
            node.device,
            content,
        )
    return facts


@dataclass
class Made:
    """A record of a hand-made directory: what goes into its fields."""

    name: bytes
    block: int = 0
    size: int = 0
    flags: int = 0
    attribute_blocks: int = 0
    unit_blocks: int = 0
    gap_blocks: int = 0
    use: bytes = b""
    time: bytes = ZERO_TIME
    sequence: int = 1

    def pack(self) -> bytes:
        """Return the directory record."""
        head = even(DirectoryRecord.SIZE + len(self.name))
        length = even(head + len(self.use))
        record = DirectoryRecord(
            length=length,
            attribute_blocks=self.attribute_blocks,
            block_both=both(self.block, 8),
            size_both=both(self.size, 8),
            recorded=self.time,
            flags=self.flags,
            unit_blocks=self.unit_blocks,
            gap_blocks=self.gap_blocks,
            sequence_both=both(self.sequence, 4),
            name_size=len(self.name),
        )
        return ((record.pack() + self.name).ljust(head, b"\0") + self.use).ljust(length, b"\0")


@dataclass
class HandMade:
    """An image with one root directory of given records, and given blocks.

    The root is at byte 40960, the path tables before it; everything else is the caller's.
    """

    records: list[Made]
    blocks: dict[int, bytes] = field(default_factory=dict)  # block number -> content
    block_size: int = SECTOR_SIZE
    size: int = 64 * SECTOR_SIZE
    root_use: bytes = b""
    parent_use: bytes = b""
    supplementary: list[VolumeDescriptor] = field(default_factory=list)

    ROOT = 40960
    TABLE_L, TABLE_M = 36864, 38912

    def build(self) -> bytes:
        """Return the image."""
        scale = self.block_size
        root_block = self.ROOT // scale
        directory = b"".join(
            [
                Made(b"\0", root_block, SECTOR_SIZE, 2, use=self.root_use).pack(),
                Made(b"\1", root_block, SECTOR_SIZE, 2, use=self.parent_use).pack(),
                *(record.pack() for record in self.records),
            ]
        )
        assert len(directory) <= SECTOR_SIZE, "the root has one sector"
        image = bytearray(self.size)
        path_record = b"\1\0" + root_block.to_bytes(4, "little") + b"\1\0\0\0"
        image[self.TABLE_L : self.TABLE_L + 10] = path_record
        path_record = b"\1\0" + root_block.to_bytes(4, "big") + b"\0\1\0\0"
        image[self.TABLE_M : self.TABLE_M + 10] = path_record
        image[self.ROOT : self.ROOT + len(directory)] = directory
        for block, content in self.blocks.items():
            image[block * scale : block * scale + len(content)] = content
        at = 16 * SECTOR_SIZE
        for descriptor in (self.descriptor(), *self.supplementary):
            image[at : at + SECTOR_SIZE] = descriptor.pack()
            at += SECTOR_SIZE
        image[at : at + 7] = b"\xffCD001\1"
        return bytes(image)

    def descriptor(self, **changes: object) -> VolumeDescriptor:
        """Return a volume descriptor of this volume."""
        root_block = self.ROOT // self.block_size
        fields: dict[str, object] = {
            name: bytes(VolumeDescriptor.LAYOUT._subcons[name].sizeof())
            if not isinstance(value, int)
            else 0
            for name, value in VolumeDescriptor.unpack(bytes(SECTOR_SIZE)).to_plain().items()
        }
        fields |= {
            "type": 1,
            "standard_id": b"CD001",
            "version": 1,
            "volume_id": b"HANDMADE".ljust(32),
            "blocks_both": both(self.size // self.block_size, 8),
            "set_size_both": both(1, 4),
            "sequence_both": both(1, 4),
            "block_size_both": both(self.block_size, 4),
            "path_table_size_both": both(10, 8),
            "path_table_l": self.TABLE_L // self.block_size,
            "path_table_m": self.TABLE_M // self.block_size,
            "root": Made(b"\0", root_block, SECTOR_SIZE, 2).pack(),
            "structure_version": 1,
            **dict.fromkeys(("created", "modified", "expires", "effective"), NO_TIME),
        }
        return VolumeDescriptor.from_plain({**fields, **changes})  # type: ignore[dict-item]
