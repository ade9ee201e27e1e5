# SPDX-License-Identifier: Apache-2.0
"""Volumes of drivers in a backup: comparing, damage, and what cannot be read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.agent.backup import run_backup
from backup.agent.errors import NotRecoverableError, Problem
from backup.agent.exclusions import IsExcluded
from backup.agent.inspection import InspectedDisk, Partition
from backup.agent.local_set import SECOND_NS, LocalSet
from backup.agent.result import BackupOptions, BackupResult
from backup.agent.sources import add_disk, scan_partition
from backup.agent.volume_scan import walk_ahead
from backup.objects.model import NodeObject, ObjectKind, Region, VolumeObject
from backup.store.repository import StoredRepository
from fsdrivers import open_volume
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import CorruptError
from fsdrivers.ext.format.flags import Incompat
from fsdrivers.losses import Loss, OnDamage
from fsdrivers.partitions import PartitionTable
from fsdrivers.volume import Entry, Extent, Kind, Node, Plain
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    MIB,
    DataSet,
    FakeVolume,
    make_ext4,
    make_repository,
    read_data_set,
)


class FakeSource:
    """A disk without a table that holds one fake volume."""

    def __init__(self, volume: FakeVolume) -> None:
        self.volume = volume
        self.device = MemoryDevice(volume.size)

    def inspect(self, *, allow_raw: bool) -> list[Problem]:
        return []

    def scan(self, local: LocalSet, is_excluded: IsExcluded | None) -> None:
        table = PartitionTable("none", "", 512, self.device.size)
        partition = Partition(0, self.device, self.volume.type, self.volume)
        disk = InspectedDisk("sda", self.device, table, [partition])

        def scan_tree(local: LocalSet, partition: Partition, obj: VolumeObject) -> None:
            scan_partition(local, partition, obj, is_excluded)

        add_disk(local, disk, scan_tree)

    def settle(self, local: LocalSet, *, is_last: bool) -> bool:
        return False

    def system(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plain]:
    """Facts of a real volume, which the minimum size is computed from."""
    directory = tmp_path_factory.mktemp("description")
    (directory / "tree").mkdir()
    with FileDevice.open(make_ext4(directory / "volume.img", directory / "tree")) as device:
        return open_volume(device).describe()


@pytest.fixture
def volume(description: dict[str, Plain]) -> FakeVolume:
    volume = FakeVolume()
    volume.describe = lambda: description  # type: ignore[method-assign]
    return volume


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[StoredRepository]:
    with make_repository(tmp_path / "store") as repository:
        yield repository


def back_up(repository: StoredRepository, volume: FakeVolume) -> BackupResult:
    """Back up a fake volume."""
    options = BackupOptions(workers=1)
    return run_backup(repository, MASTER, MACHINE, [FakeSource(volume)], options)


def set_of(repository: StoredRepository) -> DataSet:
    return read_data_set(repository)


def test_nothing_is_read_twice(repository: StoredRepository, volume: FakeVolume) -> None:
    """An unchanged volume is not read at all by the second run."""
    for number in range(50):
        volume.add(b"f%d" % number, b"content %d" % number, modified_ns=5)
    back_up(repository, volume)
    volume.reads = 0
    result = back_up(repository, volume)

    assert volume.reads == 0
    assert result.unchanged == result.objects


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", 0o4711),
        ("uid", 12),
        ("flags", 0x10),
        ("xattrs", ((b"user.a", b"1"),)),
        ("accessed_ns", 77),
    ],
)
def test_changed_attributes(
    repository: StoredRepository, volume: FakeVolume, field: str, value: object
) -> None:
    """A changed attribute is stored without reading the content again; the time of the last
    access alone does not count as a change."""
    node = volume.add(b"file", b"content")
    back_up(repository, volume)
    volume.reads = 0
    setattr(node, field, value)
    result = back_up(repository, volume)
    data_set = set_of(repository)
    kept = data_set.nodes[b"/file"]

    assert volume.reads == 0
    assert result.changed == (field != "accessed_ns")
    if field == "xattrs":
        assert data_set.objects[kept.security].xattrs == value  # type: ignore[union-attr]
    else:
        assert getattr(kept, field) == value
    assert data_set.files == {b"/file": b"content"}


def test_volume_without_change_times(repository: StoredRepository, volume: FakeVolume) -> None:
    """Where there are no change times, recent files are read again and older ones are not."""
    old = volume.add(b"old", b"old")
    recent = volume.add(b"recent", b"recent", modified_ns=1 << 62)
    without_change_times(volume)
    back_up(repository, volume)
    volume.reads = 0
    result = back_up(repository, volume)

    assert volume.reads == 1
    assert result.unchanged == result.objects
    assert (old.size, recent.size) == (3, 6)


def without_change_times(volume: FakeVolume, used_size: int = 1 << 40) -> None:
    """Make the volume one of a filesystem that has none."""
    for entry in volume.entries:
        entry.node.changed_ns = None
    volume.used_size = lambda: used_size  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("owner", "field", "value"),
    [
        ("node", "first_unit", 9),
        ("node", "flags", 1),
        ("node", "created_ns", 7),
        ("node", "accessed_ns", 7),
        ("entry", "short_name", b"FILE    TXT"),
        ("entry", "name_flags", 8),
    ],
)
def test_replaced_under_the_same_size_and_time(
    repository: StoredRepository, volume: FakeVolume, owner: str, field: str, value: object
) -> None:
    """Without change times whatever else is told of a file has to be as it was, or it is read."""
    node = volume.add(b"file", b"first", modified_ns=5)
    without_change_times(volume)
    back_up(repository, volume)
    volume.contents[node.number] = b"other"
    setattr(node if owner == "node" else volume.entries[1], field, value)
    back_up(repository, volume)

    assert set_of(repository).files == {b"/file": b"other"}


def test_small_volume_without_change_times(
    repository: StoredRepository, volume: FakeVolume
) -> None:
    """A small volume without change times, as what starts a machine is, is always read."""
    node = volume.add(b"cmdline.txt", b"root=PARTUUID=aaaaaaaa-02", modified_ns=5)
    without_change_times(volume, 20 * MIB)
    back_up(repository, volume)
    volume.contents[node.number] = b"root=PARTUUID=bbbbbbbb-02"
    back_up(repository, volume)

    assert set_of(repository).files == {b"/cmdline.txt": b"root=PARTUUID=bbbbbbbb-02"}


def test_change_times_in_whole_seconds(repository: StoredRepository, volume: FakeVolume) -> None:
    """A file that changes in the second in which it was read is read again, where change times
    have no fractions: inodes of 128 bytes have none."""
    second = time.time_ns() // SECOND_NS * SECOND_NS + SECOND_NS
    node = volume.add(b"file", b"first")
    node.changed_ns = second
    time.sleep((second - time.time_ns()) / SECOND_NS + 0.3)
    back_up(repository, volume)
    volume.contents[node.number] = b"other"
    back_up(repository, volume)

    assert set_of(repository).files == {b"/file": b"other"}


def test_clones(repository: StoredRepository, description: dict[str, Plain]) -> None:
    """Of two volumes that are copies of each other, each keeps its own content."""
    volumes = [FakeVolume(), FakeVolume()]
    for volume, content in zip(volumes, (b"one", b"two"), strict=True):
        volume.describe = lambda: description  # type: ignore[method-assign]
        volume.add(b"seed", content)
    options = BackupOptions(workers=1)
    for _ in range(2):
        sources = [FakeSource(volume) for volume in volumes]
        result = run_backup(repository, MASTER, MACHINE, sources, options)
        data_set = set_of(repository)
        kept = [
            data_set.contents[number]
            for number, obj in data_set.objects.items()
            if isinstance(obj, NodeObject) and obj.name == b"seed"
        ]
        assert kept == [b"one", b"two"]
    assert result.unchanged == result.objects
    assert [volume.reads for volume in volumes] == [1, 1], "neither is read twice"


def test_swapped_names(repository: StoredRepository, volume: FakeVolume) -> None:
    """Files that exchanged their names keep their content to themselves."""
    volume.add(b"a", b"first")
    volume.add(b"b", b"second")
    back_up(repository, volume)
    one, two = volume.entries[1:]
    one.name, two.name = two.name, one.name
    result = back_up(repository, volume)

    assert set_of(repository).files == {b"/b": b"first", b"/a": b"second"}
    assert result.bytes_read == 0


def test_shared_attributes_are_stored_once(
    repository: StoredRepository, volume: FakeVolume
) -> None:
    """Equal extended attributes are one object."""
    for number in range(10):
        volume.add(b"f%d" % number, xattrs=((b"user.a", b"%d" % (number % 2)),))
    back_up(repository, volume)
    kinds = [obj.kind for obj in set_of(repository).objects.values()]

    assert kinds.count(ObjectKind.SECURITY) == 2


def test_unreadable_file(
    repository: StoredRepository, volume: FakeVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be read is left out with its other names; the result is partial and
    names it."""
    bad = volume.add(b"bad", b"x" * 100)
    bad.links = 2
    volume.entries.append(Entry(2, b"other name", bad))
    volume.add(b"good", b"y" * 100)
    read = volume.read

    def fail(node: Node, offset: int, length: int) -> bytes:
        if node is bad:
            raise CorruptError("extent of inode 11", 0x1000)
        return read(node, offset, length)

    monkeypatch.setattr(volume, "read", fail)
    result = back_up(repository, volume)

    assert set(set_of(repository).nodes) == {b"/", b"/good"}
    assert result.is_partial
    assert result.missing == 1
    assert result.warnings == ["sda:0/bad: left out: extent of inode 11 at byte 0x1000"]


def test_damaged_directory(
    repository: StoredRepository, volume: FakeVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a walk gave before it met damage is kept, and the result is partial."""
    volume.add(b"good", b"y" * 100)
    walk = volume.walk

    def fail(on_damage: OnDamage) -> Iterator[Entry]:
        yield from walk(on_damage)
        raise CorruptError("directory block", 0x2000)

    monkeypatch.setattr(volume, "walk", fail)
    result = back_up(repository, volume)

    assert set_of(repository).files == {b"/good": b"y" * 100}
    assert result.is_partial
    assert "directory block at byte 0x2000" in result.warnings[0]


def test_large_sparse_file(repository: StoredRepository, volume: FakeVolume) -> None:
    """A large file is packed in parts by several slices, its holes left out."""
    content = bytearray(40 * MIB)
    content[5 * MIB : 25 * MIB] = bytes(range(256)) * (20 * MIB // 256)
    node = volume.add(b"large", bytes(content))
    volume.mapped[node.number] = [
        Extent(5 * MIB, 20 * MIB, 0),
        Extent(30 * MIB, 4 * MIB, 0, is_unwritten=True),
    ]
    result = back_up(repository, volume)
    data_set = set_of(repository)
    kept = data_set.nodes[b"/large"]

    assert data_set.files[b"/large"] == bytes(content)
    assert kept.regions == (Region(5 * MIB, 20 * MIB, False), Region(30 * MIB, 4 * MIB, True))
    assert [piece.offset for piece in kept.pieces] == [n * MIB for n in range(5, 25)]
    assert result.bytes_read == 20 * MIB


def test_empty_files_and_all_holes(repository: StoredRepository, volume: FakeVolume) -> None:
    """Files without content are told apart from files that are one large hole."""
    volume.add(b"empty", b"")
    small = volume.add(b"small hole", bytes(8192))
    large = volume.add(b"large hole", bytes(20 * MIB))
    volume.mapped = {small.number: [], large.number: []}
    back_up(repository, volume)
    nodes = set_of(repository).nodes

    assert nodes[b"/empty"].regions is None
    assert nodes[b"/small hole"].regions == ()
    assert nodes[b"/large hole"].regions == ()
    assert not any(node.pieces for node in nodes.values())


def test_what_cannot_be_laid_out_is_refused(
    repository: StoredRepository, volume: FakeVolume, description: dict[str, Plain]
) -> None:
    """A volume whose driver could not write it again is refused before anything is sent."""
    volume.add(b"file", b"content")
    feature = Incompat.LARGEDIR | Incompat.DIRDATA
    volume.describe = lambda: {**description, "feature_incompat": int(feature)}  # type: ignore[method-assign]
    with pytest.raises(NotRecoverableError, match="laid out"):
        back_up(repository, volume)

    assert not repository.pending_packs(MACHINE)


def test_devices_links_and_pipes(repository: StoredRepository, volume: FakeVolume) -> None:
    """Special files keep what makes them what they are."""
    volume.add(b"null", kind=Kind.CHARACTER_DEVICE, device=(1, 3))
    volume.add(b"disk", kind=Kind.BLOCK_DEVICE, device=(259, 70000))
    volume.add(b"pipe", kind=Kind.FIFO)
    volume.add(b"link", kind=Kind.SYMLINK, target=b"\xff/..", size=4)
    back_up(repository, volume)
    nodes = set_of(repository).nodes

    assert nodes[b"/disk"].device == (259, 70000)
    assert nodes[b"/link"].target == b"\xff/.."
    assert nodes[b"/null"].kind is ObjectKind.CHARACTER_DEVICE
    assert all(isinstance(node, NodeObject) and node.signature for node in nodes.values())


def test_a_walk_ahead_loses_nothing() -> None:
    """Names read while somebody waits come first, then the rest, then what damage was met."""
    volume = FakeVolume()
    for number in range(1000):
        volume.add(b"file %d" % number, b"")
    asked: list[int] = []

    def is_waiting() -> bool:
        asked.append(1)
        return len(asked) < 2

    class DamagedVolume(FakeVolume):
        def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
            assert on_damage is not None
            yield from volume.entries[:700]
            on_damage(Loss(7, CorruptError("a name", 0)))
            yield from volume.entries[700:900]
            raise CorruptError("a directory", 0)

    def on_damage(loss: Loss) -> None:
        told.append((loss.directory, seen))

    told: list[tuple[int, int]] = []
    assert list(walk_ahead(volume, is_waiting)(on_damage)) == volume.entries
    assert len(asked) == 2
    for waiting in (True, False):
        told, seen = [], 0
        names = walk_ahead(DamagedVolume(), lambda waiting=waiting: waiting)(on_damage)  # type: ignore[misc]
        for seen, entry in enumerate(itertools.islice(names, 900), 1):
            assert entry is volume.entries[seen - 1]
        with pytest.raises(CorruptError):
            next(names)
        assert told == [(7, 700)]
