# SPDX-License-Identifier: Apache-2.0
"""What a restored system needs to start: fallback loader, firmware entry, GRUB's numbers."""

from __future__ import annotations

import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from backup.objects.model import NodeObject, ObjectKind, VolumeObject
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.partitions import read_table
from rebuild.apply import apply_plan
from rebuild.compare.disks import compare_machine
from rebuild.fixups.firmware import (
    GLOBAL_GUID,
    BootEntry,
    file_node,
    hard_drive_node,
    load_option,
    parse_load_option,
    write_boot_entry,
)
from rebuild.fixups.grub import Move, core_sector_of, moved_boot_code, moved_core
from rebuild.fixups.loaders import fallback_of, find_loader, has_fallback_loader
from rebuild.fixups.protocol import ADDED_NUMBERS_START, VolumeChanges
from rebuild.machine import VolumeTree
from rebuild.plan import RestorePlan, TargetDisk
from rebuild.restore import make_plan
from rebuild.streaming.opener import PieceOpener
from tests.rebuild.machines import (
    BIOS_BOOT,
    LINUX,
    Partition,
    SmallMachine,
    back_up,
    make_disk,
    make_tree,
)

MIB = 1 << 20
GUID = uuid.UUID("2cd81369-54f3-c94e-9145-bf49bd53d93e")
# As efibootmgr shows it for a partition 1 from sector 2048 of 81920 sectors, in hexadecimal.
DEBIAN_ENTRY = (
    "01000000620064006500620069006100"
    "6e000000"
    "04012a0001000000"
    "00080000000000000040010000000000"
    "6913d82cf3544ec99145bf49bd53d93e"
    "0202"
    "040434005c004500460049005c006400"
    "65006200690061006e005c0073006800"
    "69006d007800360034002e0065006600"
    "69000000"
    "7fff0400"
)


def tree_of(*paths: str) -> VolumeTree:
    """Return a volume's tree with directories and files as given; files have a dot."""
    volume = VolumeObject(2, 1, 1, "fat32", 1 << 25, 0, "", b"ESP", {})
    tree = VolumeTree(volume, [NodeObject(3, ObjectKind.DIRECTORY, 2, 0, b"")])
    numbers = {"": 3}
    for path in paths:
        parent = ""
        for part in path.split("/"):
            full = f"{parent}/{part}".lstrip("/")
            if full not in numbers:
                numbers[full] = len(tree.nodes) + 3
                kind = ObjectKind.FILE if "." in part else ObjectKind.DIRECTORY
                tree.nodes.append(
                    NodeObject(numbers[full], kind, 2, numbers[parent], part.encode(), size=7)
                )
            parent = full
    return tree


def paths_of(tree: VolumeTree) -> set[str]:
    """Return the paths of a tree."""
    names: dict[int, str] = {}
    for item in tree.nodes:
        names[item.number] = f"{names.get(item.parent, '')}/{item.name.decode()}".lstrip("/")
    return set(names.values())


def with_fallback(tree: VolumeTree) -> tuple[VolumeTree, list[str]]:
    """Return the tree with what the fix-up adds, and its notes."""
    before = paths_of(tree)
    changes = VolumeChanges(tuple(fallback_of(tree)))
    assert paths_of(tree) == before, "planning changed what was recorded"
    return changes.tree(tree), changes.notes()


def test_fallback_loader_is_added_with_what_shim_needs() -> None:
    """A distribution's shim, its GRUB and its key tool become the fallback; fbx64 does not."""
    tree = tree_of(
        "EFI/debian/shimx64.efi",
        "EFI/debian/grubx64.efi",
        "EFI/debian/mmx64.efi",
        "EFI/debian/fbx64.efi",
        "EFI/debian/grub.cfg",
    )
    before = paths_of(tree)

    assert not has_fallback_loader(tree)
    tree, notes = with_fallback(tree)

    assert notes == ["Added \\EFI\\BOOT\\BOOTX64.EFI, a copy of the loader in \\EFI\\debian."]
    assert paths_of(tree) - before == {
        "EFI/BOOT",
        "EFI/BOOT/BOOTX64.EFI",
        "EFI/BOOT/grubx64.efi",
        "EFI/BOOT/mmx64.efi",
    }
    assert has_fallback_loader(tree)
    assert all(node.number >= ADDED_NUMBERS_START for node in tree.nodes[len(before) :])
    assert with_fallback(tree) == (tree, []), "a second time nothing is added"


def test_added_objects_are_like_no_other() -> None:
    """What is added to the EFI partitions of two disks has numbers that no other object has."""
    first, second = (tree_of("EFI/debian/shimx64.efi"), tree_of("EFI/arch/grubx64.efi"))
    second.volume.number = 9
    added = [
        {node.number: node for node in with_fallback(tree)[0].nodes[len(tree.nodes) :]}
        for tree in (first, second)
    ]

    for nodes in added:
        directory, loader = nodes.values()
        assert (directory.name, loader.parent) == (b"BOOT", directory.number)
    assert not added[0].keys() & added[1].keys()


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(("EFI/BOOT/bootx64.efi", "EFI/debian/shimx64.efi"), id="there already"),
        pytest.param(("loader/entries.txt",), id="no EFI directory"),
        pytest.param(("EFI/other/loader.efi",), id="no loader we know"),
    ],
)
def test_fallback_loader_is_not_added(paths: tuple[str, ...]) -> None:
    """What has a fallback, or no loader we know, stays as it is."""
    tree = tree_of(*paths)

    assert with_fallback(tree) == (tree, [])


def test_fallback_goes_into_a_directory_that_is_there() -> None:
    """An EFI/boot without a loader is used as it is, whatever its case."""
    tree, _ = with_fallback(tree_of("efi/Boot/readme.txt", "efi/ubuntu/grubx64.efi"))

    assert "efi/Boot/BOOTX64.EFI" in paths_of(tree)
    assert sum(path.lower() == "efi/boot" for path in paths_of(tree)) == 1


def test_loader_is_found_by_preference() -> None:
    """Shim goes before GRUB; the fallback directory is not a vendor."""
    tree = tree_of("EFI/BOOT/shimx64.efi", "EFI/arch/grubx64.efi", "EFI/debian/shimx64.efi")
    loader = find_loader(tree)

    assert loader is not None
    assert (loader.title, loader.path) == ("debian", "\\EFI\\debian\\shimx64.efi")
    assert find_loader(tree_of("EFI/BOOT/BOOTX64.EFI")) is None


def test_load_option_is_encoded_as_firmware_does() -> None:
    """Byte for byte what efibootmgr writes for the same entry, and read back."""
    path = hard_drive_node(1, 2048, 81920, GUID) + file_node("\\EFI\\debian\\shimx64.efi")
    option = load_option("debian", path)

    assert option.hex() == DEBIAN_ENTRY
    assert parse_load_option(option) == BootEntry("debian", "\\EFI\\debian\\shimx64.efi", GUID)


def test_any_bytes_are_read_as_an_entry_or_none() -> None:
    """Cut or odd variables of a firmware never stop a restore."""
    option = bytes.fromhex(DEBIAN_ENTRY)

    for length in range(len(option)):
        parse_load_option(option[:length])
    assert parse_load_option(b"") is None
    assert parse_load_option(b"\xff" * 100) is None


class Variables:
    """A directory that stands for the firmware's variables."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def write(self, name: str, value: bytes) -> None:
        (self.path / f"{name}-{GLOBAL_GUID}").write_bytes(struct.pack("<I", 7) + value)

    def names(self) -> list[str]:
        return sorted(item.name.split("-")[0] for item in self.path.iterdir())

    def read(self, name: str) -> bytes:
        return (self.path / f"{name}-{GLOBAL_GUID}").read_bytes()[4:]


@pytest.fixture
def gpt_plan(gpt_machine: SmallMachine) -> RestorePlan:
    """A plan for the GPT machine."""
    unlocked = gpt_machine.unlocked()
    disk = unlocked.machine.disks[0]
    return make_plan(unlocked, {disk.number: TargetDisk("/dev/vda", 2 * disk.size, 512)})


@pytest.mark.tools
def test_boot_entry_is_one_and_first(
    gpt_machine: SmallMachine, gpt_plan: RestorePlan, tmp_path: Path
) -> None:
    """Twice restored: one entry; another system's entry on the same partition stays."""
    variables = Variables(tmp_path / "efivars")
    machine = gpt_machine.unlocked().machine
    entry = read_table(FileDevice.open(gpt_machine.disks[0])).entries[0]
    windows = load_option(
        "Windows Boot Manager",
        hard_drive_node(1, 2048, 8192, uuid.UUID(entry.guid))
        + file_node("\\EFI\\Microsoft\\Boot\\bootmgfw.efi"),
    )
    variables.write("Boot0000", windows)
    variables.write("BootOrder", struct.pack("<H", 0))
    variables.write("BootCurrent", struct.pack("<H", 0))

    for _ in range(2):
        notes = write_boot_entry(machine, gpt_plan, str(variables.path))
        assert notes == ["Firmware boot entry Boot0001 starts \\EFI\\debian\\shimx64.efi."]
        assert variables.names() == ["Boot0000", "Boot0001", "BootCurrent", "BootOrder"]
        assert variables.read("BootOrder") == struct.pack("<HH", 1, 0)
    written = parse_load_option(variables.read("Boot0001"))
    assert written == BootEntry("debian", "\\EFI\\debian\\shimx64.efi", uuid.UUID(entry.guid))
    assert variables.read("Boot0000") == windows


@pytest.mark.tools
def test_firmware_that_refuses_is_a_note(
    gpt_machine: SmallMachine, gpt_plan: RestorePlan, tmp_path: Path
) -> None:
    """A machine without variables has no note; one that fails has one, and no error."""
    machine = gpt_machine.unlocked().machine
    odd = tmp_path / "efivars"
    odd.mkdir()
    (odd / f"Boot0000-{GLOBAL_GUID}").mkdir()  # cannot be written as a file

    assert write_boot_entry(machine, gpt_plan, str(tmp_path / "none")) == []
    (note,) = write_boot_entry(machine, gpt_plan, str(odd))
    assert "Boot0001" in note


BOOT_IMAGE = Path("/usr/lib/grub/i386-pc/boot.img")
CORE_START = Path("/usr/lib/grub/i386-pc/diskboot.img")


@pytest.mark.tools
def test_grub_numbers_follow_a_move_and_come_back() -> None:
    """Debian's own boot code and core start, patched as its installer does, move and return."""
    code = bytearray(BOOT_IMAGE.read_bytes())
    core = bytearray(CORE_START.read_bytes())
    struct.pack_into("<Q", code, 0x5C, 100_000)
    struct.pack_into("<QHH", core, 0x1F4, 100_001, 200, 0x820)
    move = Move(100_000 * 512, 300_000 * 512, MIB)
    moved = moved_boot_code(bytes(code), [move], 512)

    assert core_sector_of(moved) == 300_000
    assert struct.unpack_from("<QHH", moved_core(bytes(core), [move], 512), 0x1F4) == (
        300_001,
        200,
        0x820,
    )
    back = Move(move.new_start, move.old_start, move.size)
    assert moved_boot_code(moved, [back], 512) == bytes(code)
    assert moved_core(moved_core(bytes(core), [move], 512), [back], 512) == bytes(core)


@pytest.mark.tools
def test_core_image_in_the_gap_stays() -> None:
    """A core image before the first partition is where it was; other boot code is not touched."""
    code = BOOT_IMAGE.read_bytes()
    move = Move(MIB, 9 * MIB, 50 * MIB)

    assert core_sector_of(code) == 1
    assert moved_boot_code(code, [move], 512) == code
    assert moved_boot_code(bytes(440), [move], 512) == bytes(440)
    assert core_sector_of(b"") is None


@pytest.mark.tools
def test_bios_boot_partition_that_moves_is_found_again(tmp_path: Path) -> None:
    """GRUB installed behind a volume that grows: boot code and core point to the new place."""
    tree = make_tree(tmp_path / "tree", 5)
    disk = make_disk(
        tmp_path / "sda.img",
        "gpt",
        tree,
        Partition(LINUX, "ext4", 24),
        Partition(BIOS_BOOT, "raw", 1),
    )
    start = 25 * MIB // 512
    code = bytearray(BOOT_IMAGE.read_bytes()[:440])
    core = bytearray(CORE_START.read_bytes())
    struct.pack_into("<Q", code, 0x5C, start)
    struct.pack_into("<QHH", core, 0x1F4, start + 1, 60, 0x820)
    with disk.open("r+b") as file:
        file.write(code)
        file.seek(start * 512)
        file.write(core)
    machine = back_up(tmp_path, [disk])
    unlocked = machine.unlocked()
    recorded = unlocked.machine.disks[0]
    device = MemoryDevice(recorded.size + 8 * MIB)
    plan = make_plan(unlocked, {recorded.number: TargetDisk("memory", device.size, 512)})

    report = apply_plan(
        plan,
        {recorded.number: device},
        machine.medium(),
        PieceOpener(unlocked.key, unlocked.header.packs),
    )

    new = start + 8 * MIB // 512
    assert report.notes == [
        f"GRUB's core image moved from sector {start} to {new}; its boot code follows."
    ]
    assert core_sector_of(device.read(0, 512)) == new
    assert struct.unpack("<Q", device.read(new * 512 + 0x1F4, 8)) == (new + 1,)
    comparison = compare_machine(unlocked.machine, {recorded.number: device}, unlocked.key)
    assert comparison.differences == []


@pytest.mark.tools
def test_swap_is_blank_under_its_old_identity(mbr_machine: SmallMachine, tmp_path: Path) -> None:
    """A swap area comes back empty, with the UUID and label that fstab names."""
    unlocked = mbr_machine.unlocked()
    disk = unlocked.machine.disks[0]
    device = MemoryDevice(disk.size)
    plan = make_plan(unlocked, {disk.number: TargetDisk("memory", device.size, 512)})
    apply_plan(
        plan,
        {disk.number: device},
        mbr_machine.medium(),
        PieceOpener(unlocked.key, unlocked.header.packs),
    )
    part = plan.disks[0].partitions[2]

    def blkid(data: bytes) -> str:
        image = tmp_path / "swap.img"
        image.write_bytes(data)
        done = subprocess.run(
            ["blkid", "-p", "-o", "export", str(image)], capture_output=True, text=True, check=True
        )
        return done.stdout

    with mbr_machine.disks[0].open("rb") as file:
        file.seek(part.old_start)
        original = file.read(part.old_size)
    made = device.read(part.new_start, part.new_size)
    assert blkid(made) == blkid(original)
    assert made[4096:].count(0) == len(made) - 4096
