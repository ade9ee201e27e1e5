# SPDX-License-Identifier: Apache-2.0
"""Syslinux after its file came to lie elsewhere: as its installer would have it."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from backup.objects.model import DiskObject, MarkerObject, NodeObject, ObjectKind, VolumeObject
from fsdrivers import open_volume
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.partitions import open_partition, read_table
from fsdrivers.volume import Extent
from rebuild.apply import apply_plan
from rebuild.compare.disks import compare_machine
from rebuild.edits import edit_volume
from rebuild.fixups.protocol import VolumeChanges
from rebuild.fixups.syslinux import (
    SECTOR_SIZE,
    Syslinux,
    first_sector_in,
    is_boot_code,
    moved_back,
    moved_boot_code,
    patch_area_of,
    patched_boot_code,
    patched_file,
    recorded_places,
    sectors_of,
)
from rebuild.machine import Machine, VolumeTree
from rebuild.plan import TargetDisk
from rebuild.report import RestoreReport
from rebuild.restore import make_plan
from rebuild.sites import Partition, Site
from rebuild.streaming.opener import PieceOpener
from tests.fsdrivers.ext.volumes import make_image as make_ext
from tests.fsdrivers.ext.volumes import run
from tests.fsdrivers.ntfs import volumes as ntfs_volumes
from tests.rebuild.machines import SmallMachine, back_up

pytestmark = [pytest.mark.tools, pytest.mark.root]
MIB = 1 << 20
START = MIB
SIZE = 24 * MIB
FILLER_SIZE = 32 * 1024
KINDS = ("ext2", "ext4", "ntfs")
FAT_KINDS = ("fat12", "fat16", "fat32")
Installed = tuple[bytes, bytes, list[tuple[int, int]]]  # boot code, ldlinux.sys, its extents


@contextmanager
def mounted(image: Path, kind: str) -> Iterator[Path]:
    """Mount a volume through a loop device, which extlinux asks for its sectors."""
    place = image.with_suffix(".mount")
    place.mkdir(exist_ok=True)
    device = run("losetup", "-f", "--show", image).strip()
    try:
        run("ntfs-3g" if kind == "ntfs" else "mount", device, place)
        try:
            yield place
        finally:
            run("umount", place)
    finally:
        run("losetup", "-d", device)


def make_volume(path: Path, kind: str, filler_size: int = 0, fragments: int = 0) -> Path:
    """Make a volume with extlinux on it, its file behind a filler or in the gaps of others."""
    if kind == "ntfs":
        ntfs_volumes.make_image(path, SIZE, "-s", 512, "-p", START // 512, "-H", 255, "-S", 63)
    else:
        make_ext(path, SIZE, "-t", kind, "-b", 1024)
    with mounted(path, kind) as root:
        directory = root / "boot" / "extlinux"
        directory.mkdir(parents=True)
        (directory / "filler").mkdir()
        for index in range(filler_size // FILLER_SIZE):
            (directory / "filler" / f"{index}").write_bytes(b"f" * FILLER_SIZE)
        run("sync", "-f", root)
        if fragments:
            scatter_free_space(root, fragments)
        run("extlinux", "--install", directory)
    return path


def scatter_free_space(root: Path, count: int) -> None:
    """Leave no room on an NTFS volume but gaps of two clusters."""
    for index in range(count):
        for name in ("gap", "keep"):
            (root / f"{name}-{index:03}").write_bytes(b"k" * 8192)
    with (root / "rest").open("wb", buffering=0) as stream:
        for step in (MIB, 4096):
            with suppress(OSError):
                while stream.write(b"r" * step):
                    pass
    for index in range(count):
        (root / f"gap-{index:03}").unlink()


def installed_on(path: Path) -> Installed:
    """Read what extlinux wrote, through our drivers."""
    device = MemoryDevice.of(path.read_bytes())
    volume = open_volume(device)
    (node,) = (entry.node for entry in volume.walk() if entry.name == b"ldlinux.sys")
    extents = [(part.position, part.length) for part in volume.extents(node)]
    return device.read(0, 512), volume.read(node, 0, node.size), extents


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Installed, Installed]:
    """The same boot loader installed on two volumes, in different places."""
    directory = tmp_path_factory.mktemp(kind)
    first = installed_on(make_volume(directory / "first", kind))
    second = installed_on(make_volume(directory / "second", kind, filler_size=3 * MIB))
    assert first[2] != second[2]
    return first, second


def test_patched_as_extlinux_does(pair: tuple[Installed, Installed]) -> None:
    """One installation patched for the other's sectors is the other, byte for byte."""
    for (code, data, extents), (other_code, other_data, other_extents) in (pair, pair[::-1]):
        sectors = sectors_of(other_extents)
        area = patch_area_of(data)

        assert patched_file(data, sectors_of(extents)) == data
        assert patched_file(data, sectors) == other_data
        assert patched_boot_code(code, area, sectors[0]) == other_code
        assert first_sector_in(code, area) == sectors_of(extents)[0]
        assert is_boot_code(code)
        assert moved_back(other_data, other_extents, extents) == data


def test_pieces_as_extlinux_does(tmp_path: Path) -> None:
    """A file in many pieces has the list that extlinux makes of them."""
    _, data, extents = installed_on(make_volume(tmp_path / "volume", "ntfs", fragments=60))

    assert len(extents) > 4
    assert patched_file(data, sectors_of(extents)) == data


def test_most_pieces(pair: tuple[Installed, Installed]) -> None:
    """A file in more pieces than its list has places for is refused."""
    _, data, extents = pair[0]
    area = patch_area_of(data)
    apart = [7 * sector for sector in sectors_of(extents)]
    made = patched_file(data, apart)
    at = struct.unpack_from("<H", data, area.position + 22)[0] + 12
    short = data[:at] + struct.pack("<H", area.data_sectors - 2) + data[at + 2 :]

    assert moved_back(made, [(512 * sector, 512) for sector in apart], extents) == data
    with pytest.raises(ValueError, match="more pieces"):
        patched_file(short, apart)


def test_holes_and_odd_extents(pair: tuple[Installed, Installed]) -> None:
    """Too few sectors, and extents that are none, are refused."""
    _, data, extents = pair[0]

    with pytest.raises(ValueError, match="holes"):
        patched_file(data, sectors_of(extents)[:40])
    for odd in ((100, 512), (512, 100), (-512, 512), (0, 1 << 60), (0, 0)):
        with pytest.raises(ValueError, match=r"lies|strange"):
            sectors_of([odd])


def test_other_files(pair: tuple[Installed, Installed]) -> None:
    """What is not an ldlinux.sys, or is damaged, is refused and never changed."""
    _, data, extents = pair[0]
    area = patch_area_of(data)
    damaged = [b"", bytes(60000), data[:512], data[: area.list_position]]
    for at in (8, 10, 12, 22):  # sectors, variables, words, extension
        place = area.position + at
        damaged.append(data[:place] + b"\xff\xff" + data[place + 2 :])

    for item in damaged:
        with pytest.raises(ValueError, match=r"ldlinux|patch area"):
            patch_area_of(item)
        assert moved_back(item, extents, [(0, 1 << 20)]) == item
    assert not is_boot_code(bytes(512))
    assert not is_boot_code(b"")
    assert moved_back(data, [(512, 1 << 20)], extents) == data


def test_hidden_sectors(pair: tuple[Installed, Installed]) -> None:
    """The boot code follows the volume to another place of the disk, if it knew the old one."""
    code = bytearray(pair[0][0])
    struct.pack_into("<I", code, 0x1C, 2048)
    moved = moved_boot_code(bytes(code), MIB, 4 * MIB)

    assert struct.unpack_from("<I", moved, 0x1C) == (8192,)
    assert moved_boot_code(moved, MIB, 4 * MIB) == moved


class Placed:
    """A layout that knows one file's place."""

    block_size = SECTOR_SIZE

    def __init__(self, extents: list[tuple[int, int]]) -> None:
        self._extents = extents

    def placements(self, number: int) -> list[Extent]:
        offset, found = 0, []
        for position, length in self._extents:
            found.append(Extent(offset, length, position))
            offset += length
        return found


def put(window: MemoryDevice, extents: list[tuple[int, int]], data: bytes) -> None:
    """Write a file's content to its place."""
    for position, length in extents:
        window.write(position, data[:length].ljust(length, b"\0"))
        data = data[length:]


def taken(window: MemoryDevice, extents: list[tuple[int, int]]) -> bytes:
    """Read it back."""
    return b"".join(window.read(position, length) for position, length in extents)


def tree_of(kind: str, item: Installed) -> VolumeTree:
    """A recorded volume with nothing but the boot file."""
    volume = VolumeObject(2, 1, 1, kind, SIZE, 0, "", b"", {})
    root = NodeObject(3, ObjectKind.DIRECTORY, 2, 0, b"")
    node = NodeObject(4, ObjectKind.FILE, 2, 3, b"ldlinux.sys", len(item[1]))
    places = {"extents": [list(pair) for pair in item[2]]}
    return VolumeTree(volume, [root, node], [MarkerObject(5, 2, "placed-file", 4, places)])


@pytest.mark.parametrize("change", ["none", "content", "boot code", "marker", "sectors"])
def test_follow_or_say_why(kind: str, pair: tuple[Installed, Installed], change: str) -> None:
    """What fits follows; of what does not nothing is changed, and a note says to run extlinux."""
    (code, data, _), (other_code, other_data, other_extents) = pair
    tree = tree_of(kind, pair[0])
    sector_size = 4096 if change == "sectors" else SECTOR_SIZE
    window = MemoryDevice(SIZE, sector_size)
    if change == "content":
        data = data[:4096] + b"\0" + data[4097:]
    if change == "boot code":
        code = patched_boot_code(code, patch_area_of(data), 77)
    if change == "marker":
        tree.markers.clear()
    if kind == "ntfs":
        window.write(SIZE - 4096, code.rjust(4096, b"\0"))
    window.write(0, code.ljust(4096, b"\0"))
    layout = Placed(other_extents)
    put(window, other_extents, data)
    disk = DiskObject(1, "sda", SIZE + MIB, SECTOR_SIZE, "mbr", {})
    part = Partition(number=1, old_start=MIB, old_size=SIZE, new_start=MIB, new_size=SIZE)
    site = Site(disk, disk.size, sector_size, (part,))
    changes = Syslinux().changes(Machine(trees={2: tree}), [site])
    notes = edit_volume(tree, VolumeChanges(tuple(changes)), layout, window)  # type: ignore[arg-type]
    now = taken(window, other_extents)[: len(data)]
    boot = window.read(0, 4096)[:512]

    if change == "none":
        assert now == other_data
        assert boot == other_code
        assert len(notes) == 1
        assert "other sectors" in notes[0]
        if kind == "ntfs":
            assert window.read(SIZE - 4096, 4096)[-512:] == other_code
        return
    assert boot == code
    assert "run extlinux --install again" in notes[-1]
    if change != "boot code":
        assert now == data


def make_machine(directory: Path, kind: str) -> SmallMachine:
    """A machine whose boot loader is extlinux."""
    volume = make_volume(directory / "volume", kind, filler_size=3 * MIB)
    with mounted(volume, kind) as root:
        # So that the restore has a better place for the file.
        shutil.rmtree(root / "boot" / "extlinux" / "filler")
    disk = directory / "sda.img"
    with disk.open("wb") as stream:
        stream.truncate(START + SIZE + MIB)
    part_type = 7 if kind == "ntfs" else 83
    run(
        "sfdisk",
        "-q",
        disk,
        text=f"label: dos\nstart={START // 512}, size={SIZE // 512}, type={part_type}, bootable\n",
    )
    with disk.open("r+b") as stream:
        stream.seek(START)
        stream.write(volume.read_bytes())
    return back_up(directory, [disk])


def restored(machine: SmallMachine, path: Path, size: int) -> tuple[RestoreReport, list[str]]:
    """Restore onto an image; return also the differences found by reading it."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    plan = make_plan(unlocked, {disk.number: TargetDisk(str(path), size, 512)}, is_blank=True)
    with path.open("wb") as stream:
        stream.truncate(size)
    with FileDevice.open(str(path), writable=True) as device:
        opener = PieceOpener(unlocked.key, unlocked.header.packs)
        report = apply_plan(
            plan,
            {disk.number: device},
            machine.medium(),
            opener,
        )
        again = machine.unlocked().machine
        compared = compare_machine(again, {disk.number: device}, unlocked.key)
    return report, compared.differences


@pytest.mark.parametrize("size", [START + SIZE + MIB, 2 * SIZE + MIB], ids=["same", "larger"])
def test_machine(kind: str, size: int, tmp_path: Path) -> None:
    """Restored, the file has the list of its new sectors, and the boot sector names its first."""
    machine = make_machine(tmp_path, kind)
    old = installed_on(tmp_path / "volume")
    image = tmp_path / "new.img"
    report, differences = restored(machine, image, size)
    device = MemoryDevice.of(image.read_bytes())
    table = read_table(device)
    assert table is not None
    partition = tmp_path / "partition"
    entry = table.entry(1)
    assert entry is not None
    partition.write_bytes(open_partition(device, table, 1).read(0, entry.size))
    code, data, extents = installed_on(partition)

    assert differences == []
    assert extents != old[2]
    assert any("ldlinux.sys (syslinux)" in note for note in report.notes)
    assert data == patched_file(old[1], sectors_of(extents)) != old[1]
    assert first_sector_in(code, patch_area_of(data)) == sectors_of(extents)[0]
    if kind == "ntfs":
        assert partition.read_bytes()[-SECTOR_SIZE:] == code
    (tree,) = machine.unlocked().machine.trees.values()
    assert list(recorded_places(tree).values()) == [old[2]]


@pytest.mark.parametrize("kind", FAT_KINDS)
def test_fat_machine(kind: str, tmp_path: Path) -> None:
    """On FAT the file stays where it is while the volume keeps its size, and else follows."""
    volume = tmp_path / "volume"
    with volume.open("wb") as stream:
        stream.truncate({"fat12": 4, "fat16": 16, "fat32": 48}[kind] * MIB)
    run("mkfs.fat", "-F", kind[3:], volume)
    (tmp_path / "filler").write_bytes(b"f" * FILLER_SIZE)
    run("mcopy", "-i", volume, tmp_path / "filler", "::/")
    run("syslinux", "--install", volume)
    run("mdel", "-i", volume, "::/filler")
    size, old = volume.stat().st_size, installed_on(volume)
    disk = tmp_path / "sda.img"
    with disk.open("wb") as stream:
        stream.truncate(START + size)
    script = f"label: dos\nstart={START // 512}, size={size // 512}, type=6, bootable\n"
    run("sfdisk", "-q", disk, text=script)
    with disk.open("r+b") as stream:
        stream.seek(START)
        stream.write(volume.read_bytes())
    machine = back_up(tmp_path, [disk])

    for larger in (0, 2 * size):
        image = tmp_path / "new.img"
        report, differences = restored(machine, image, START + size + larger)
        partition = tmp_path / "partition"
        partition.write_bytes(image.read_bytes()[START:])
        code, data, extents = installed_on(partition)

        assert differences == []
        assert run("fsck.fat", "-n", partition)
        assert (data == old[1]) is (extents == old[2]) is (not larger)
        assert data == patched_file(old[1], sectors_of(extents))
        assert first_sector_in(code, patch_area_of(data)) == sectors_of(extents)[0]
        assert any("ldlinux.sys (syslinux)" in note for note in report.notes) is bool(larger)
        assert not any("run extlinux" in note for note in report.notes)


def test_comparison_sees_a_wrong_list(tmp_path: Path) -> None:
    """A boot file with a list that is not that of its place is a difference."""
    machine = make_machine(tmp_path, "ext4")
    image = tmp_path / "new.img"
    restored(machine, image, START + SIZE + MIB)
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    with FileDevice.open(str(image), writable=True) as device:
        table = read_table(device)
        assert table is not None
        window = open_partition(device, table, 1)
        volume = open_volume(window)
        (node,) = (entry.node for entry in volume.walk() if entry.name == b"ldlinux.sys")
        position = volume.extents(node)[0].position
        area = patch_area_of(volume.read(node, 0, node.size))
        at = position + area.list_position
        window.write(at, bytes([window.read(at, 1)[0] ^ 1]))
        compared = compare_machine(unlocked.machine, {disk.number: device}, unlocked.key)

    assert any("ldlinux.sys: content differs" in text for text in compared.differences)
