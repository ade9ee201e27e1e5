# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench million`: how much memory a volume of a million files takes to make.

The names, sizes and times are those of a directory with that many small files, without there
being one: every file's content is read from the same one.  All else is what `fs mkfs --from` does.
Each volume is made by a process of its own, whose peak is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

from backup.shared.collector import paused_collector
from fsdrivers import driver_of, open_volume
from fsdrivers.device import FileDevice
from imagebuilder.cli.fs.populate import write_volume
from imagebuilder.cli.fs.source import HostEntries, HostTree
from imagebuilder.cli.fs.walk import FACTS, ROOT, Found
from tests.bench.data import TIME_S, make_image

FILES_EACH = 1000  # in a directory
SIZE = 700  # bytes of a file
MIB = 1 << 20
IMAGE_SIZE = 3 << 30
# Blocks of 1 KiB, so that a million of files are a gibibyte of content.
MAKERS = {
    "ext4": ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "1100000"],
    "fat32": ["mkfs.fat", "-F", "32", "-s", "2"],
    "ntfs": ["mkntfs", "-q", "-Q", "-F", "-c", "1024"],
}
LIMITS_MIB = {"ext4": 1024, "fat32": 1024, "ntfs": 1536}


class ManyFiles(HostTree):
    """A directory as it would be."""

    def __init__(self, source: Path, kind: str, count: int) -> None:
        """Make up `count` files with the content of `source`."""
        self._source = os.fsencode(source)
        found, number = Found(), ROOT
        now = TIME_S * 10**9
        times = (now, now, now)
        mode = stat.S_IFDIR | 0o755

        def add(parent: int, name: bytes, mode: int, size: int) -> int:
            nonlocal number
            if size:
                found.files.append(len(found.names))
            found.names.append(name)
            found.facts += FACTS.pack(parent, number, mode, 0, 0, 1, size, *times)
            number += 1
            return number - 1

        directory = add(ROOT, b"", mode, 0)
        for index in range(count):
            if index % FILES_EACH == 0:
                directory = add(ROOT, b"directory-%04d" % (index // FILES_EACH), mode, 0)
            add(directory, b"a file of many %07d.text" % index, stat.S_IFREG | 0o644, SIZE)
        self.entries = HostEntries([found], driver_of(kind))
        self.regions, self.problems = {}, []
        self.list_files()

    def path(self, rank: int) -> bytes:
        """Return the path of the only file there is."""
        return self._source


def run(args: argparse.Namespace) -> int:
    """Make each kind of volume and print what it took; 1 if one took too much."""
    code = 0
    for kind in args.types or MAKERS:
        peak, wall_s = make(kind, args.files, args.scratch)
        peak_mib, limit = peak >> 20, LIMITS_MIB[kind]
        verdict = "yes" if peak_mib <= limit else "**no**"
        code = code or int(peak_mib > limit)
        print(
            f"| {kind} | {args.files:,} | {peak_mib} MiB | {wall_s:.0f} s "
            f"| {limit} MiB | {verdict} |",
            flush=True,
        )
    return code


def make(kind: str, count: int, scratch: Path) -> tuple[int, float]:
    """Make a volume of `count` files in a process of its own; return its peak of memory in bytes
    and the seconds it took."""
    command = [sys.executable, "-m", "tests.bench.million", kind, str(count), str(scratch)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    made = json.loads(done.stdout)
    return made["peak"], made["wall_s"]


def _peak() -> int:
    """Return the largest memory this process had, in bytes.

    Not that of getrusage: a child starts there with what its parent had.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _make(kind: str, count: int, scratch: Path) -> None:
    """Make one volume in this process, and print as JSON what it took."""
    image, source = scratch / f"million.{kind}", scratch / "million.source"
    make_image(image, IMAGE_SIZE)
    source.write_bytes(bytes(range(100)) * (SIZE // 100))
    try:
        subprocess.run([*MAKERS[kind], str(image)], check=True, capture_output=True)
        with FileDevice.open(image) as device:
            description = open_volume(device).describe()
        make_image(image, IMAGE_SIZE)
        started = time.perf_counter()
        with (
            paused_collector(),
            FileDevice.open(image, writable=True, direct=True) as device,
        ):
            tree = ManyFiles(source, kind, count)
            driver = driver_of(kind)
            layout = driver.plan_volume(
                description,
                size=device.size,
                sector_size=device.sector_size,
                entries=tree.entries,
                order=tree.order,
                is_blank=True,
            )
            resident = driver.with_streams(layout)
            write_volume(tree, layout, device, resident, is_blank=True)
        print(json.dumps({"peak": _peak(), "wall_s": time.perf_counter() - started}))
    finally:
        image.unlink(missing_ok=True)
        source.unlink(missing_ok=True)


if __name__ == "__main__":
    _make(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
