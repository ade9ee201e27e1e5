# SPDX-License-Identifier: Apache-2.0
"""Disks as DOS made them, with a geometry, backed up."""

from __future__ import annotations

import struct
from pathlib import Path

from fsdrivers.partitions.chs import Geometry
from tests.programs import run
from tests.rebuild.machines import SmallMachine, back_up

SECTOR = 512
OLD = Geometry(4, 17)  # of a disk of 20 MB of 1986, with 614 cylinders
OLD_CYLINDERS = 614


def make_machine(
    directory: Path, *cylinders: int, geometry: Geometry = OLD, size: int = 0
) -> SmallMachine:
    """Back up a disk as DOS makes it: partitions of so many cylinders, the first with DOS."""
    track, cylinder = geometry.sectors, geometry.cylinder_sectors
    directory.mkdir(exist_ok=True)
    disk, volume = directory / "sda.img", directory / "volume"
    slots, start, volumes = b"", track, []
    for count in cylinders:
        end = (start // cylinder + count) * cylinder
        kind = 0x04 if end - start < 0x10000 else 0x06
        slots += struct.pack(
            "<B3sB3sII", 0 if slots else 0x80, geometry.encode(start), kind,
            geometry.encode(end - 1), start, end - start,
        )  # fmt: skip
        volumes.append((start, end - start))
        start = end
    with disk.open("wb") as stream:
        stream.truncate(size or start * SECTOR)
        stream.write(b"\xfa" * 440 + b"DOS!\0\0" + slots.ljust(64, b"\0") + b"\x55\xaa")
    for first, sectors in volumes:
        with volume.open("wb") as stream:
            stream.truncate(sectors * SECTOR)
        shape = f"{geometry.heads}/{geometry.sectors}"
        per_cluster = 4 if sectors < 250_000 else 32
        run("mkfs.fat", "-F", 16, "-g", shape, "-h", first, "-s", per_cluster, volume)
        (directory / "file").write_bytes(b"system" * 3000)
        for name in ("IO.SYS", "MSDOS.SYS") if first == track else ("DATA",):
            run("mcopy", "-i", volume, directory / "file", f"::/{name}")
        run("dd", f"if={volume}", f"of={disk}", "bs=512", f"seek={first}", "conv=notrunc")
    return back_up(directory, [disk])
