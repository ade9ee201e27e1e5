# SPDX-License-Identifier: Apache-2.0
"""Machines with Windows on a disk with an MBR, restored to the same places and to others.

No Windows starts here: what it reads to find its partitions is read back by sleuthkit and hivex.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
from pathlib import Path

import pytest

from backup.agent.errors import NotRecoverableError
from fsdrivers.device import FileDevice
from fsdrivers.partitions.chs import bios_geometry
from rebuild.apply import apply_plan
from rebuild.compare.disks import compare_machine
from rebuild.fixups.firmware import write_boot_entry
from rebuild.plan import RestorePlan, TargetDisk
from rebuild.report import RestoreReport
from rebuild.restore import make_plan
from rebuild.streaming.opener import PieceOpener
from tests.fsdrivers.ntfs.volumes import make_image
from tests.fsdrivers.ntfs.volumes import mounted as ntfs_mounted
from tests.programs import run
from tests.rebuild.fixups import windows_hives as hives
from tests.rebuild.machines import SmallMachine, back_up

pytestmark = pytest.mark.tools
MIB = 1 << 20
SIGNATURE, C, D = hives.SIGNATURE, hives.C, hives.D
FOLLOW = "  Partitions move: Windows' boot configuration and registry follow them."
STAY = "  No partition moves and none grows unasked, so that Windows finds them all."


@pytest.fixture(scope="module", params=["ntfs", "fat"])
def windows(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SmallMachine:
    """A machine with Windows on a second partition of either type."""
    directory = tmp_path_factory.mktemp("windows")
    return make_machine(directory, request.param, hives.make_system(directory / "SYSTEM"))


def make_machine(
    directory: Path, second_type: str, system: Path, *, is_compressed: bool = False
) -> SmallMachine:
    """A machine with one MBR disk: an NTFS volume, and Windows on one that lies behind it."""
    bcd = hives.make_bcd(directory / "BCD")
    disk = directory / "sda.img"
    first = make_image(directory / "first", 60 * MIB, "-L", "System")
    with ntfs_mounted(first, directory / "mount") as root:
        (root / "Boot").mkdir()
        (root / "Boot" / "BCD").write_bytes(bcd.read_bytes())
        (root / "bootmgr").write_bytes(b"loader" * 9000)
    second = directory / "second"
    if second_type == "ntfs":
        make_image(second, 30 * MIB, "-L", "Windows")
        with ntfs_mounted(second, directory / "mount") as root:
            target = root / "Windows" / "System32" / "config"
            target.mkdir(parents=True)
            if is_compressed:
                run("setfattr", "-n", "system.ntfs_attrib", "-v", "0x10080000", target)
            (target / "SYSTEM").write_bytes(system.read_bytes())
    else:
        second.write_bytes(b"")
        with second.open("r+b") as stream:
            stream.truncate(30 * MIB)
        run("mkfs.fat", "-n", "XP", second)
        for name in ("WINDOWS", "WINDOWS/system32", "WINDOWS/system32/config"):
            run("mmd", "-i", second, f"::{name}")
        run("mcopy", "-i", second, system, "::WINDOWS/system32/config/system")
    with disk.open("wb") as stream:
        stream.truncate(D + 31 * MIB)
    script = f"label: dos\nlabel-id: {SIGNATURE:#x}\n"
    script += f"start={C // 512}, size={60 * MIB // 512}, type=7, bootable\n"
    kind = 7 if second_type == "ntfs" else 6
    script += f"start={D // 512}, size={30 * MIB // 512}, type={kind}\n"
    subprocess.run(["sfdisk", "-q", str(disk)], input=script, text=True, check=True)
    with disk.open("r+b") as stream:
        for position, volume in ((C, first), (D, second)):
            stream.seek(position)
            stream.write(volume.read_bytes())
    return back_up(directory, [disk])


def restored(
    machine: SmallMachine, path: Path, size: int, grow: int | None = None
) -> tuple[RestorePlan, RestoreReport, list[str]]:
    """Restore onto an image of so many bytes; return also the differences found by reading it."""
    unlocked = machine.unlocked()
    (disk,) = unlocked.machine.disks
    plan = make_plan(
        unlocked, {disk.number: TargetDisk(str(path), size, 512)}, grow=grow, is_blank=True
    )
    with path.open("wb") as stream:
        stream.truncate(size)
    with FileDevice.open(str(path), writable=True) as device:
        medium = machine.medium()
        opener = PieceOpener(unlocked.key, unlocked.header.packs)
        report = apply_plan(plan, {disk.number: device}, medium, opener)
        again = machine.unlocked().machine
        compared = compare_machine(again, {disk.number: device}, unlocked.key)
    return plan, report, compared.differences


def file_of(disk: Path, directory: Path, number: int, *names: str) -> Path:
    """Take a file out of a restored disk with sleuthkit."""
    start = int(run("sfdisk", "-q", "-l", "-o", "Start", disk).split()[number])
    where = ["-o", str(start), str(disk)]
    inode = ""
    for name in names:
        for line in run("fls", *where, *([inode] if inode else [])).splitlines():
            kind, _, shown = line.partition("\t")
            if shown.lower() == name.lower():
                inode = kind.split()[-1].rstrip(":")
    target = directory / names[-1]
    with target.open("wb") as stream:
        subprocess.run(["icat", *where, inode], stdout=stream, check=True)
    return target


def check_places(disk: Path, directory: Path, start: int) -> None:
    """Check by foreign readers that both files name the second partition's place."""
    system = file_of(disk, directory, 2, "Windows", "System32", "config", "SYSTEM")
    found = hives.values(system, "MountedDevices")
    assert found["\\DosDevices\\D:"] == hives.mounted(SIGNATURE, start)
    assert found["\\DosDevices\\C:"] == hives.mounted(SIGNATURE, C)
    bcd = file_of(disk, directory, 1, "Boot", "BCD")
    assert hives.element(bcd, hives.OS_LOADER, "11000001") == hives.partition_element(
        SIGNATURE, start
    )
    for number, position in ((1, C), (2, start)):
        with disk.open("rb") as stream:
            stream.seek(position)
            boot = stream.read(512)
        assert struct.unpack_from("<I", boot, 28) == (position // 512,), number
        if boot[3:7] == b"NTFS":
            heads, sectors = bios_geometry(disk.stat().st_size)
            assert struct.unpack_from("<HH", boot, 24) == (sectors, heads)
    assert disk.read_bytes()[440:444] == struct.pack("<I", SIGNATURE)


def test_partitions_stay_on_a_larger_disk(windows: SmallMachine, tmp_path: Path) -> None:
    """With Windows on the machine a larger disk moves nothing; signature and files stay, too."""
    disk = tmp_path / "disk"
    plan, report, differences = restored(windows, disk, 160 * MIB)
    (planned,) = plan.disks

    assert [part.new_start for part in planned.partitions] == [C, D]
    assert [part.change for part in planned.partitions] == ["same", "grows"]
    assert STAY not in plan.lines()
    assert report.is_complete
    assert report.notes == []
    assert differences == []
    check_places(disk, tmp_path, D)


@pytest.mark.parametrize(("size", "grow"), [(160, 1), (84, None)])
def test_registry_and_boot_configuration_follow(
    windows: SmallMachine, tmp_path: Path, size: int, grow: int | None
) -> None:
    """Where a partition must move, both files name its new place; reading back finds all equal."""
    disk = tmp_path / "disk"
    plan, report, differences = restored(windows, disk, size * MIB, grow)
    second = plan.disks[0].partitions[1]
    assert report.is_complete
    assert differences == []
    check_places(disk, tmp_path, second.new_start)
    if grow is None:
        assert second.new_start == D  # the last one shrinks
        return
    path = "Windows\\System32\\config\\SYSTEM"
    path = path if second.type == "ntfs" else "WINDOWS\\system32\\config\\SYSTEM"
    changed = [
        "Partitions moved; 2 places in \\Boot\\BCD (the boot configuration) changed with them.",
        f"Partitions moved; 2 places in \\{path} (the registry) changed with them.",
    ]

    assert second.new_start != D
    assert FOLLOW in plan.lines()
    assert [note.lower() for note in report.notes] == [note.lower() for note in changed]


def test_a_hive_in_use_is_left_alone(tmp_path: Path) -> None:
    """A hive whose changes are in its log stays as it is, and the report says so."""
    base = bytearray(hives.make_system(tmp_path / "SYSTEM").read_bytes())
    base[4:8] = struct.pack("<I", 1 + int.from_bytes(base[4:8], "little"))
    (tmp_path / "SYSTEM").write_bytes(bytes(hives.sealed(base[:512])) + base[512:])
    machine = make_machine(tmp_path, "fat", tmp_path / "SYSTEM")
    disk = tmp_path / "disk"
    _, report, differences = restored(machine, disk, 160 * MIB, 1)

    assert report.notes[1:] == [
        "Partitions moved, but \\WINDOWS\\system32\\config\\system was in use, and changes to it "
        "are in its log: it still names their old places. Windows may not start, or give other "
        "drive letters."
    ]
    assert differences == []
    kept = file_of(disk, tmp_path / "store", 2, "Windows", "System32", "config", "SYSTEM")
    assert kept.read_bytes() == (tmp_path / "SYSTEM").read_bytes()


def test_a_compressed_hive_is_left_alone(tmp_path: Path) -> None:
    """A hive that is stored compressed stays, is compared as it is stored, and is reported."""
    system = hives.make_system(tmp_path / "SYSTEM")
    machine = make_machine(tmp_path, "ntfs", system, is_compressed=True)
    disk = tmp_path / "disk"
    _, report, differences = restored(machine, disk, 160 * MIB, 1)

    assert report.notes[1:] == [
        "Partitions moved, but \\Windows\\System32\\config\\SYSTEM is compressed or encrypted: it "
        "still names their old places. Windows may not start, or give other drive letters."
    ]
    assert differences == []


WINDOWS_11 = (  # as Windows 11 lays out a disk, smaller; type, attributes, size in MiB
    ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "", 40),  # EFI system partition
    ("E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "GUID:63", 16),  # Microsoft reserved
    ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "", 60),  # C:
    ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "", 20),  # D:, encrypted
    ("DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", "RequiredPartition GUID:63", 30),  # recovery
)


def make_windows_11(directory: Path) -> Path:
    """Make a GPT disk as Windows 11 does, with a volume that BitLocker encrypted beside it."""
    system = hives.make_system(directory / "SYSTEM")
    bcd = hives.make_bcd(directory / "BCD")
    esp, windows = directory / "esp", directory / "windows"
    with esp.open("wb") as stream:
        stream.truncate(40 * MIB)
    run("mkfs.fat", "-F", 32, esp)
    for name in ("EFI", "EFI/Microsoft", "EFI/Microsoft/Boot"):
        run("mmd", "-i", esp, f"::{name}")
    run("mcopy", "-i", esp, bcd, "::EFI/Microsoft/Boot/BCD")
    run("mcopy", "-i", esp, bcd, "::EFI/Microsoft/Boot/bootmgfw.efi")
    make_image(windows, 60 * MIB)
    with ntfs_mounted(windows, directory / "mount") as root:
        (root / "Windows" / "System32" / "config").mkdir(parents=True)
        (root / "Windows" / "System32" / "config" / "SYSTEM").write_bytes(system.read_bytes())
        (root / "pagefile.sys").write_bytes(b"page" * 300_000)
    encrypted = directory / "encrypted"
    with encrypted.open("wb") as stream:
        stream.write(b"\xeb\x58\x90-FVE-FS-" + random.Random(4).randbytes(20 * MIB - 11))
    recovery = make_image(directory / "recovery", 30 * MIB)
    disk, position = directory / "sda.img", MIB
    script, places = "label: gpt\n", []
    for (kind, flags, size), volume in zip(
        WINDOWS_11, (esp, None, windows, encrypted, recovery), strict=True
    ):
        script += f"start={position // 512}, size={size * MIB // 512}, type={kind}"
        script += f', attrs="{flags}"\n' if flags else "\n"
        places.append((position, volume))
        position += size * MIB
    with disk.open("wb") as stream:
        stream.truncate(position + MIB)
    subprocess.run(["sfdisk", "-q", str(disk)], input=script, text=True, check=True)
    with disk.open("r+b") as stream:
        for start, volume in places:
            if volume is not None:
                stream.seek(start)
                stream.write(volume.read_bytes())
    return disk


def test_a_disk_as_windows_11_lays_it_out(tmp_path: Path) -> None:
    """ESP, MSR, system, recovery: all GUIDs, flags and places are kept; BitLocker only as raw."""
    disk = make_windows_11(tmp_path)
    with pytest.raises(NotRecoverableError, match="encrypted with BitLocker"):
        back_up(tmp_path / "refused", [disk])
    machine = back_up(tmp_path, [disk], allow_raw=True)
    for size in (168, 300):
        target = tmp_path / f"disk{size}"
        plan, report, differences = restored(machine, target, size * MIB)
        found = [json.loads(run("sfdisk", "-J", path))["partitiontable"] for path in (disk, target)]
        for table in found:
            for number, part in enumerate(table["partitions"]):
                part["node"] = number

        assert found[0]["partitions"] == found[1]["partitions"]
        assert found[0]["id"] == found[1]["id"]
        assert report.is_complete
        assert differences == []
        assert report.notes == [
            "Added \\EFI\\BOOT\\BOOTX64.EFI, a copy of \\EFI\\Microsoft\\Boot\\bootmgfw.efi."
        ]
        assert (STAY in plan.lines()) is (size == 300)
        loader = file_of(target, tmp_path / "store", 1, "EFI", "BOOT", "BOOTX64.EFI")
        assert loader.read_bytes() == (tmp_path / "BCD").read_bytes()
    blank = file_of(target, tmp_path / "store", 3, "pagefile.sys").read_bytes()
    assert blank == bytes(1_200_000)
    start = 117 * MIB
    assert target.read_bytes()[start : start + 20 * MIB] == (tmp_path / "encrypted").read_bytes()
    assert write_entry(machine, plan, tmp_path) == (
        ["Firmware boot entry Boot0000 starts \\EFI\\Microsoft\\Boot\\bootmgfw.efi."]
    )


def write_entry(machine: SmallMachine, plan: RestorePlan, directory: Path) -> list[str]:
    """Have the firmware's entry written into a directory that stands for its variables."""
    variables = directory / "efivars"
    variables.mkdir()
    return write_boot_entry(machine.unlocked().machine, plan, str(variables))
