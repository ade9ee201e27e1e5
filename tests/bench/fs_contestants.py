# SPDX-License-Identifier: Apache-2.0
"""Who fills and reads volumes beside rebuildkit, each with the commands its manual recommends.

A kind of run is one function below; it gives (name, cell) of everybody for one data set.  What is
made outside the measured time (the image file, a directory to write to) is made when the next
cell is asked for, so only one of them is on the disk at a time.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.contestants import Cell, loop_restore
from tests.bench.data import TAR_OPTIONS, DataSet, make_image
from tests.bench.fs_sources import FORMATS, Sources, dissect_python, ntfs_3g
from tests.bench.measure import quoted

OURS = "rebuildkit"
HERE = Path(__file__).parent
Cells = Iterator[tuple[str, Cell]]


class Place:
    """Where one data set is worked on."""

    def __init__(self, data: DataSet, work: Path) -> None:
        self.data = data
        self.sources = Sources(data)
        self.work = work
        self.mount = work / "mount"
        self.output = work / "output"

    def image(self, name: str) -> Path:
        """Return an empty image of the size of all."""
        path = self.work / name
        make_image(path, self.data.image_size)
        return path

    def emptied(self) -> Path:
        """Return an empty directory to write to."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir()
        return self.output

    def ours(self, *arguments: str | Path) -> tuple[str, dict[str, str]]:
        """Return our command, and the environment an installation has."""
        environment = {
            "PYTHONPYCACHEPREFIX": str(self.work.parent / "compiled"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        return quoted([sys.executable, "-m", "imagebuilder.cli", "fs", *arguments]), environment

    def populate(self, kind: str) -> Cell:
        """Return our cell that makes and fills a volume."""
        image = self.work / f"ours.{kind}"
        image.unlink(missing_ok=True)
        like = self.sources.empty(kind)
        script, environment = self.ours(
            "mkfs", image, "--like", like, "--from", self.data.directory
        )
        if kind == "ntfs":  # devices are left out and named, which has an exit code of its own
            script += " || [ $? = 3 ]"
        return Cell(script, self.data.directory, environment, made=image)

    def manifest(self, kind: str) -> Cell:
        """Return our cell that reads everything."""
        image = self.sources.full(kind)
        script, environment = self.ours("manifest", image)
        return Cell(f"{script} > {self.work}/manifest", image, environment)


def populate_ext4(place: Place) -> Cells:
    """Making an ext4 volume and filling it, until it is on the disk."""
    data, mount = place.data, place.mount
    yield OURS, place.populate("ext4")
    image = place.image("mke2fs")
    script = f"mke2fs -q -F -t ext4 -d {data.directory} {image}; sync {image}"
    yield "mke2fs -d", Cell(script, data.directory, made=image)
    image = place.image("tar")
    inner = f"tar -C {mount} {' '.join(TAR_OPTIONS)} -xpf {data.tar}"
    yield "mke2fs, mount, tar x", Cell(loop_restore(image, mount, inner), data.tar, made=image)
    clone = place.sources.partclone()
    image = place.image("partclone")
    script = f"partclone.ext4 -q -r -C -L {place.work}/log -s {clone} -O {image}; sync {image}"
    yield "partclone.ext4 -r", Cell(script, clone, made=image)


def populate_fat32(place: Place) -> Cells:
    """Making a FAT32 volume and filling it, until it is on the disk."""
    directory = place.data.directory
    yield OURS, place.populate("fat32")
    image = place.image("mcopy")
    script = (
        f"{FORMATS['fat32']} {image}; "
        f"MTOOLS_SKIP_CHECK=1 mcopy -s -Q -i {image} {directory}/* ::/; sync {image}"
    )
    yield "mkfs.fat, mcopy -s", Cell(script, directory, made=image)


def populate_ntfs(place: Place) -> Cells:
    """Making an NTFS volume and filling it, until it is on the disk."""
    data, mount = place.data, place.mount
    yield OURS, place.populate("ntfs")
    wim = place.sources.wim()
    image = place.image("wim")
    script = f"{FORMATS['ntfs']} {image}; wimapply {wim} 1 {image}; sync {image}"
    yield "mkntfs, wimapply", Cell(script, wim, made=image)
    image = place.image("tar")
    inner = f"tar -C {mount} -xpf {data.tar}"
    script = f"{FORMATS['ntfs']} {image}; {ntfs_3g(image, mount, inner)}; sync {image}"
    yield "mkntfs, ntfs-3g, tar x", Cell(script, data.tar, made=image)
    clone = place.sources.ntfsclone()
    image = place.work / "ntfsclone"
    script = f"ntfsclone -q -r -O {image} {clone}; sync {image}"
    yield "ntfsclone -r", Cell(script, clone, made=image)


def read_ext4(place: Place) -> Cells:
    """Reading an ext4 volume: a hash of every file."""
    image = place.sources.full("ext4")
    yield OURS, place.manifest("ext4")
    output = place.emptied()
    rdump = f"debugfs -R 'rdump / {output}' {image} 2>/dev/null; {_hash_all(output)}"
    yield "debugfs rdump, sha256sum", Cell(rdump, image)
    yield "tsk_recover, sha256sum", _recover(place, image)
    yield from _dissect(place, "ext4", image)
    yield from _plain(place)


def read_ntfs(place: Place) -> Cells:
    """Reading an NTFS volume: a hash of every file."""
    image = place.sources.full("ntfs")
    yield OURS, place.manifest("ntfs")
    script = ntfs_3g(image, place.mount, _hash_all(place.mount), ",ro")
    yield "ntfs-3g, sha256sum", Cell(script, image)
    yield "tsk_recover, sha256sum", _recover(place, image)
    yield from _dissect(place, "ntfs", image)
    yield from _plain(place)


def _recover(place: Place, image: Path) -> Cell:
    output = place.emptied()
    return Cell(f"tsk_recover -a {image} {output} >/dev/null; {_hash_all(output)}", image)


def _dissect(place: Place, kind: str, image: Path) -> Cells:
    python = dissect_python(place.work.parent)
    yield "dissect", Cell(f"{python} {HERE / 'read_dissect.py'} {kind} {image} >/dev/null", image)


def _plain(place: Place) -> Cells:
    directory = place.data.directory
    script = f"{sys.executable} {HERE / 'read_plain.py'} {directory} >/dev/null"
    yield "no volume: plain files, hashlib", Cell(script, directory)


def _hash_all(directory: Path) -> str:
    return f"find {directory} -xdev -type f -print0 | xargs -0 -r sha256sum >/dev/null"


KINDS: dict[str, tuple[str, str, Callable[[Place], Cells]]] = {
    "populate-ext4": ("Make and fill ext4, flushed", "SML", populate_ext4),
    "populate-fat32": ("Make and fill FAT32, flushed", "ML", populate_fat32),
    "populate-ntfs": ("Make and fill NTFS, flushed", "SML", populate_ntfs),
    "read-ext4": ("Hash all files of ext4", "SML", read_ext4),
    "read-ntfs": ("Hash all files of NTFS", "SML", read_ntfs),
}
