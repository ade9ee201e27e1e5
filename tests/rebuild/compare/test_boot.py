# SPDX-License-Identifier: Apache-2.0
"""What starts from a volume is compared: every field and byte that no other place changes."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fsdrivers import driver_of, open_volume
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.fat.format import BootSector16, BootSector32
from fsdrivers.ntfs.description import SHADOW_HEADER, SHADOW_HEADER_AT, SHADOW_HEADER_SIZE
from fsdrivers.ntfs.format.records import BootSector
from fsdrivers.volume import Description, Entry, Kept, KeptKind, Kind, Node, Plain
from rebuild.compare.boot import Expected, kept_differences
from rebuild.compare.disks import compare_machine
from rebuild.fixups.dos import ToldPlace
from rebuild.fixups.protocol import RestoredFile, VolumeChange, VolumeChanges
from rebuild.plan import TargetDisk
from rebuild.restore import Unlocked, apply_plan, make_plan
from tests.fsdrivers.ext.volumes import make_image as make_ext
from tests.fsdrivers.ext.volumes import run
from tests.fsdrivers.ntfs import volumes as ntfs_volumes
from tests.rebuild.machines import back_up

pytestmark = pytest.mark.tools
MIB = 1 << 20
DISK_SIZE = 80 * MIB
# Of each partition: number of the first MiB, size in MiB, and of its boot code (position, length).
VOLUMES = {
    "fat16": (1, 8, ((BootSector16.SIZE, 510 - BootSector16.SIZE), (1024, 512))),
    "fat32": (9, 40, ((BootSector32.SIZE, 510 - BootSector32.SIZE), (1024, 1024), (6144, 512))),
    "ext4": (49, 8, ((0, 1024),)),
    "ntfs": (57, 16, ((BootSector.SIZE, 510 - BootSector.SIZE), (512, 7680))),
}
RECORDS: dict[str, type[BootSector16 | BootSector32 | BootSector]] = {
    "fat16": BootSector16,
    "fat32": BootSector32,
    "ntfs": BootSector,
}


def expected(sector_size: int = 512, is_same_size: bool = True) -> Expected:
    """Return what is expected of a volume behind the first MiB of a disk."""
    told = ToldPlace(volume=2, hidden_sectors=MIB // sector_size, is_same_size=is_same_size)
    return Expected(VolumeChanges((told,)), {})


SAME = expected()


class Patched(VolumeChange):
    """A fix-up that changes whatever code it is shown."""

    def boot_code_after(self, code: bytes, files: Mapping[int, RestoredFile]) -> bytes:
        return b"patched" + code[7:]


def test_fixups_change_what_a_volume_begins_with() -> None:
    """The first boot code of a volume and its copies are expected as a fix-up leaves them; other
    code is not what a fix-up writes to."""
    changes = VolumeChanges((Patched(volume=2),))
    code = bytes(range(200))
    kept = [
        Kept("boot sector", code, b"patched" + code[7:], KeptKind.BOOT_CODE),
        Kept("reserved sector 2", code[1:], code[1:], KeptKind.BOOT_CODE),
        Kept("reserved sector 6", code, b"patched" + code[7:], KeptKind.BOOT_CODE),
    ]
    assert list(kept_differences(kept, Expected(changes, {}))) == []


def make_volume(path: Path, kind: str) -> bytes:
    """Make a volume with boot code everywhere such code can be."""
    _, size_mib, areas = VOLUMES[kind]
    if kind == "ntfs":
        ntfs_volumes.make_image(path, size_mib * MIB)
    elif kind == "ext4":
        make_ext(path, size_mib * MIB, "-t", "ext4", "-b", 1024)
    else:
        with path.open("wb") as stream:
            stream.truncate(size_mib * MIB)
        reserved = ("-R", "32" if kind == "fat32" else "4")
        subprocess.run(
            ["mkfs.fat", "-s", "1", "-F", kind[3:], *reserved, path],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    data = bytearray(path.read_bytes())
    for position, length in areas:
        data[position : position + length] = random.Random(position).randbytes(length)
    if kind == "fat32":
        data[6 * 512 : 7 * 512] = data[:512]
    if kind == "ntfs":
        data[-512:] = data[:512]
    return bytes(data)


@dataclass(frozen=True)
class Restored:
    """A machine and the disk that was restored from its backup."""

    unlocked: Unlocked
    image: Path

    def differences(self, position: int | None = None) -> list[str]:
        """Compare, while one byte at `position` of the disk is another one."""
        with FileDevice.open(str(self.image), writable=True) as device:
            (disk,) = self.unlocked.machine.disks
            old = device.read(position or 0, 1)
            if position is not None:
                device.write(position, bytes([old[0] ^ 0x40]))
            found = compare_machine(self.unlocked.machine, {disk.number: device}, self.unlocked.key)
            if position is not None:
                device.write(position, old)
        return found.differences

    def start_of(self, kind: str) -> int:
        """Return where the volume lies on the restored disk."""
        output = run("sfdisk", "-l", "-o", "Start", "-q", self.image).split()[1:]
        return int(output[list(VOLUMES).index(kind)]) * 512


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a volume of each kind."""
    directory = tmp_path_factory.mktemp("disk")
    path = directory / "sda.img"
    script = "label: dos\n"
    with path.open("wb") as stream:
        stream.truncate(DISK_SIZE)
        for kind, (start, size, _) in VOLUMES.items():
            part_type = {"fat16": "6", "fat32": "c", "ext4": "83", "ntfs": "7"}[kind]
            script += f"start={start * MIB // 512}, size={size * MIB // 512}, type={part_type}\n"
            stream.seek(start * MIB)
            stream.write(make_volume(directory / kind, kind))
    run("sfdisk", "-q", path, text=script)
    return path


@pytest.fixture(scope="module", params=[DISK_SIZE, DISK_SIZE * 2], ids=["same", "larger"])
def restored(
    request: pytest.FixtureRequest, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Restored:
    """The disk restored in its own size and in twice that."""
    directory = tmp_path_factory.mktemp("restored")
    machine = back_up(directory, [disk])
    unlocked = machine.unlocked()
    (recorded,) = unlocked.machine.disks
    image = directory / "new.img"
    with image.open("wb") as stream:
        stream.truncate(request.param)
    plan = make_plan(
        unlocked, {recorded.number: TargetDisk(str(image), request.param, 512)}, is_blank=True
    )
    apply_plan(unlocked, plan, machine.medium())
    return Restored(machine.unlocked(), image)


def test_restored_is_equal(restored: Restored) -> None:
    """What the restore wrote, in another place and size too, does not count as a difference."""
    assert restored.differences() == []


@pytest.mark.parametrize("kind", VOLUMES)
def test_changed_byte(restored: Restored, kind: str) -> None:
    """One byte of boot code changed on a restored volume is a difference."""
    start = restored.start_of(kind)
    for position, length in VOLUMES[kind][2]:
        for at in (position, position + length // 2, position + length - 1):
            found = restored.differences(start + at)

            assert "boot code differs at byte" in found[0]
            # Where there is a copy, it differs from what was changed.
            assert all("boot sector differs" in text for text in found[1:]), (kind, at, found)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *(("fat16", name) for name in ("jump", "drive_number", "label", "hidden_sectors")),
        *(("fat32", name) for name in ("jump", "drive_number", "type_text", "reserved_34")),
        *(("ntfs", name) for name in ("jump", "drive_number", "hidden_sectors", "checksum")),
    ],
)
def test_changed_field(restored: Restored, kind: str, field: str) -> None:
    """So is a field of the boot sector that has to be as it was, or as the place demands."""
    offsets = RECORDS[kind].OFFSETS
    # Byte 0 of the jump is what a volume is recognised by.
    at = restored.start_of(kind) + offsets[field] + (field == "jump")
    found = restored.differences(at)

    assert any(f"{field} of the boot sector is" in text for text in found)


def described(disk: Path, kind: str) -> dict[str, Plain]:
    start, size, _ = VOLUMES[kind]
    with disk.open("rb") as stream:
        stream.seek(start * MIB)
        return dict(open_volume(MemoryDevice.of(stream.read(size * MIB))).describe())


def differences(
    kind: str, recorded: Description, found: Description, place: Expected = SAME
) -> list[str]:
    """Return in what a volume of a kind differs from what was recorded."""
    return list(kept_differences(driver_of(kind).kept(recorded, found), place))


@pytest.mark.parametrize("kind", VOLUMES)
def test_older_data_sets(disk: Path, kind: str) -> None:
    """A description that says nothing of boot code makes no error and no difference."""
    description = described(disk, kind)
    older = {
        name: value
        for name, value in description.items()
        if name not in ("boot_block", "boot", "reserved", "bpb")
    }

    assert differences(kind, description, description) == []
    assert differences(kind, older, description) == []


@pytest.mark.parametrize(
    ("kind", "key"),
    [("ext4", "feature_incompat"), ("ext4", "hash_seed"), ("fat16", "media"), ("ntfs", "version")],
)
def test_changed_fact(disk: Path, kind: str, key: str) -> None:
    """A fact of the filesystem that is another one is a difference."""
    description = described(disk, kind)

    assert differences(kind, {**description, key: b"x"}, description) == [
        f"{key} is {description[key]!r}, not b'x'"
    ]


def test_header_of_shadow_copies(disk: Path) -> None:
    """An older data set has the header of shadow copies in $Boot, a description has not."""
    found = described(disk, "ntfs")
    boot = found["boot"]
    assert isinstance(boot, bytes)
    found["boot"] = boot[:SHADOW_HEADER_AT]
    header = SHADOW_HEADER.ljust(SHADOW_HEADER_SIZE, b"\1")
    recorded = {**found, "boot": boot[:SHADOW_HEADER_AT] + header}

    assert differences("ntfs", recorded, found) == []


def test_dirty_volume(disk: Path) -> None:
    """That a FAT volume was or is in use makes no difference of its boot sector."""
    found = described(disk, "fat32")
    boot = found["bpb"]
    assert isinstance(boot, dict)
    recorded = {**found, "bpb": {**boot, "boot_flags": 3}}

    assert differences("fat32", recorded, found) == []
    assert differences("fat32", found, recorded) == []


@pytest.mark.parametrize("kind", ["fat16", "fat32", "ntfs"])
def test_larger_sectors(disk: Path, kind: str) -> None:
    """On sectors of 4096 bytes the boot code is the same code, and any other is a difference."""
    description = described(disk, kind)
    device = MemoryDevice(320 * MIB, 4096)
    root = Entry(1, b"", Node(number=1, kind=Kind.DIRECTORY, size=0))
    layout = driver_of(kind).plan_volume(
        description, size=device.size, sector_size=4096, entries=[root], order=[]
    )
    for position, data in layout.iter_metadata():
        device.write(position, bytes(data))
    place = expected(sector_size=4096, is_same_size=False)
    first = differences(kind, description, open_volume(device).describe(), place)
    device.write(0, device.read(0, 509) + b"\xee" + device.read(510, 4096 - 510))
    second = differences(kind, description, open_volume(device).describe(), place)

    assert first == []
    assert any("boot code differs at byte 509" in text for text in second)
