# SPDX-License-Identifier: Apache-2.0
"""Probing and opening: what a device is said to hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fsdrivers import Can, driver_of, find_driver, open_volume, probe, types_that
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import CorruptError, NotRecognisedError, UnsupportedError
from fsdrivers.signatures import CONTAINERS, LIKE_FAT, OTHERS, Signature

MIB = 1 << 20

MADE = {
    "fat12": (["mkfs.vfat", "-F", "12"], 4 * MIB),
    "fat16": (["mkfs.vfat", "-F", "16"], 16 * MIB),
    "fat32": (["mkfs.vfat", "-F", "32"], 64 * MIB),
    "ext2": (["mke2fs", "-q", "-F", "-t", "ext2"], 16 * MIB),
    "ext3": (["mke2fs", "-q", "-F", "-t", "ext3"], 16 * MIB),
    "ext4": (["mke2fs", "-q", "-F", "-t", "ext4"], 16 * MIB),
    "swap": (["mkswap"], 4 * MIB),
}


def made(tmp_path: Path, kind: str) -> Path:
    command, size = MADE[kind]
    path = tmp_path / "volume.img"
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run([*command, str(path)], check=True, capture_output=True)
    return path


@pytest.mark.tools
@pytest.mark.parametrize("kind", MADE)
def test_recognises_what_we_can_open(tmp_path: Path, kind: str) -> None:
    """A volume made by the usual tool is recognised as its type, and opens as it."""
    with FileDevice.open(made(tmp_path, kind)) as device:
        assert probe(device) == kind
        assert open_volume(device).type == kind


@pytest.mark.tools
@pytest.mark.parametrize(
    "options",
    [["-O", "^has_journal,extent"], ["-O", "^has_journal,^extent,^64bit"]],
)
def test_ext4_by_features(tmp_path: Path, options: list[str]) -> None:
    """Any feature that came with ext4 makes it ext4, journal or not, as for blkid."""
    path = tmp_path / "volume.img"
    path.write_bytes(bytes(8 * MIB))
    command = ["mke2fs", "-q", "-F", "-t", "ext4", *options, str(path)]
    subprocess.run(command, check=True, capture_output=True)
    command = ["blkid", "--probe", "-o", "value", "-s", "TYPE", str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    with FileDevice.open(path) as device:
        assert probe(device) == found == "ext4"


# Of those that have drivers and nothing but a signature.
DRIVEN = (Signature("ntfs", 3, b"NTFS    "), Signature("iso9660", 0x8001, b"CD001"))


@pytest.mark.parametrize(
    "signature", [*CONTAINERS, *LIKE_FAT, *DRIVEN, *OTHERS], ids=lambda s: s.type
)
def test_signatures(signature: Signature) -> None:
    """Each signature in its place names its type; the driver refuses it by that name."""
    device = MemoryDevice(8 * MIB)
    device.write(signature.position % device.size, signature.magic)

    assert probe(device) == signature.type
    if find_driver(signature.type):  # but there is nothing behind the signature
        with pytest.raises(CorruptError):
            open_volume(device)
        return
    with pytest.raises(UnsupportedError, match=signature.type):
        open_volume(device)


@pytest.mark.tools
@pytest.mark.parametrize("kind", ["ext4", "fat32", "swap"])
@pytest.mark.parametrize(
    "position", [64 * MIB - 65536 - 65536, 64 * MIB - 8192], ids=["0.90", "1.0"]
)
def test_raid_member_is_not_its_filesystem(tmp_path: Path, kind: str, position: int) -> None:
    """A mirror's superblock at the end wins over the filesystem that shows at the start."""
    path = made(tmp_path, kind)
    with path.open("r+b") as file:
        file.truncate(64 * MIB + (0 if position > 63.9 * MIB else -4096))
        file.seek(position)
        file.write(bytes.fromhex("fc4e2ba9"))
    with FileDevice.open(path) as device:
        assert probe(device) == "mdraid"


@pytest.mark.parametrize("magic", [bytes.fromhex("0cb1ba0000000000"), b"\0\0\0\0\0\xba\xb1\x0c"])
def test_zfs(magic: bytes) -> None:
    """A ring of uberblocks of either byte order is ZFS."""
    device = MemoryDevice(8 * MIB)
    for slot in range(4):
        device.write((128 + slot * 4) << 10, magic)
    assert probe(device) == "zfs"


@pytest.mark.parametrize("size", [0, 1, 4096, 8 * MIB])
def test_empty_and_unknown(size: int) -> None:
    """Zeros at both ends are empty, anything else unknown; neither opens."""
    device = MemoryDevice(size)
    assert probe(device) == "empty"
    with pytest.raises(NotRecognisedError, match="memory is empty"):
        open_volume(device)
    if size:
        device.write(size - 1, b"x")
        assert probe(device) == "unknown"
        with pytest.raises(NotRecognisedError, match="nothing that any driver knows"):
            open_volume(device)


def test_every_type_has_a_driver() -> None:
    """Each driver has the functions that its row says, and is refused by name for the others."""
    functions = {
        Can.READ: ("open_volume",),
        Can.LIVE: ("open_frame",),
        Can.PLAN: ("plan_volume", "minimum_size", "kept"),
        Can.CREATE: ("default_description",),
        Can.GROW: ("largest_size",),
        Can.CHECK: ("check_volume",),
        Can.EDIT: ("open_editor",),
        Can.LINK: ("link_of", "keep_link"),
    }
    assert set(functions) == set(Can) - {Can.SHRINK}
    for kind in types_that(Can.READ):
        driver = driver_of(kind)
        for can, names in functions.items():
            for name in names:
                if can in driver.can:
                    assert callable(getattr(driver, name))
                else:
                    with pytest.raises(UnsupportedError, match=f"{driver.types[-1]} volumes"):
                        getattr(driver, name)


def test_probing_imports_no_driver() -> None:
    """A probe costs no driver's import, and not construct's."""
    code = (
        "import sys; from fsdrivers import probe; from fsdrivers.device import MemoryDevice;"
        "assert probe(MemoryDevice(4096)) == 'empty';"
        "bad = [m for m in sys.modules if m.split('.')[0] == 'construct' or"
        " m.startswith('fsdrivers.') and m.count('.') > 1 and not m.endswith('.signature')];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
