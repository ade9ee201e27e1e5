# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes through backup and restore: what comes back is what was there, to the byte.

Judged by our comparison, by our reader and by ntfs-3g, on volumes of other sizes too.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from pathlib import Path

import pytest

from backup.objects.content import iter_pieces
from backup.objects.model import NodeObject
from fsdrivers.device import FileDevice
from fsdrivers.ntfs.check.volume import check_volume
from fsdrivers.ntfs.format.records import BootSector
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.partitions import open_partition, read_table
from rebuild.compare.disks import compare_machine
from rebuild.compare.result import Comparison
from rebuild.errors import TargetTooSmallError
from rebuild.medium import DirectoryMedium
from rebuild.plan import TargetDisk
from rebuild.report import RestoreReport
from rebuild.restore import Unlocked, apply_plan, make_plan
from tests.fsdrivers.ntfs.volumes import (
    MIB,
    OPTIONS,
    Seen,
    load,
    mounted,
    reparse,
    seen_by_ntfs3g,
    seen_by_us,
    windows_volume,
)
from tests.programs import run
from tests.rebuild.machines import SmallMachine, back_up, names_in
from tests.rebuild.ntfs_machines import SNAPSHOT, START, WOF, extracted, make_disk, volume_of
from tests.scenario import must, rebuildkit

pytestmark = [pytest.mark.tools, pytest.mark.root]
SWAP_FILES = (b"pagefile.sys", b"HIBERFIL.SYS")
DISK_SIZE = 82 * MIB


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> SmallMachine:
    """A machine whose disk has a rich NTFS volume, and its medium."""
    directory = tmp_path_factory.mktemp("ntfs")
    return back_up(directory, [make_disk(directory / "sda.img")])


def restore(
    unlocked: Unlocked,
    medium: DirectoryMedium,
    path: Path,
    size: int,
    *,
    was_used: bool = False,
    processes: int = 1,
) -> tuple[RestoreReport, Comparison]:
    """Restore to an image, new or used before; return report and comparison."""
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(size // MIB if was_used else 0):
            file.write(b"\xee" * MIB)
    disk = unlocked.machine.disks[0]
    plan = make_plan(
        unlocked, {disk.number: TargetDisk(str(path), size, 512)}, is_blank=not was_used
    )
    report = apply_plan(unlocked, plan, medium, processes=processes)
    with FileDevice.open(path) as device:
        return report, compare_machine(unlocked.machine, {disk.number: device}, unlocked.key)


def check_clean(disk: Path) -> None:
    """Check the volume of a disk with our checker and with ntfsfix."""
    with FileDevice.open(disk) as device:
        table = read_table(device)
        assert table is not None
        assert check_volume(open_partition(device, table, 1)) == []
    volume = extracted(disk, disk.with_suffix(".part"))
    assert "processed successfully" in run("ntfsfix", "-n", volume)
    volume.unlink()


def kept(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """Return what has to come back: all but snapshots, and swap files without their content."""
    left = {path: one for path, one in seen.items() if SNAPSHOT[38:].encode() not in path}
    for name in SWAP_FILES:
        left[name] = left[name]._replace(content="")
    return left


@pytest.mark.parametrize(
    ("size", "was_used", "processes"),
    [(DISK_SIZE, False, 1), (DISK_SIZE, True, 2), (160 * MIB, True, 1), (62 * MIB, True, 2)],
    ids=["same", "used", "larger", "smaller"],
)
def test_everything_comes_back(
    machine: SmallMachine, tmp_path: Path, size: int, was_used: bool, processes: int
) -> None:
    """Restored to a disk of any size, a volume is equal by comparison and by our reader."""
    target = tmp_path / "target.img"
    report, comparison = restore(
        machine.unlocked(), machine.medium(), target, size, was_used=was_used, processes=processes
    )
    volume, source = volume_of(target), volume_of(machine.disks[0])

    assert report.is_complete
    assert comparison.differences == []
    assert comparison.object_count > 500
    assert kept(seen_by_us(volume)) == kept(seen_by_us(source))
    for name in SWAP_FILES:
        node = next(entry.node for entry in volume.walk() if entry.name == name)
        assert volume.read(node, 0, node.size) == bytes(node.size)
        assert all(extent.is_unwritten for extent in volume.extents(node))
    assert volume.boot.hidden_sectors == START // 512
    assert volume.facts.flags == source.facts.flags
    assert (volume.uuid, volume.label) == (source.uuid, source.label)
    assert abs(volume.size - (size - 2 * MIB)) <= MIB
    check_clean(target)


def test_ntfs3g_sees_the_same(machine: SmallMachine, tmp_path: Path) -> None:
    """ntfs-3g finds every stream, descriptor, reparse point, attribute and time as it was."""
    target = tmp_path / "target.img"
    restore(machine.unlocked(), machine.medium(), target, 100 * MIB)
    seen, huge = [], []
    for name, disk in (("source", machine.disks[0]), ("target", target)):
        volume = extracted(disk, tmp_path / name)
        with mounted(volume, tmp_path / "mount", f"{OPTIONS},noatime") as root:
            seen.append(kept(seen_by_ntfs3g(root)))

        with mounted(volume, tmp_path / "mount", "streams_interface=windows") as root:
            huge.append(Path(f"{root}/several runs:huge").read_bytes())

    assert len(seen[0]) > 500
    assert seen[1] == seen[0]
    assert len(huge[0]) > 8 * MIB
    assert huge[1] == huge[0]


def test_a_damaged_piece_costs_its_object(machine: SmallMachine, tmp_path: Path) -> None:
    """A flipped byte in a pack: the objects it belongs to are named, all else is equal."""
    copy = Path(shutil.copytree(machine.medium_path, tmp_path / "medium"))
    unlocked = machine.unlocked()
    draw = random.Random(4)
    (tree,) = unlocked.machine.trees.values()
    chosen: dict[str, NodeObject] = {
        "resident": next(item for item in tree.nodes if item.name == b"hidden.sys"),
        "compressed": next(item for item in tree.nodes if item.name == b"text"),
        "stream": next(item for item in tree.nodes if item.name == b"several runs"),
        "overlay": next(item for item in tree.nodes if item.name == b"overlay"),
    }
    for name, item in chosen.items():
        piece = draw.choice(list(iter_pieces(item)))
        path = copy / f"objects/{piece.pack:08}.pak"
        data = bytearray(path.read_bytes())
        at = piece.pack_offset + draw.randrange(piece.sealed_length)
        data[at] ^= 0x41
        path.write_bytes(data)
        report, comparison = restore(
            unlocked, DirectoryMedium(str(copy)), tmp_path / f"{name}.img", DISK_SIZE
        )
        data[at] ^= 0x41
        path.write_bytes(data)
        expected = names_in(unlocked, piece.pack, at, at + 1)

        assert {failure.path for failure in report.failures} == expected, name
        different = {text.rpartition(": ")[0] for text in comparison.differences}
        assert different == expected, name
        check_clean(tmp_path / f"{name}.img")


def test_too_small_is_said_before_anything_is_written(
    machine: SmallMachine, tmp_path: Path
) -> None:
    """A disk that cannot hold the volume is refused when it is planned."""
    unlocked = machine.unlocked()
    disk = unlocked.machine.disks[0]
    with pytest.raises(TargetTooSmallError):
        make_plan(unlocked, {disk.number: TargetDisk("small", 20 * MIB, 512)})


def test_the_commands(tmp_path: Path) -> None:
    """Register, back up, restore and compare with the real command; GPT and 512-byte clusters."""
    disk = make_disk(tmp_path / "sda.img", 80 * MIB, "-c", "512", scheme="gpt")
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    store = tmp_path / "store"
    login = ("--user", "anna", "--password-file", password)
    must(rebuildkit("register", "--store", store, *login))
    what = ("backup", "--store", store, *login, "--machine", "desk", "--disk", disk, "--json")
    first, second = must(rebuildkit(*what)).json, must(rebuildkit(*what)).json
    target = tmp_path / "new.img"
    where = ("--disk", target)
    source = ("--from", store, "--machine", "desk", *login)
    done = must(rebuildkit("restore", *source, *where, "--yes", "--verify"))
    compared = must(rebuildkit("compare", store, *login, "--machine", "desk", *where))

    assert first["packs_sent"] > 0
    assert second["packs_sent"] == 0
    assert second["unchanged"] == second["objects"]
    assert "all equal" in done.out
    assert "Result: equal." in compared.out
    check_clean(target)


def test_a_volume_that_windows_made(tmp_path: Path) -> None:
    """A volume that Windows formatted and filled comes back equal, its boot code too."""
    disk = Path(shutil.copy(windows_volume(), tmp_path / "sda.img"))
    os.truncate(disk, disk.stat().st_size - 512)  # the end of a VHD, which would be refused
    machine = back_up(tmp_path, [disk])
    target = tmp_path / "target.img"
    report, comparison = restore(machine.unlocked(), machine.medium(), target, disk.stat().st_size)
    volume, source = load(target), load(disk)
    recorded, restored = (found.system.boot_file() for found in (source, volume))

    assert report.is_complete
    assert comparison.differences == []
    assert seen_by_us(volume) == seen_by_us(source)
    with FileDevice.open(target) as device:
        assert check_volume(device) == []
    assert restored[BootSector.SIZE :] == recorded[BootSector.SIZE :]


def test_what_nobody_can_decode_is_carried_as_it_is(tmp_path: Path) -> None:
    """Files in an image, and ones whose compression is damaged, come back as they were stored."""

    def content(root: Path) -> None:
        for name, provider in (("in an image", 1), ("damaged", 2)):
            with open(root / name, "wb") as file:
                file.truncate(100_000)
            os.setxattr(root / name, "user.WofCompressedData", random.Random(1).randbytes(30_000))
            data = struct.pack("<IIII", 1, provider, 1, 1)
            os.setxattr(root / name, "system.ntfs_reparse_data", reparse(WOF, data))

    disk = make_disk(tmp_path / "sda.img", 16 * MIB, content=content)
    machine = back_up(tmp_path, [disk])
    target = tmp_path / "target.img"
    report, comparison = restore(machine.unlocked(), machine.medium(), target, 18 * MIB)

    assert report.is_complete
    assert comparison.differences == []
    check_clean(target)


def test_sectors_of_4096_bytes(machine: SmallMachine, tmp_path: Path) -> None:
    """A volume without a partition table comes back on a disk with larger sectors, equal."""
    volume = extracted(machine.disks[0], tmp_path / "sda.img")
    whole = back_up(tmp_path, [volume])
    unlocked = whole.unlocked()
    disk = unlocked.machine.disks[0]
    target = tmp_path / "target.img"
    target.write_bytes(b"")
    os.truncate(target, 90 * MIB)
    plan = make_plan(
        unlocked, {disk.number: TargetDisk(str(target), 90 * MIB, 4096)}, is_blank=True
    )
    report = apply_plan(unlocked, plan, whole.medium())
    with FileDevice.open(target, sector_size=4096) as device:
        comparison = compare_machine(unlocked.machine, {disk.number: device}, unlocked.key)
        assert check_volume(device) == []
        assert open_volume(device).geometry.sector_size == 4096

    assert disk.scheme == "none"
    assert report.is_complete
    assert comparison.differences == []
