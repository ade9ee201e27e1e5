# SPDX-License-Identifier: Apache-2.0
"""Disks with an NTFS volume that has what Windows volumes have, for the whole main job.

Filled through ntfs-3g; `tests.fsdrivers.ntfs.volumes` says what of it ntfs-3g and our driver see.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from fsdrivers.device import MemoryDevice
from fsdrivers.ntfs.volume import NtfsVolume, open_volume
from fsdrivers.partitions import open_partition, read_table
from tests.fsdrivers.ntfs.volumes import (
    MIB,
    descriptor,
    ea,
    make_image,
    mounted,
    populate,
    reparse,
)
from tests.programs import run

START = 1 * MIB  # of the partition
SWAP_SIZE = 3_000_000
SYSTEM_DIRECTORY = "System Volume Information"
SNAPSHOT = "{01234567-89ab-cdef-0123-456789abcdef}{3808876b-c176-4e48-b7ae-04046e6cc752}"
WOF, WOF_SIZE = 0x80000017, 30_000


def fill(root: Path) -> None:
    """Fill a mounted volume with everything that backup and restore treat differently."""
    populate(root)
    draw = random.Random("machine")
    for name in ("pagefile.sys", "HIBERFIL.SYS"):
        (root / name).write_bytes(draw.randbytes(SWAP_SIZE))
        os.setxattr(root / name, "system.ntfs_attrib", struct.pack("<I", 0x26))
    (root / "Users" / "pagefile.sys").write_bytes(b"content, since it is somewhere else")
    system = root / SYSTEM_DIRECTORY
    system.mkdir()
    for name in (SNAPSHOT, SNAPSHOT[38:], "tracking.log"):
        (system / name).write_bytes(draw.randbytes(70_000))
    keys = struct.pack("<I", 604) + draw.randbytes(600)
    (root / "secret").write_bytes(draw.randbytes(1536) + struct.pack("<H", 512 - 100))
    os.setxattr(root / "secret", "system.ntfs_efsinfo", keys)
    with open(root / "overlay", "wb") as file:
        file.truncate(WOF_SIZE)
    chunks = struct.pack("<7I", *range(4096, WOF_SIZE, 4096)) + draw.randbytes(WOF_SIZE)
    os.setxattr(root / "overlay", "user.WofCompressedData", chunks)
    data = struct.pack("<IIII", 1, 2, 1, 0)
    os.setxattr(root / "overlay", "system.ntfs_reparse_data", reparse(WOF, data))
    (root / "several runs").write_bytes(draw.randbytes(9 * MIB + 77))
    os.setxattr(root / "several runs", "user.also large", draw.randbytes(65_000))
    for index in range(30):
        path = root / f"own attributes {index}"
        path.write_bytes(b"%d" % index)
        os.setxattr(path, "system.ntfs_ea", ea(b"NAME", b"value %d" % index))
        os.setxattr(path, "system.ntfs_acl", descriptor("S-1-5-21-1-2-3-1002", "S-1-5-18"))
    packed = root / "packed"
    (packed / "large").write_bytes((b"A" * 50_000 + draw.randbytes(50_000)) * 120)


def make_disk(
    path: Path,
    size: int = 80 * MIB,
    *options: object,
    scheme: str = "dos",
    content: Callable[[Path], object] | None = None,
) -> Path:
    """Make an image of a disk with one partition, an NTFS volume with `content` or, else, all."""
    volume = make_image(path.with_suffix(".volume"), size, "-L", "Windows", *options)
    mount = path.with_suffix(".mount")
    with mounted(volume, mount) as root:
        (content or fill)(root)
    if content is None:
        with mounted(volume, mount, "streams_interface=windows") as root:
            huge = random.Random("huge").randbytes(9 * MIB)
            Path(f"{root}/several runs:huge").write_bytes(huge)
        run("ntfsfallocate", "-f", "-l", 200_000, volume, "/hidden.sys")
    mount.rmdir()
    with path.open("wb") as stream:
        stream.truncate(START + size + MIB)
    kind = "7" if scheme == "dos" else "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
    script = f"label: {scheme}\nstart={START // 512}, size={size // 512}, type={kind}\n"
    subprocess.run(["sfdisk", "-q", str(path)], input=script, text=True, check=True)
    copy_into_disk(volume, path)
    volume.unlink()
    return path


def copy_into_disk(volume: Path, disk: Path) -> None:
    """Write a volume's image over the partition of a disk image."""
    with disk.open("r+b") as stream:
        stream.seek(START)
        stream.write(volume.read_bytes())


def volume_of(disk: Path) -> NtfsVolume:
    """Open the volume of a disk image, in memory."""
    device = MemoryDevice.of(disk.read_bytes())
    table = read_table(device)
    assert table is not None
    return open_volume(open_partition(device, table, 1))


def extracted(disk: Path, path: Path) -> Path:
    """Copy the partition of a disk image into a file."""
    with disk.open("rb") as stream:
        table = read_table(MemoryDevice.of(stream.read()))
        assert table is not None
        (entry,) = table.entries
        stream.seek(entry.start)
        path.write_bytes(stream.read(entry.size))
    return path
