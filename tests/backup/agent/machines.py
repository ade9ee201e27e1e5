# SPDX-License-Identifier: Apache-2.0
"""Machines to back up, and what a data set says of them: shared by the agent's tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from backup.agent.backup import run_backup
from backup.agent.live.source import LiveSource
from backup.agent.machine import KernelDisk, Machine, iter_mounts
from backup.agent.result import BackupOptions, BackupResult
from backup.agent.sources import DiskSource
from backup.objects.data_keys import DataKey
from backup.objects.identification import identification
from backup.objects.keys import MasterKey
from backup.objects.model import (
    BackupObject,
    NodeObject,
    ObjectKind,
    Piece,
    VolumeObject,
)
from backup.objects.pack import PackReader
from backup.objects.table import TableReader
from backup.repository import Repository
from backup.store.local import open_store
from backup.store.repository import StoredRepository
from fsdrivers.losses import OnDamage
from fsdrivers.volume import Entry, Extent, Kind, Node, Plain, Volume
from tests.backup.repositories import SECRET, key_file, open_repository

MASTER = MasterKey(bytes(range(32)))
MACHINE = "box"
MIB = 1 << 20
BLOCK = 4096


def make_repository(directory: Path) -> StoredRepository:
    """Make a store with one user."""
    with open_store(directory, create=True) as store:
        store.register("user", key_file(), SECRET)
    return open_repository(directory, "user")


def make_ext4(path: Path, tree: Path, size: int = 32 * MIB, *options: str) -> Path:
    """Make an image of an ext4 volume that holds `tree`."""
    with path.open("wb") as stream:
        stream.truncate(size)
    command = [
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        *options,
        "-d",
        str(tree),
        str(path),
    ]
    subprocess.run(command, check=True)
    return path


def make_disk(path: Path, *partitions: tuple[str, Path], label: str = "dos") -> Path:
    """Make an image of a disk whose partitions, from 1 MiB on, are copies of volume images."""
    position, script = MIB, f"label: {label}\n"
    places = []
    for kind, volume in partitions:
        size = volume.stat().st_size
        script += f"start={position // 512}, size={size // 512}, type={kind}\n"
        places.append((position, volume))
        position += -(-size // MIB) * MIB
    with path.open("wb") as stream:
        stream.truncate(position + MIB)
    subprocess.run(["sfdisk", "-q", str(path)], input=script, text=True, check=True)
    with path.open("r+b") as stream:
        for place, volume in places:
            stream.seek(place)
            stream.write(volume.read_bytes())
    return path


def back_up(
    repository: Repository,
    *disks: Path,
    options: BackupOptions | None = None,
    key: DataKey = MASTER,
) -> BackupResult:
    """Back up disk images as the machine of the tests, sealed with `key`."""
    sources = [DiskSource(disk) for disk in disks]
    return run_backup(repository, key, MACHINE, sources, options or BackupOptions(workers=2))


@dataclass
class DataSet:
    """The last data set of the machine, read back with all its content."""

    objects: dict[int, BackupObject]
    contents: dict[int, bytes]
    streams: dict[tuple[int, bytes], bytes]

    @property
    def nodes(self) -> dict[bytes, NodeObject]:
        """Nodes by path in their volume."""
        return dict(self._iter_nodes())

    @property
    def files(self) -> dict[bytes, bytes]:
        """Contents of regular files by path; hard links included."""
        found = {}
        for path, obj in self._iter_nodes():
            number = obj.target_number or obj.number
            target = self.objects[number]
            if target.kind is ObjectKind.FILE:
                found[path] = self.contents[number]
        return found

    @property
    def volumes(self) -> list[VolumeObject]:
        return [obj for obj in self.objects.values() if isinstance(obj, VolumeObject)]

    def _iter_nodes(self) -> Iterator[tuple[bytes, NodeObject]]:
        for obj in self.objects.values():
            if isinstance(obj, NodeObject):
                full = identification(obj, self.objects.__getitem__)
                yield b"/" + full.partition(b"/")[2], obj


def read_data_set(repository: Repository, data_set: str | None = None) -> DataSet:
    """Read the table and open every piece: an error means that something is not whole."""
    if data_set is None:
        data_set = repository.data_sets(MACHINE)[-1].id
    with repository.open_table(data_set) as stream:
        reader = TableReader(MASTER, stream)
        objects = {obj.number: obj for obj in reader}
        packs = reader.summary.packs
    readers = [PackReader(reader.key, pack.salt) for pack in packs]
    contents, streams = {}, {}

    def open_piece(piece: Piece) -> bytes:
        sealed = repository.read_pack(
            packs[piece.pack].digest, piece.pack_offset, piece.sealed_length
        )
        return readers[piece.pack].open(piece, sealed)

    for obj in objects.values():
        pieces = getattr(obj, "pieces", ())
        end = max((piece.offset + piece.length for piece in pieces), default=0)
        size = obj.size if isinstance(obj, NodeObject) else end
        content = bytearray(max(size, end))
        for piece in pieces:
            content[piece.offset : piece.offset + piece.length] = open_piece(piece)
        contents[obj.number] = bytes(content)
        for stream in getattr(obj, "streams", ()):
            made = bytearray(stream.size)
            for piece in stream.pieces:
                made[piece.offset : piece.offset + piece.length] = open_piece(piece)
            streams[obj.number, stream.name] = bytes(made)
    return DataSet(objects, contents, streams)


def files_below(tree: Path) -> dict[bytes, bytes]:
    """Return the regular files of a tree by their path from it."""
    return {
        b"/" + bytes(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


class FakeVolume(Volume):
    """A volume in memory: a list of entries, contents, and extents where they matter."""

    type = "ext4"
    uuid = "0a0b0c0d-0000-4000-8000-000000000001"
    label = b""
    block_size = BLOCK

    def __init__(self, size: int = 64 * MIB) -> None:
        self.size = size
        self.entries: list[Entry] = [Entry(2, b"", Node(2, Kind.DIRECTORY, changed_ns=1))]
        self.contents: dict[int, bytes] = {}
        self.mapped: dict[int, list[Extent]] = {}
        self.reads = 0

    def add(self, name: bytes, content: bytes | None = None, **fields: object) -> Node:
        """Add a file (or, without content, whatever `fields` say) to the root."""
        parent = fields.pop("parent", 2)
        number = fields.pop("number", len(self.entries) + 10)
        kind = fields.pop("kind", Kind.FILE)
        assert isinstance(number, int), "numbers are integers"
        assert isinstance(kind, Kind), "kinds are kinds"
        assert isinstance(parent, int), "parents are numbers"
        node = Node(number, kind, changed_ns=1, **fields)  # type: ignore[arg-type]
        if content is not None:
            node.size = len(content)
            self.contents[number] = content
        self.entries.append(Entry(parent, name, node))
        return node

    def describe(self) -> dict[str, Plain]:
        return {"block_size": BLOCK}

    def used_size(self) -> int:
        return sum(map(len, self.contents.values()))

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        yield from self.entries

    def extents(self, node: Node) -> list[Extent]:
        length = -(-node.size // BLOCK) * BLOCK
        return self.mapped.get(node.number, [Extent(0, length, 0)] if length else [])

    def read(self, node: Node, offset: int, length: int) -> bytes:
        self.reads += 1
        return self.contents[node.number][offset : offset + length]


def contents_of(data_set: DataSet, wanted: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return of a data set's files those that `wanted` names."""
    return {path: content for path, content in data_set.files.items() if path in wanted}


@contextlib.contextmanager
def live_volume(image: Path, *options: str) -> Iterator[tuple[Path, Machine]]:
    """Mount an image as the one disk of a running machine; yield its root and the machine."""
    point = image.with_name(image.name + ".live")
    point.mkdir()
    with loop_device(image) as device:
        subprocess.run(["mount", *options, device, str(point)], check=True)
        try:
            disk = KernelDisk(
                image.name, device, numbers_of(device), image.stat().st_size, is_removable=False
            )
            mounts = tuple(iter_mounts(Path("/proc/self/mountinfo").read_bytes()))
            yield point, Machine((disk,), mounts, ())
        finally:
            subprocess.run(["umount", "-l", str(point)], check=True)
    point.rmdir()


@contextlib.contextmanager
def loop_device(image: Path, offset: int = 0) -> Iterator[str]:
    """Attach an image to a loop device."""
    command = ["losetup", "--find", "--show", "--offset", str(offset), str(image)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def numbers_of(device: str) -> tuple[int, int]:
    """Return major and minor of a device node."""
    number = os.stat(device).st_rdev
    return os.major(number), os.minor(number)


def back_up_live(repository: StoredRepository, machine: Machine) -> tuple[BackupResult]:
    """Back up a running machine."""
    options = BackupOptions(workers=2)
    return (run_backup(repository, MASTER, MACHINE, [LiveSource(machine)], options),)
