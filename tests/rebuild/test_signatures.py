# SPDX-License-Identifier: Apache-2.0
"""What a target held before never shows through the volumes that are made on it."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from fsdrivers import signatures
from fsdrivers.device import FileDevice, MemoryDevice, Window
from fsdrivers.probing import left_over
from rebuild.compare.disks import compare_machine
from rebuild.plan import TargetDisk
from rebuild.restore import apply_plan, make_plan
from tests.programs import run
from tests.rebuild.machines import SmallMachine
from tests.scenario import must, rebuildkit

pytestmark = pytest.mark.tools
MIB = 1 << 20
TARGET_SIZE = 80 * MIB
SURE = [row for row in signatures.ALL if len(row.magic) >= 4]


def raid_0_90(size: int) -> tuple[int, bytes]:
    """Return where the superblock of a mirror's member lies, and the superblock.

    Source: [linux] include/uapi/linux/raid/md_p.h.
    """
    position = size // 65536 * 65536 - 65536
    words = [0xA92B4EFC, 0, 90, 0, 0, 0x11223344, 1600000000, 1, position // 1024, 2, 2]
    words += [0, 0, 5, 6, 7]
    return position, b"".join(word.to_bytes(4, "little") for word in words).ljust(4096, b"\0")


def raid_1_0(size: int) -> tuple[int, bytes]:
    """Return the same for a superblock of version 1.0."""
    position = (size - 8192) // 4096 * 4096
    data = bytearray(260)
    data[0:8] = bytes.fromhex("fc4e2ba901000000")
    data[16:32] = uuid.UUID(int=7).bytes
    data[72:76] = (1).to_bytes(4, "little")  # level
    data[80:88] = data[144:152] = (position // 512).to_bytes(8, "little")
    data[92:96] = (2).to_bytes(4, "little")
    data[220:224] = (2).to_bytes(4, "little")
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, 260, 4)]
    total = sum(words)
    data[216:220] = ((total & 0xFFFFFFFF) + (total >> 32)).to_bytes(4, "little")
    return position, bytes(data)


def luks_second(size: int) -> tuple[int, bytes]:
    """Return the second header of LUKS2, the first of which is gone."""
    data = bytearray(b"SKUL\xba\xbe\0\x02".ljust(512, b"\0"))
    data[8:16] = (0x4000).to_bytes(8, "big")
    data[256:264] = (0x4000).to_bytes(8, "big")
    data[168:204] = str(uuid.UUID(int=9)).encode()
    return 0x4000, bytes(data)


REAL = {  # what blkid takes for real, and as what
    "raid-0.90": (raid_0_90, "linux_raid_member"),
    "raid-1.0": (raid_1_0, "linux_raid_member"),
    "luks-second": (luks_second, "crypto_LUKS"),
}


def plant(device: Window | MemoryDevice) -> None:
    """Put everything that blkid knows to the ends of a device, what it may be behind it too."""
    for row in SURE:
        if (place := row.place(device.size)) >= 0:
            device.write(place, row.magic)
    for make, _ in REAL.values():
        position, data = make(device.size)
        if position + len(data) <= device.size:
            device.write(position, data)


@pytest.mark.parametrize("name", REAL)
def test_planted_is_what_blkid_finds(tmp_path: Path, name: str) -> None:
    """The signatures made here are real ones: wipefs finds each."""
    make, kind = REAL[name]
    path = tmp_path / "volume"
    with path.open("wb") as stream:
        stream.truncate(16 * MIB)
        position, data = make(16 * MIB)
        stream.seek(position)
        stream.write(data)
    assert kind in run("wipefs", "-n", path)


@pytest.mark.parametrize("kind", sorted({row.type for row in SURE}))
def test_each_signature_is_seen_and_wiped(kind: str) -> None:
    """Judging finds each signature in its place, and nothing on what was wiped."""
    device = MemoryDevice(8 * MIB + 512)  # no multiple of what positions are rounded to
    for row in (row for row in SURE if row.type == kind):
        place = row.place(device.size)
        device.write(place, row.magic)
        assert [text.split()[0] for text in left_over(device, None)] == [kind]
        signatures.wipe(device)
        assert not any(device.read(place, len(row.magic)))


def test_areas_are_ascending_and_in_the_device() -> None:
    """Of any size: no area overlaps the next, none passes the end, none but the last is odd."""
    for size in (0, 512, 4096, MIB, 2 * MIB + 512, 3 * MIB, 5 * MIB + 1536, 1 << 40):
        end = 0
        for position, length in signatures.areas(size):
            assert position >= end
            end = position + length
            assert end <= size
            assert not position % 4096
        assert end == size or size == 0


@pytest.mark.parametrize("scheme", ["mbr", "gpt"])
def test_old_signatures_are_gone(
    scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A target full of what other systems left: blkid and wipefs see the new volumes alone."""
    machine: SmallMachine = request.getfixturevalue(f"{scheme}_machine")
    unlocked = machine.unlocked()
    (recorded,) = unlocked.machine.disks
    image = tmp_path / "old.img"
    with image.open("wb") as stream:
        stream.truncate(TARGET_SIZE)
    plan = make_plan(unlocked, {recorded.number: TargetDisk(str(image), TARGET_SIZE, 512)})
    parts = [part for part in plan.disks[0].partitions if not part.is_extended]
    with FileDevice.open(str(image), writable=True) as device:
        plant(Window(device, 0, device.size))
        for part in parts:
            plant(Window(device, part.new_start, part.new_size))

    apply_plan(unlocked, plan, machine.medium())

    for part in parts:
        volume = tmp_path / f"volume{part.number}"
        with image.open("rb") as stream:
            stream.seek(part.new_start)
            volume.write_bytes(stream.read(part.new_size))
        found = run("wipefs", "-n", "-p", volume)
        kinds = {line.split(",")[-1] for line in found.splitlines() if line[:1] != "#"}
        assert kinds <= {"vfat" if part.type.startswith("fat") else part.type}, found
    with FileDevice.open(str(image)) as device:
        result = compare_machine(
            machine.unlocked().machine, {recorded.number: device}, unlocked.master
        )
    assert result.differences == []


@pytest.mark.parametrize("name", REAL)
def test_comparing_sees_what_is_left(mbr_machine: SmallMachine, tmp_path: Path, name: str) -> None:
    """A signature in the free room of a restored volume is a difference, by name."""
    unlocked = mbr_machine.unlocked()
    (recorded,) = unlocked.machine.disks
    image = tmp_path / "new.img"
    with image.open("wb") as stream:
        stream.truncate(TARGET_SIZE)
    plan = make_plan(
        unlocked, {recorded.number: TargetDisk(str(image), TARGET_SIZE, 512)}, is_blank=True
    )
    apply_plan(unlocked, plan, mbr_machine.medium())
    part = plan.disks[0].partitions[1]
    with FileDevice.open(str(image), writable=True) as device:
        position, data = REAL[name][0](part.new_size)
        device.write(part.new_start + position, data)
        found = compare_machine(unlocked.machine, {recorded.number: device}, unlocked.master)
    kind = "luks" if name == "luks-second" else "mdraid"
    assert any(kind in text for text in found.differences)


def test_mkfs_over_an_array_member(tmp_path: Path) -> None:
    """`fs mkfs` over a member of an array makes a volume that blkid names."""
    path = tmp_path / "volume"
    with path.open("wb") as stream:
        stream.truncate(16 * MIB)
        for make in (raid_0_90, raid_1_0):
            position, data = make(16 * MIB)
            stream.seek(position)
            stream.write(data)
    must(rebuildkit("fs", "mkfs", path, "--type", "ntfs", "--force"))
    assert "ntfs" in run("blkid", "-p", path)
