# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs fix-dos`: make a disk with DOS or Windows 9x start where it is now.

Brings the system files to the places where the boot sector looks for them, moving whatever lies
there, tells the boot sector which sector of the disk it is, marks the partition active unless
another is, and says what it did.  The geometry changes only when asked: `auto` is what a BIOS gives
a disk of this size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsdrivers.device import Device, FileDevice
from fsdrivers.errors import NotFoundError
from fsdrivers.volume import Kind, SystemFiles
from imagebuilder.cli.commands import option
from imagebuilder.cli.common import UsageError, print_json
from imagebuilder.cli.fs.open import Image
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from fsdrivers.fat.edit.editor import FatEditor
    from fsdrivers.partitions import PartitionTable
    from fsdrivers.partitions.chs import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class FixDos(Image):
    partition: int | None = option(
        "-p --partition N", "partition (default: the active one); 0: the whole disk", type=int
    )
    geometry: str | None = option(
        "--geometry HEADS/SECTORS", "geometry that the BIOS uses; auto: by the disk's size"
    )


def fix_dos(options: FixDos) -> int:
    """Bring the files of DOS to where its boot sector looks. Writes to IMAGE."""
    from fsdrivers.fat.edit.editor import open_editor
    from fsdrivers.fat.edit.relocate import fix_place, fix_system_files
    from fsdrivers.partitions import open_partition, read_table

    with FileDevice.open(options.image, writable=True) as device:
        table = read_table(device)
        number = _partition_of(options, table)
        geometry = _geometry_of(options, device)
        window = open_partition(device, table, number)
        editor = open_editor(window)
        try:
            system = _system_of(editor, options.image)
            done = fix_system_files(editor, system)
            hidden = window.position // table.sector_size
            if number or geometry is not None:
                done += fix_place(editor, hidden_sectors=hidden, geometry=geometry)
        finally:
            editor.close()
        if number:
            done += _fix_table(device, table, number, geometry)
        device.flush()
    if options.json:
        print_json({"image": options.image, "partition": number, "done": done})
    else:
        for line in done or ["Everything is in its place."]:
            print(line)
    return ExitCode.DONE


def _partition_of(options: FixDos, table: PartitionTable) -> int:
    """Return the number of the partition to work on; 0 for the whole disk.

    Raises:
        UsageError: there are several, and not one is active.
    """
    if options.partition is not None:
        return options.partition
    solid = [entry for entry in table.entries if not entry.is_extended]
    if len(solid) <= 1:
        return solid[0].number if solid else 0
    for entry in solid:
        if entry.is_active:
            return entry.number
    numbers = ", ".join(str(entry.number) for entry in solid)
    raise UsageError(
        f"{options.image} has no active partition; choose one with --partition: {numbers}"
    )


def _geometry_of(options: FixDos, device: Device) -> Geometry | None:
    """Return the geometry asked for, None to leave it.

    Raises:
        UsageError: it is not a geometry.
    """
    from fsdrivers.partitions.chs import MAXIMUM_HEADS, MAXIMUM_SECTORS, Geometry, bios_geometry

    if options.geometry is None:
        return None
    if options.geometry == "auto":
        return bios_geometry(device.size)
    match = re.fullmatch(r"(\d{1,3})/(\d{1,2})", options.geometry)
    geometry = Geometry(int(match[1]), int(match[2])) if match else Geometry(0, 0)
    if not 0 < geometry.heads <= MAXIMUM_HEADS or not 0 < geometry.sectors <= MAXIMUM_SECTORS:
        raise UsageError(
            f"geometry must be HEADS/SECTORS, for example 16/63, not {options.geometry}"
        )
    return geometry


def _system_of(editor: FatEditor, image: str) -> SystemFiles:
    """Return where the files of the system must be.

    Raises:
        NotFoundError: it has no DOS.
    """
    from rebuild.fixups.dos import find_system_files

    names = [
        (name, number)
        for name, number in editor.names(editor.root)
        if editor.node(number).kind is Kind.FILE
    ]
    system = find_system_files(names)
    if system is None:
        raise NotFoundError(
            f"{image}: IO.SYS, IBMBIO.COM and KERNEL.SYS are missing in the root directory"
        )
    return system


def _fix_table(
    device: Device, table: PartitionTable, number: int, geometry: Geometry | None
) -> list[str]:
    """Mark the partition active unless another is, make CHS fields anew; return what changed."""
    from fsdrivers.partitions import plan_table
    from fsdrivers.partitions.format import ACTIVE, BOOT_CODE_SIZE

    if table.scheme != "mbr":
        return []
    done, description = [], dict(table.description)
    mbr = description["mbr"]
    assert isinstance(mbr, dict), "a table of this scheme has an MBR"
    slots = mbr["entries"]
    if not any(entry.is_active for entry in table.entries) and isinstance(slots, list):
        entries = [dict(slot) if isinstance(slot, dict) else slot for slot in slots]
        slot = entries[number - 1] if number <= len(entries) else None
        if isinstance(slot, dict):
            slot["status"] = ACTIVE
            description["mbr"] = {**mbr, "entries": entries}
            done.append(f"Partition {number} is active.")
    before = device.read(0, device.sector_size)
    for position, data in plan_table(
        description,
        disk_size=device.size,
        sector_size=device.sector_size,
        boot_code=before[:BOOT_CODE_SIZE],
        bios_geometry=geometry,
    ):
        if data != device.read(position, len(data)):
            device.write(position, data)
    if geometry is not None and before != device.read(0, device.sector_size):
        done.append(
            f"The partition table counts {geometry.heads} heads and {geometry.sectors} sectors."
        )
    return done
