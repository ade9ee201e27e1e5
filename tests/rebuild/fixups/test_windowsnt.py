# SPDX-License-Identifier: Apache-2.0
"""What Windows needs to start: places in registry files, loaders, partitions that stay."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from backup.objects.model import DiskObject, NodeObject, ObjectKind, VolumeObject
from fsdrivers.device import MemoryDevice
from fsdrivers.partitions import read_table
from imagebuilder.environment.python_runtime import STANDARD_LIBRARY_LEFT_OUT, find_third_party
from rebuild.fixups.loaders import fallback_of, find_loader
from rebuild.fixups.protocol import VolumeChanges
from rebuild.fixups.windowsnt import WindowsNT, find_hives, moves_of
from rebuild.fixups.windowsnt_hives import Hive, State, moved_hive, state_of
from rebuild.machine import Machine, VolumeTree
from rebuild.placement import NewPlace, OldPartition, place_partitions
from rebuild.sites import Partition, Site
from tests.rebuild.fixups import windows_hives as hives

MIB = 1 << 20
SIGNATURE, C, D = hives.SIGNATURE, hives.C, hives.D
RAW_SIGNATURE = struct.pack("<I", SIGNATURE)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hives.make_system(tmp_path_factory.mktemp("hives") / "SYSTEM")


@pytest.fixture(scope="module")
def bcd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hives.make_bcd(tmp_path_factory.mktemp("hives") / "BCD")


def moved(path: Path, hive: Hive, to: Path, moves: dict[tuple[bytes, int], int]) -> int:
    """Write a hive with places moved; return how many."""
    data, count = moved_hive(path.read_bytes(), hive, moves)
    assert len(data) == path.stat().st_size
    to.write_bytes(data)
    return count


@pytest.mark.tools
def test_mounted_devices_follow(system: Path, tmp_path: Path) -> None:
    """Drive letters and volumes of a partition that moved follow it, and nothing else changes."""
    made = tmp_path / "SYSTEM"
    assert moved(system, Hive.SYSTEM, made, {(RAW_SIGNATURE, D): 99 * MIB}) == 2
    before, after = hives.values(system, "MountedDevices"), hives.values(made, "MountedDevices")

    new = hives.mounted(SIGNATURE, 99 * MIB)
    assert after == before | {"\\DosDevices\\D:": new, "\\??\\Volume{0}": new}
    assert state_of(made.read_bytes()) is State.CLEAN
    assert (
        moved_hive(made.read_bytes(), Hive.SYSTEM, {(RAW_SIGNATURE, 99 * MIB): D})[0]
        == system.read_bytes()
    )


@pytest.mark.tools
def test_device_elements_follow(bcd: Path, tmp_path: Path) -> None:
    """Elements of a partition that moved follow it, also inside the element of a ramdisk."""
    made = tmp_path / "BCD"
    swap = {(RAW_SIGNATURE, D): C, (RAW_SIGNATURE, C): D}
    assert moved(bcd, Hive.BCD, made, swap) == 3

    for item, number, expected in (
        (hives.BOOT_MANAGER, "11000001", hives.partition_element(SIGNATURE, D)),
        (hives.OS_LOADER, "11000001", hives.partition_element(SIGNATURE, C)),
        (hives.RAMDISK, "31000003", hives.ramdisk_element(SIGNATURE, C)),
        ("{other}", "11000001", hives.partition_element(SIGNATURE + 1, D)),
        ("{gpt}", "11000001", hives.gpt_element()),
    ):
        assert hives.element(made, item, number) == expected


@pytest.mark.tools
def test_the_hive_of_a_real_windows(tmp_path: Path) -> None:
    """In a hive that Windows 10 wrote, what hivex adds is found and changed; the rest stays."""
    path, made = tmp_path / "SYSTEM", tmp_path / "moved"
    path.write_bytes(hives.real_system_hive())
    before = hives.values(path, "MountedDevices")
    assert moved(path, Hive.SYSTEM, made, {(RAW_SIGNATURE, D): C}) == 0
    assert made.read_bytes() == path.read_bytes()
    ours = {"\\DosDevices\\Y:": hives.mounted(SIGNATURE, D)}
    hives.set_mounted_devices(path, before | ours, is_new=False)

    assert moved(path, Hive.SYSTEM, made, {(RAW_SIGNATURE, D): C}) == 1
    after = hives.values(made, "MountedDevices")
    assert after == before | {"\\DosDevices\\Y:": hives.mounted(SIGNATURE, C)}


@pytest.mark.tools
def test_hives_that_cannot_be_changed_are_told_apart(system: Path) -> None:
    """One that was in use is not damaged; neither is clean."""
    data = system.read_bytes()
    dirty = bytearray(data)
    dirty[4:8] = struct.pack("<I", int.from_bytes(data[4:8], "little") + 1)
    assert state_of(data) is State.CLEAN
    assert state_of(bytes(hives.sealed(dirty[:512])) + data[512:]) is State.DIRTY
    assert state_of(bytes(dirty)) is State.DAMAGED  # its checksum is the old one
    assert state_of(b"") is State.DAMAGED
    assert state_of(bytes(4096)) is State.DAMAGED


@pytest.mark.tools
@pytest.mark.parametrize("hive", list(Hive))
def test_damage_never_ends_in_another_error(hive: Hive, system: Path, bcd: Path) -> None:
    """Flipped bytes and cut files give a result of the same length or a ValueError."""
    data = (system if hive is Hive.SYSTEM else bcd).read_bytes()
    draw = random.Random(hive.name)
    moves = {(RAW_SIGNATURE, D): C}
    refused = 0
    for _ in range(600):
        broken = bytearray(data)
        for _ in range(draw.randrange(1, 8)):
            broken[draw.randrange(4096, len(broken))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        if draw.random() < 0.2:
            del broken[draw.randrange(600, len(broken)) :]
        try:
            assert len(moved_hive(bytes(broken), hive, moves)[0]) == len(broken)
        except ValueError:
            refused += 1
    assert refused > 20


@pytest.mark.tools
def test_what_the_disc_carries_is_enough(bcd: Path, tmp_path: Path) -> None:
    """Hives are changed with the modules that are on the disc, and no others."""
    for name, file in find_third_party().items():
        target = tmp_path / "site" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    (tmp_path / "site" / "pdb.py").touch()  # empty on the disc, too
    project = Path(__file__).resolve().parents[3]
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {sorted(STANDARD_LIBRARY_LEFT_OUT - {"pdb"})!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
sys.path[:0] = [{str(tmp_path / "site")!r}, {str(project)!r}]
from rebuild.fixups.windowsnt_hives import Hive, moved_hive
data = open({str(bcd)!r}, 'rb').read()
print(moved_hive(data, Hive.BCD, {{({RAW_SIGNATURE!r}, {D}): 7}})[1])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True
    )

    assert (done.stdout, done.stderr) == ("2\n", "")


def tree_of(kind: str, *paths: str) -> VolumeTree:
    """Return a volume's tree with directories and files as given; files end in a dot."""
    tree = VolumeTree(
        VolumeObject(2, 1, 1, kind, 1 << 25, 0, "", b"", {}),
        [NodeObject(3, ObjectKind.DIRECTORY, 2, 0, b"")],
    )
    numbers = {"": 3}
    for path in paths:
        parent = ""
        for part in path.split("/"):
            full = f"{parent}/{part}".lstrip("/")
            if full not in numbers:
                numbers[full] = len(tree.nodes) + 3
                is_file = full == path.rstrip(".") or part.endswith(".")
                made = ObjectKind.FILE if is_file or full == path else ObjectKind.DIRECTORY
                item = NodeObject(
                    numbers[full], made, 2, numbers[parent], part.rstrip(".").encode()
                )
                item.size = 9000
                tree.nodes.append(item)
            parent = full
    return tree


def test_hives_are_found_whatever_their_case() -> None:
    """Hives are found in any Windows directory, in both places of the boot configuration."""
    tree = tree_of(
        "ntfs",
        "WINDOWS/system32/CONFIG/System.",
        "Boot/bcd.",
        "EFI/Microsoft/BOOT/BCD.",
        "Windows/System32/config/SYSTEM.LOG",
        "a/b/System32/config/SYSTEM.",
        "winnt/boot/bcd.",
        "bootmgr/file.",
        "ntldr/x.",
    )

    assert [(hive, path) for hive, _, path in find_hives(tree)] == [
        (Hive.SYSTEM, "\\WINDOWS\\system32\\CONFIG\\System"),
        (Hive.BCD, "\\Boot\\bcd"),
        (Hive.BCD, "\\EFI\\Microsoft\\BOOT\\BCD"),
    ]
    assert find_hives(tree_of("ext4", "boot/bcd.")) == []
    assert find_hives(tree_of("ntfs", "boot/bcd/file.", "x/system32/config/system/y.")) == []


def test_windows_is_there_or_was() -> None:
    """Windows is where its hive or loader is; a directory on an ESP says so beside NTFS only."""

    def machine_of(**paths: str) -> Machine:
        return Machine(trees={n: tree_of(*item) for n, item in enumerate(paths.items())})

    leftover = "EFI/Microsoft/Boot/BCD."
    has_windows = WindowsNT().keeps_places
    assert has_windows(machine_of(ntfs="Windows/System32/config/SYSTEM."))
    assert has_windows(machine_of(fat16="winnt/System32/config/SYSTEM."))
    assert has_windows(machine_of(fat32="NTLDR."))
    assert has_windows(machine_of(fat32=leftover, ntfs="data."))
    assert not WindowsNT().keeps_places(
        machine_of(fat32=leftover, ext4="Windows/System32/config/SYSTEM.")
    )
    assert not has_windows(machine_of(ntfs="a/Windows/System32/config/SYSTEM."))


def test_windows_loader_comes_to_the_fallback_path() -> None:
    """An EFI system partition with Windows alone gets its loader at the fallback path."""
    tree = tree_of("fat32", "EFI/Microsoft/Boot/bootmgfw.efi.", "EFI/Microsoft/Boot/BCD.")
    changes = VolumeChanges(tuple(fallback_of(tree)))
    tree = changes.tree(tree)
    directory, copy = tree.nodes[-2:]

    assert changes.notes() == [
        "Added \\EFI\\BOOT\\BOOTX64.EFI, a copy of \\EFI\\Microsoft\\Boot\\bootmgfw.efi."
    ]
    assert (directory.name, copy.name, copy.parent) == (b"BOOT", b"BOOTX64.EFI", directory.number)
    assert list(fallback_of(tree)) == []
    found = find_loader(tree)
    assert found is not None
    assert (found.title, found.path) == (
        "Windows Boot Manager",
        "\\EFI\\Microsoft\\Boot\\bootmgfw.efi",
    )


@pytest.mark.parametrize("present", ["BOOTX64.EFI", "bootaa64.efi", "bootia32.efi"])
def test_a_fallback_loader_stays(present: str) -> None:
    """A loader that is there stays, also one of another architecture."""
    tree = tree_of("fat32", "EFI/Microsoft/Boot/bootmgfw.efi.", f"EFI/Boot/{present}.")

    assert list(fallback_of(tree)) == []


@pytest.mark.tools
def test_moves_are_of_disks_with_a_signature(tmp_path: Path) -> None:
    """Primary and logical partitions that moved count, with the disk's signature before them."""
    image = tmp_path / "disk"
    layout = "start=2048, size=4096, type=7\nstart=8192, size=65536, type=f\n"
    layout += "start=10240, size=4096, type=7\nstart=20480, size=4096, type=7\n"

    def site_of(label: str, starts: dict[int, int]) -> Site:
        with image.open("wb") as stream:
            stream.truncate(64 * MIB)
        run_sfdisk(image, f"label: {label}\n" + layout)
        table = read_table(MemoryDevice.of(image.read_bytes()))
        assert table is not None
        disk = DiskObject(1, "sda", 64 * MIB, 512, table.scheme, table.description)
        parts = [
            Partition(
                number=entry.number,
                old_start=entry.start,
                old_size=entry.size,
                new_start=starts[entry.number],
                new_size=entry.size,
                is_extended=entry.is_extended,
            )
            for entry in table.entries
        ]
        return Site(disk, disk.size, 512, tuple(parts))

    starts = {1: MIB, 2: 5 * MIB, 5: 6 * MIB, 6: 20480 * 512}
    assert moves_of(site_of(f"dos\nlabel-id: {SIGNATURE:#x}", starts)) == {
        (RAW_SIGNATURE, 10240 * 512): 6 * MIB
    }
    assert moves_of(site_of("dos\nlabel-id: 0x0", starts)) == {}
    layout = "start=2048, size=4096\n"
    assert moves_of(site_of("gpt", {1: 7 * MIB})) == {}


def run_sfdisk(image: Path, script: str) -> None:
    subprocess.run(["sfdisk", "-q", str(image)], input=script, text=True, check=True)


def place(keeps_places: bool, *sizes: int, grow: int | None = None) -> dict[int, NewPlace]:
    """Place partitions of so many MiB on a larger disk; negative ones cannot grow."""
    position, parts = 1, []
    for number, size in enumerate(sizes, 1):
        old = OldPartition(number, position * MIB, abs(size) * MIB, MIB, size > 0)
        parts.append(old)
        position += abs(size)
    return place_partitions(
        parts,
        usable_end=1000 * MIB,
        target_name="disk",
        target_size=1000 * MIB,
        is_larger=True,
        grow=grow,
        keeps_places=keeps_places,
    )


def test_places_are_kept_on_a_larger_disk() -> None:
    """A partition that must keep its place does; the last one grows, others if they are named."""
    kept = place(True, 100, -50)
    assert kept == {1: NewPlace(MIB, 100 * MIB), 2: NewPlace(101 * MIB, 50 * MIB)}
    assert place(True, -50, 100)[2] == NewPlace(51 * MIB, 949 * MIB)
    assert place(True, 100, -50, grow=1)[2].start == 950 * MIB
    assert place(False, 100, -50)[2].start == 950 * MIB
