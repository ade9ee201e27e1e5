# SPDX-License-Identifier: Apache-2.0
"""A PC with a BIOS and one IDE disk, started to hear what its boot record leads to."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from fsdrivers.partitions.chs import MOST_CYLINDERS, Geometry

SECTOR = 512
GEOMETRY = Geometry(16, 63)
START_TIMEOUT_S = 60.0
SILENCE = "NOTHING"


def assembled(source: Path, *options: str) -> bytes:
    """Return a source for the PC's first instructions as machine code."""
    with tempfile.TemporaryDirectory() as directory:
        made, code = Path(directory, "code.o"), Path(directory, "code.bin")
        for command in (
            ("as", "--32", *options, source, "-o", made),
            ("objcopy", "-O", "binary", "-j", ".text", made, code),
        ):
            subprocess.run(command, check=True, capture_output=True)
        return code.read_bytes()


def start(
    path: Path,
    geometry: Geometry | None = GEOMETRY,
    *,
    port: str = "-debugcon",
    memory_mib: int = 16,
    timeout_s: float = START_TIMEOUT_S,
) -> str:
    """Start the disk; return what its system said on `port` before the machine ended.

    A system that does not end the machine in time said `SILENCE`, and then what it said at last.
    Nothing is written to the disk.  The geometry is pinned, by default to what an IDE disk of this
    size has, as a BIOS of the time sees it; with None QEMU guesses one from the partition table, as
    firmware does that follows it.
    """
    shape = ""
    if geometry is not None:
        track = geometry.cylinder_sectors
        cylinders = min(MOST_CYLINDERS, max(2, path.stat().st_size // SECTOR // track))
        shape = f",cyls={cylinders},heads={geometry.heads},secs={geometry.sectors}"
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        command = [
            "qemu-system-x86_64",
            "-machine",
            "pc",
            "-accel",
            "tcg",
            "-m",
            str(memory_mib),
            "-nodefaults",
            "-display",
            "none",
            "-vga",
            "std",
            "-no-reboot",
            "-boot",
            "c",
            "-drive",
            f"file={path},format=raw,if=none,id=disk,snapshot=on",
            "-device",
            f"ide-hd,drive=disk{shape}",
            port,
            f"file:{log}",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
        ]
        try:
            subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return f"{SILENCE} {log.read_text(errors='replace')[-300:]}".strip()
        return log.read_text(errors="replace").strip()
