# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes become backup objects: streams as stored, descriptors once, swap files blank."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from backup.agent.errors import NotRecoverableError
from backup.agent.machine import KernelDisk, KernelPartition, Machine, iter_mounts
from backup.agent.result import BackupOptions
from backup.objects.content import xattrs_of
from backup.objects.model import MarkerObject, NodeObject, ObjectKind, Region, SecurityObject
from backup.objects.table import TableReader
from backup.store.repository import StoredRepository
from fsdrivers.errors import CorruptError
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.volume import NtfsVolume
from fsdrivers.volume import Kind, Node
from tests.backup.agent.machines import (
    MASTER,
    DataSet,
    back_up,
    back_up_live,
    loop_device,
    make_repository,
    numbers_of,
    read_data_set,
)
from tests.fsdrivers.ntfs.volumes import MIB, OPTIONS, mounted, reparse
from tests.programs import run
from tests.rebuild.ntfs_machines import (
    SNAPSHOT,
    START,
    SWAP_SIZE,
    SYSTEM_DIRECTORY,
    copy_into_disk,
    extracted,
    make_disk,
    volume_of,
)

pytestmark = [pytest.mark.tools, pytest.mark.root]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a rich NTFS volume; no test changes it."""
    return make_disk(tmp_path_factory.mktemp("ntfs") / "disk.img")


@pytest.fixture
def repository(tmp_path: Path) -> StoredRepository:
    """An empty store."""
    return make_repository(tmp_path / "store")


def security_of(data: DataSet, node: NodeObject) -> SecurityObject | None:
    """Return the security object that a node refers to."""
    found = data.objects.get(node.security)
    assert found is None or isinstance(found, SecurityObject)
    return found


def check_node(data: DataSet, obj: NodeObject, volume: NtfsVolume, path: bytes) -> None:
    """Check content and streams of a node against what is stored on the volume."""
    node = volume.nodes.node(volume.mft.file(obj.source_number))
    assert [(s.name, s.size, s.flags, s.padding) for s in obj.streams] == list(node.streams), path
    assert xattrs_of(obj, security_of(data, obj)) == node.xattrs, path
    for stream in obj.streams:
        if stream.name:
            found = data.streams[obj.number, stream.name]
            assert found == volume.read_stored(node, stream.name, 0, stream.size), path
    if obj.kind is ObjectKind.FILE and not is_blank(obj):
        found = data.contents[obj.number]
        assert found == volume.read_stored(node, b"", 0, len(found)), path


def is_blank(obj: NodeObject) -> bool:
    """Tell whether nothing of a file is written."""
    return obj.regions is not None and all(region.is_unwritten for region in obj.regions)


def test_everything_is_in_the_data_set(disk: Path, repository: StoredRepository) -> None:
    """Names and all that belongs to them, attributes, content and streams as stored."""
    result = back_up(repository, disk)
    data = read_data_set(repository)
    volume = volume_of(disk)
    nodes = data.nodes
    paths = {entry.node.number: b"" for entry in volume.walk() if not entry.name}
    count = 0
    for entry in volume.walk():
        path = paths[entry.parent] + b"/" + entry.name if entry.name else b"/"
        if entry.node.kind is Kind.DIRECTORY and entry.name:
            paths[entry.node.number] = path
        if entry.name in (SNAPSHOT.encode(), SNAPSHOT[38:].encode()):
            assert path not in nodes
            continue
        count += 1
        obj = nodes[path]
        assert (obj.short_name, obj.name_flags) == (entry.short_name, entry.name_flags), path
        assert obj.name_times == entry.name_times, path
        if obj.kind is ObjectKind.HARD_LINK:
            assert data.objects[obj.target_number].kind is ObjectKind.FILE
    for path, obj in nodes.items():
        if obj.kind is not ObjectKind.HARD_LINK:
            check_node(data, obj, volume, path)

    assert count == len(nodes)
    assert result.missing == 0
    assert not result.warnings
    assert result.bytes_read > 18 * MIB, "two large streams"


def test_descriptors_are_stored_once(disk: Path, repository: StoredRepository) -> None:
    """A security object is a descriptor and nothing else; two of one volume always differ."""
    back_up(repository, disk)
    data = read_data_set(repository)
    found = [obj for obj in data.objects.values() if isinstance(obj, SecurityObject)]

    assert all(obj.descriptor and not obj.xattrs for obj in found)
    assert len({obj.descriptor for obj in found}) == len(found)
    named = [node for path, node in data.nodes.items() if b"own attributes" in path]
    assert len(named) == 30
    assert len({node.security for node in named}) == 1
    assert len({node.xattrs for node in named}) == 30


def test_swap_files_are_blank_and_snapshots_left_out(
    disk: Path, repository: StoredRepository
) -> None:
    """Swap files of the root have a marker and no content; elsewhere the name means nothing."""
    result = back_up(repository, disk)
    data = read_data_set(repository)
    marked = {
        path
        for path, node in data.nodes.items()
        for obj in data.objects.values()
        if isinstance(obj, MarkerObject) and obj.target == node.number
    }

    assert marked == {b"/pagefile.sys", b"/HIBERFIL.SYS"}
    for path in marked:
        node = data.nodes[path]
        assert (node.size, node.pieces) == (SWAP_SIZE, ())
        assert node.regions == (Region(0, SWAP_SIZE, True),)
        assert node.flags & 0x6 == 0x6
    assert data.nodes[b"/Users/pagefile.sys"].pieces
    system = {path for path in data.nodes if SYSTEM_DIRECTORY.encode() in path}
    assert {path.rpartition(b"/")[2] for path in system} == {
        SYSTEM_DIRECTORY.encode(),
        b"tracking.log",
    }
    assert any("2 files of shadow copies are left out" in note for note in result.notes)


def test_nothing_is_sent_twice(disk: Path, repository: StoredRepository, tmp_path: Path) -> None:
    """An unchanged volume sends nothing; a change of one stream is noticed and sent alone."""
    changed = Path(shutil.copy(disk, tmp_path / disk.name))
    first = back_up(repository, changed)
    again = back_up(repository, changed)
    volume = extracted(changed, tmp_path / "volume")
    with mounted(volume, tmp_path / "mount") as root:
        os.setxattr(root / "Users" / "bob" / "big.txt", "user.Zone.Identifier", b"other")
        os.setxattr(root / "hidden.sys", "user.new", b"stream")
    copy_into_disk(volume, changed)
    third = back_up(repository, changed)
    data = read_data_set(repository)
    node = data.nodes[b"/Users/bob/big.txt"]

    assert again.packs_sent == 0
    assert again.unchanged == again.objects == first.objects
    assert third.changed >= 2
    assert third.bytes_sent < third.data_set.table_size + 4096  # type: ignore[union-attr]
    assert data.streams[node.number, b"Zone.Identifier"] == b"other"
    check_node(data, node, volume_of(changed), b"big.txt")


def test_a_doubtful_state_is_a_warning(repository: StoredRepository, tmp_path: Path) -> None:
    """A dirty volume, and one whose Windows is asleep, are read with a warning each."""
    disk = tmp_path / "disk.img"
    make_disk(disk, 16 * MIB, content=lambda root: (root / "hiberfil.sys").write_bytes(b"hibr"))
    asleep = back_up(repository, disk)
    make_disk(disk, 16 * MIB, content=lambda root: (root / "file").write_bytes(b"x"))
    volume = extracted(disk, tmp_path / "volume")
    run("ntfsfix", volume)  # marks it, so that Windows checks it
    copy_into_disk(volume, disk)
    dirty = back_up(repository, disk)

    assert [text.partition(": ")[2] for text in asleep.warnings] == [
        "Windows is hibernated: it holds changes that are not on the volume"
    ]
    assert any("dirty" in text for text in dirty.warnings)
    assert not asleep.is_partial
    assert not dirty.is_partial


def test_deduplicated_volume_is_refused(repository: StoredRepository, tmp_path: Path) -> None:
    """A volume whose content is in a chunk store is refused by name, or kept as an image."""

    def content(root: Path) -> None:
        (root / "file").write_bytes(b"")
        os.setxattr(root / "file", "system.ntfs_reparse_data", reparse(0x80000013, bytes(40)))

    disk = make_disk(tmp_path / "disk.img", 16 * MIB, content=content)
    with pytest.raises(NotRecoverableError, match="deduplicated"):
        back_up(repository, disk)
    assert not repository.data_sets()
    assert not repository.pending_packs("box")
    back_up(repository, disk, options=BackupOptions(allow_raw=True))

    assert [volume.type for volume in read_data_set(repository).volumes] == ["raw"]


@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_small_and_large_clusters(
    repository: StoredRepository, tmp_path: Path, cluster_size: int
) -> None:
    """Sparse and compressed files come as they are stored, whatever the cluster size."""
    disk = make_disk(tmp_path / "disk.img", 80 * MIB, "-c", cluster_size)
    back_up(repository, disk)
    data = read_data_set(repository)
    volume = volume_of(disk)
    assert volume.block_size == cluster_size
    for path, node in data.nodes.items():
        if path.startswith((b"/packed/", b"/sparse", b"/hidden", b"/overlay")):
            check_node(data, node, volume, path)


@pytest.mark.root
def test_mounted_volume(repository: StoredRepository, tmp_path: Path) -> None:
    """A volume that ntfs-3g has mounted is flushed and read by our driver while it is in use."""
    disk = make_disk(tmp_path / "disk.img", 16 * MIB, content=lambda root: None)
    size = disk.stat().st_size
    mounted_at = tmp_path / "mount"
    mounted_at.mkdir()
    with loop_device(disk) as whole, loop_device(disk, START) as part:
        run("ntfs-3g", "-o", OPTIONS, part, mounted_at)
        try:
            (mounted_at / "written").write_bytes(b"not on the medium yet" * 1000)
            os.setxattr(mounted_at / "written", "user.stream", b"this neither")
            partition = KernelPartition(
                os.path.basename(part), 1, numbers_of(part), START, 16 * MIB
            )
            kernel = KernelDisk("sda", whole, numbers_of(whole), size, False, "", "", (partition,))
            mounts = tuple(iter_mounts(Path("/proc/self/mountinfo").read_bytes()))
            (result,) = back_up_live(repository, Machine((kernel,), mounts, ()))
        finally:
            run("umount", mounted_at)
    data = read_data_set(repository)
    node = data.nodes[b"/written"]

    assert data.files[b"/written"] == b"not on the medium yet" * 1000
    assert data.streams[node.number, b"stream"] == b"this neither"
    assert [volume.mount_point for volume in data.volumes] == [os.fsencode(mounted_at)]
    assert any("is mounted" in note for note in result.notes)


def test_what_is_damaged_costs_itself(repository: StoredRepository, tmp_path: Path) -> None:
    """A record and a directory that cannot be read are named; all else is in the data set."""

    def content(root: Path) -> None:
        for name in ("one", "broken", "two"):
            (root / name).mkdir()
            for index in range(30):
                (root / name / f"a long name of file {index}").write_bytes(b"%d" % index)

    disk = make_disk(tmp_path / "disk.img", 16 * MIB, content=content)
    volume = volume_of(disk)
    entries = list(volume.walk())
    number = next(entry.node.number for entry in entries if entry.name == b"broken")
    blocks = volume.mft.content_of(
        volume.mft.file(number), AttributeType.INDEX_ALLOCATION, "$I30".encode("utf-16-le")
    )
    assert blocks is not None
    index = blocks.mapped[0][2]
    record = next(entry.node.number for entry in entries if entry.name.endswith(b"file 7"))
    with disk.open("r+b") as stream:
        for position in (START + volume.mft.record_position(record), START + index):
            stream.seek(position + 510)  # a torn write
            stream.write(b"\xff\xff")
    result = back_up(repository, disk)
    data = read_data_set(repository)

    assert result.is_partial
    assert result.missing == 30 + 1
    assert len(result.warnings) == 3
    assert any("/broken: something in it is lost" in text for text in result.warnings)
    assert any("/one/a long name of file 7: left out" in text for text in result.warnings)
    assert any("the names of 29 more objects" in text for text in result.warnings)
    assert len(data.nodes) == len(entries) - 30 - 1


def test_lost_system_records_are_named(repository: StoredRepository, tmp_path: Path) -> None:
    """Without $Volume's own record and without $Secure all files are backed up, and it is said."""

    def content(root: Path) -> None:
        for index in range(30):
            (root / f"a long name of file {index}").write_bytes(b"%d" % index * 999)

    disk = make_disk(tmp_path / "disk.img", 16 * MIB, content=content)
    volume = volume_of(disk)
    with disk.open("r+b") as stream:
        for number in (3, 9):
            stream.seek(START + volume.mft.record_position(number))
            stream.write(bytes(1024))
    result = back_up(repository, disk)
    data = read_data_set(repository)

    assert result.is_partial
    assert len(result.warnings) == 2
    assert "MFT record 3 is damaged: its copy in $MFTMirr was read" in result.warnings[0]
    assert "the security descriptors in it are lost" in result.warnings[1]
    assert data.files[b"/a long name of file 7"] == b"7" * 999


def test_windows_is_known_by_its_kernel(repository: StoredRepository, tmp_path: Path) -> None:
    """A data set says that it is Windows, whatever the case of the names."""

    def content(root: Path) -> None:
        (root / "WINDOWS" / "system32").mkdir(parents=True)
        (root / "WINDOWS" / "system32" / "NTOSKRNL.EXE").write_bytes(b"MZ")

    back_up(repository, make_disk(tmp_path / "disk.img", 16 * MIB, content=content))
    with repository.open_table(repository.data_sets()[-1].id) as stream:
        system = TableReader(MASTER, stream).summary.system

    assert system == {
        "kernel": "Windows NT",
        "os": "windows",
        "os_name": "Windows",
        "firmware": "bios",
    }


def test_lost_packs_with_streams(disk: Path, repository: StoredRepository, tmp_path: Path) -> None:
    """Whatever pack the store has lost, the next run sends content and streams in it again, and
    renumbers the packs of all others."""
    back_up(repository, disk)
    expected = read_data_set(repository)
    for path in sorted((tmp_path / "store").rglob("packs/*/*")):
        if not path.exists():
            continue  # dropped meanwhile
        path.unlink()
        result = back_up(repository, disk)
        found = read_data_set(repository)

        assert any("healed 1 damaged pack:" in note for note in result.notes)
        assert result.unchanged == result.objects
        assert found.contents == expected.contents
        assert found.streams == expected.streams


def test_a_stream_that_cannot_be_read_costs_itself(
    disk: Path, repository: StoredRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node stays with all else that it has, above all a directory with what is in it."""
    read = NtfsVolume.read_stored
    bad = (b"of a directory", b"huge", b"Zone.Identifier")

    def read_most(volume: NtfsVolume, node: Node, name: bytes, offset: int, length: int) -> bytes:
        if name in bad:
            raise CorruptError("a bad place")
        return read(volume, node, name, offset, length)

    monkeypatch.setattr(NtfsVolume, "read_stored", read_most)
    result = back_up(repository, disk)
    data = read_data_set(repository)
    names = {path: [s.name for s in node.streams] for path, node in data.nodes.items()}

    assert result.missing == len(result.warnings) == len(bad)
    assert any("bob: its stream of a directory is left out" in text for text in result.warnings)
    assert names[b"/Users/bob"] == []
    assert names[b"/Users/bob/big.txt"] == [b"large stream"]
    assert names[b"/several runs"] == [b"also large"]
    assert len(data.files[b"/several runs"]) == data.nodes[b"/several runs"].size > 8 * MIB
    monkeypatch.undo()
    healed = back_up(repository, disk)

    assert healed.missing == 0
    assert len(read_data_set(repository).nodes[b"/several runs"].streams) == 2
