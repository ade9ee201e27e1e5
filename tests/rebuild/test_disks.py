# SPDX-License-Identifier: Apache-2.0
"""The machine's disks as the kernel describes them: what is offered, what is not, and why."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fsdrivers import driver_of, probe
from fsdrivers.device import FileDevice
from rebuild import disks
from rebuild.disc_image import holds_disc
from rebuild.errors import UnsafeTargetError
from tests.judges import mounted
from tests.rebuild.machines import SmallMachine

VOLUME_DESCRIPTOR = b"\x01CD001\x01\0" + b"LINUX".ljust(32) + b"REBUILDKIT_0011".ljust(32)


class FakeSys:
    """A /sys/block of the tests' own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, **files: str | bytes) -> None:
        """Add a disk; file names have `__` for `/`."""
        defaults: dict[str, str | bytes] = {"size": "2048", "ro": "0"}
        for file, content in (defaults | files).items():
            path = self.path / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() + b"\n" if isinstance(content, str) else content)

    def found(self, boot_disk: str | None = None) -> dict[str, disks.TargetDisk]:
        """List the disks by name."""
        listed = disks.list_disks(boot_disk, str(self.path))
        return {os.path.basename(disk.path): disk for disk in listed}


@pytest.fixture
def sys_block(tmp_path: Path) -> FakeSys:
    """An empty /sys/block."""
    path = tmp_path / "block"
    path.mkdir()
    return FakeSys(path)


def test_model_and_serial_of_every_kind(sys_block: FakeSys) -> None:
    """SATA, NVMe, virtio, SCSI page 0x80 and a disk that tells nothing."""
    page = b"\x00\x80\x00\x0a" + b"  WX-1234 "
    sys_block.add(
        "rkt_a", device__vendor="ATA     ", device__model="QEMU HARDDISK  ", device__vpd_pg80=page
    )
    sys_block.add("rkt_b", device__model="Samsung SSD 980", device__serial="S64DNL0T")
    sys_block.add(
        "rkt_c", serial="VIRT-1", device__vendor="0x1af4", queue__logical_block_size="4096"
    )
    sys_block.add("rkt_d", device__vendor="Generic", device__model="Flash")
    found = sys_block.found()

    assert [(d.model, d.serial, d.sector_size) for d in found.values()] == [
        ("QEMU HARDDISK", "WX-1234", 512),
        ("Samsung SSD 980", "S64DNL0T", 512),
        ("", "VIRT-1", 4096),
        ("Generic Flash", "", 512),
    ]
    assert found["rkt_a"].about == "QEMU HARDDISK, serial number WX-1234"
    assert found["rkt_d"].about == "Generic Flash, no serial number"
    assert {d.size for d in found.values()} == {1 << 20}


def test_what_is_no_disk_is_not_listed(sys_block: FakeSys) -> None:
    """Optical drives, memory, composed devices and empty card readers do not show."""
    for name in ("sr0", "loop3", "ram0", "dm-0", "md127", "zram0", "fd0", "nbd0"):
        sys_block.add(name)
    sys_block.add("rkt_empty", size="0")
    sys_block.add("rkt_disk")

    assert list(sys_block.found()) == ["rkt_disk"]


def test_reasons_against_a_disk_are_told(sys_block: FakeSys) -> None:
    """The boot medium, a write-protected disk, and one that something is built on."""
    sys_block.add("rkt_stick")
    sys_block.add("rkt_ro", ro="1")
    sys_block.add("rkt_raid", rkt_raid2__holders__md0="")
    sys_block.add("rkt_free")
    found = sys_block.found("rkt_stick")

    assert {name: disk.refusal for name, disk in found.items()} == {
        "rkt_free": "",
        "rkt_raid": "/dev/rkt_raid is in use: md0 is built on it",
        "rkt_ro": "it is read-only",
        "rkt_stick": "this recovery disc is on it",
    }


def test_names_are_in_natural_order(sys_block: FakeSys) -> None:
    """The tenth disk comes after the second."""
    for number in (10, 2, 1):
        sys_block.add(f"rkt{number}n1")

    assert list(sys_block.found()) == ["rkt1n1", "rkt2n1", "rkt10n1"]


def test_disk_of_a_partition(sys_block: FakeSys) -> None:
    """A partition's disk is found; a disk is its own; what is neither stays."""
    sys_block.add("rkt0n1", rkt0n1p1__start="2048")

    for device in ("/dev/rkt0n1", "/dev/rkt0n1p1"):
        assert disks.disk_of(device, str(sys_block.path)) == "rkt0n1"
    assert disks.disk_of("/dev/other", str(sys_block.path)) == "other"


def test_another_recovery_disc_is_recognised(tmp_path: Path) -> None:
    """A stick with any of our discs is known by its volume id, other images are not."""
    ours, other, short = tmp_path / "ours", tmp_path / "other", tmp_path / "short"
    ours.write_bytes(bytes(32768) + VOLUME_DESCRIPTOR.ljust(2048, b"\0"))
    other.write_bytes(bytes(32768) + VOLUME_DESCRIPTOR.replace(b"REBUILDKIT", b"DEBIAN----"))
    short.write_bytes(b"x")

    assert holds_disc(str(ours))
    assert not holds_disc(str(other))
    assert not holds_disc(str(short))
    assert not holds_disc(str(tmp_path / "absent"))


@pytest.mark.tools
def test_content_is_told_in_a_few_words(
    mbr_machine: SmallMachine, gpt_machine: SmallMachine, tmp_path: Path
) -> None:
    """Partitions with filesystem, label and size; nothing for a blank disk."""
    blank, odd = tmp_path / "blank", tmp_path / "odd"
    blank.write_bytes(bytes(1 << 20))
    odd.write_bytes(b"\xa5" * (1 << 20))

    assert disks.content_of(str(mbr_machine.disks[0])) == (
        'mbr: 1 fat12 "ESP" 4.0 MiB, 2 ext4 "root" 48.0 MiB, 3 swap "swap" 8.0 MiB'
    )
    assert disks.content_of(str(gpt_machine.disks[0])).startswith('gpt: 1 fat12 "ESP"')
    assert disks.content_of(str(blank)) == ""
    assert disks.content_of(str(odd)) == "unknown"
    assert disks.content_of("/nonexistent") == "unreadable"


@pytest.mark.tools
def test_label_of_every_filesystem_is_told(tmp_path: Path) -> None:
    """That of NTFS too, and one in a code page as what it says."""
    disk, volume = tmp_path / "disk", tmp_path / "volume"
    parts = []
    for command, label in ((["mkntfs", "-q", "-F"], "Büro".encode()), (["mkfs.fat"], b"B\x9aRO")):
        with volume.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run([*command, volume], check=True, capture_output=True)
        with FileDevice.open(volume, writable=True) as device:
            editor = driver_of(probe(device)).open_editor(device)
            editor.set_label(label)
            editor.close()
        parts.append(volume.read_bytes())
        volume.unlink()
    disk.write_bytes(b"".join((bytes(1 << 20), *parts)))
    script = "label: dos\nstart=2048, size=16384, type=7\nstart=18432, size=16384, type=6\n"
    subprocess.run(["sfdisk", "-q", disk], input=script, text=True, check=True)

    assert disks.content_of(str(disk)) == 'mbr: 1 ntfs "Büro" 8.0 MiB, 2 fat12 "BÜRO" 8.0 MiB'


@pytest.mark.root
def test_mounted_disk_is_in_use(tmp_path: Path) -> None:
    """A disk below a mounted directory is refused."""
    image = tmp_path / "image"
    subprocess.run(["mke2fs", "-q", "-t", "ext2", image, "1M"], check=True)
    with mounted(image) as root:
        point = os.fsencode(root)
        rows = [line.split() for line in Path("/proc/self/mounts").read_bytes().splitlines()]
        (device,) = [os.fsdecode(row[0]) for row in rows if row[1] == point]
        with pytest.raises(UnsafeTargetError, match="in use"):
            disks.refuse_in_use(device)
