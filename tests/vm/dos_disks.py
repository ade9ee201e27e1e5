# SPDX-License-Identifier: Apache-2.0
"""Small disks with a DOS of our own that demands what MS-DOS demands, and starting them in QEMU.

`dos_boot.s` has the boot sectors.  Partition 1 is a small ext4, so that on a larger disk the
DOS behind it moves; partition 2 is active, with the FAT.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from functools import cache
from pathlib import Path

from fsdrivers.device import FileDevice, Window
from fsdrivers.fat.edit import open_editor
from fsdrivers.fat.edit.editor import FatEditor
from fsdrivers.fat.edit.relocate import fix_system_files
from fsdrivers.volume import Kind, Node
from rebuild.fixups.dos import find_system_files
from tests.vm.old_pc import GEOMETRY, SECTOR, assembled

SOURCE = Path(__file__).with_name("dos_boot.s")
MIB = 1 << 20
EXT_START, EXT_SECTORS = 63, 8 * MIB // SECTOR
DOS_START = EXT_START + EXT_SECTORS
DOS_SECTORS = {12: 4 * MIB // SECTOR, 16: 16 * MIB // SECTOR, 32: 72 * MIB // SECTOR}
PARTITION_TYPES = {12: 0x01, 16: 0x06, 32: 0x0B}
BPB_END = {12: 62, 16: 62, 32: 90}
FILE = Node(0, Kind.FILE, flags=0x27)
STARTED = "DOS-STARTED"


@cache
def part_of_dos(part: int) -> bytes:
    """Return a part of `dos_boot.s` as machine code."""
    return assembled(SOURCE, "--defsym", f"PART={part}")


def system_file(code: bytes, size: int) -> bytes:
    """Return `size` bytes that begin with `code` and whose words add up to zero."""
    noise = random.Random(size).randbytes(size - len(code) - 2)
    body = code + noise
    total = sum(struct.unpack(f"<{len(body) // 2}H", body)) & 0xFFFF
    return body + struct.pack("<H", -total & 0xFFFF)


FILES = {
    b"COMMAND.COM": random.Random(1).randbytes(3000),
    b"a file with a long name.txt": b"long" * 400,
    b"CONFIG.SYS": b"FILES=20\r\n",
    b"MSDOS.SYS": system_file(b"", 3584),
    b"AUTOEXEC.BAT": b"@ECHO OFF\r\n",
    b"IO.SYS": system_file(part_of_dos(1), 6144),
}


def make_disk(path: Path, bits: int) -> None:
    """Make a disk whose DOS does not start: its files lie wherever they came to lie."""
    slots = b""
    for status, kind, start, sectors in (
        (0, 0x83, EXT_START, EXT_SECTORS),
        (0x80, PARTITION_TYPES[bits], DOS_START, DOS_SECTORS[bits]),
    ):
        first, last = GEOMETRY.encode(start), GEOMETRY.encode(start + sectors - 1)
        slots += struct.pack("<B3sB3sII", status, first, kind, last, start, sectors)
    mbr = part_of_dos(0).ljust(440, b"\0") + b"DOS!\0\0" + slots.ljust(64, b"\0") + b"\x55\xaa"
    with path.open("wb") as file:
        file.truncate((DOS_START + DOS_SECTORS[bits]) * SECTOR)
        file.write(mbr)
    ext = ("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-E", f"offset={EXT_START * SECTOR}")
    _tool(*ext, str(path), str(EXT_SECTORS // 2))
    _tool(
        "mkfs.fat",
        "-F",
        str(bits),
        "-R",
        "32" if bits == 32 else "1",
        "-a",
        "-n",
        "DOS",
        "-g",
        f"{GEOMETRY.heads}/{GEOMETRY.sectors}",
        "-h",
        str(DOS_START),
        "-s",
        {12: "8", 16: "1", 32: "2"}[bits],
        "--offset",
        str(DOS_START),
        str(path),
        str(DOS_SECTORS[bits] // 2),
    )
    editor, device = open_dos(path)
    aside = editor.create(1, b"TMP", Node(0, Kind.DIRECTORY)).number
    for name, data in FILES.items():
        number = editor.create(1, name, FILE).number
        for at in range(0, len(data), 1000):  # in turns, so that files lie in pieces
            editor.write(number, at, data[at : at + 1000])
            filler = editor.create(aside, b"F%d-%d.TMP" % (number, at), FILE)
            editor.write(filler.number, 0, b"x" * 700)
    editor.close()
    device.close()
    install_boot_sector(path, bits)


def install_boot_sector(path: Path, bits: int) -> None:
    """Put the code of our boot sector around the BPB."""
    code = part_of_dos(bits)
    with path.open("r+b") as file:
        for sector in (0, 6) if bits == 32 else (0,):
            file.seek((DOS_START + sector) * SECTOR)
            old = file.read(SECTOR)
            file.seek((DOS_START + sector) * SECTOR)
            file.write(code[:3] + old[3 : BPB_END[bits]] + code[BPB_END[bits] :])


def open_dos(path: Path) -> tuple[FatEditor, FileDevice]:
    """Open the DOS volume of a disk for changes; both are to be closed."""
    device = FileDevice.open(path, writable=True)
    entry = device.read(446 + 16, 16)
    start, sectors = struct.unpack("<II", entry[8:])
    return open_editor(Window(device, start * SECTOR, sectors * SECTOR)), device


def fix(path: Path) -> list[str]:
    """Bring the system files to their places; return what was done."""
    editor, device = open_dos(path)
    system = find_system_files(editor.names(1))
    assert system is not None
    done = fix_system_files(editor, system)
    editor.close()
    device.close()
    return done


def _tool(*command: str) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
