# SPDX-License-Identifier: Apache-2.0
"""Every driver through the one suite of `tests.conformance.volume`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, cast

import pytest

from fsdrivers import open_volume
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.fat.volume import FatVolume
from fsdrivers.iso9660.volume import IsoVolume
from fsdrivers.volume import Extent, Plain, Volume
from tests.conformance.editing import EditingConformance
from tests.conformance.volume import ReadingConformance, Tree
from tests.fsdrivers.ext import volumes as ext_volumes
from tests.fsdrivers.fat.images import description_of, geometry_for
from tests.fsdrivers.ntfs import volumes as ntfs_volumes
from tests.programs import run

EXT_SIZE = 4 << 20
NTFS_SIZE = 8 << 20


class FatConformance(EditingConformance):
    """FAT: names in UTF-16, case ignored, no holes."""

    bits: ClassVar[int]
    clusters: ClassVar[int]
    ignores_case = True
    has_holes = False
    volatile = frozenset({"fsinfo"})
    longest_name = "ñ".encode() * 255

    def description(self) -> dict[str, Plain]:
        return description_of(geometry_for(self.bits, self.clusters))

    def copies_of(self, volume: Volume, unit: int) -> list[int]:
        geometry = cast(FatVolume, volume).geometry
        tables = range(geometry.fat_count)
        offset = unit - geometry.fat_position(0)
        if not 0 <= offset < geometry.fat_size:
            return [unit]
        return [geometry.fat_position(table) + offset for table in tables]


class TestFat12(FatConformance):
    type = "fat12"
    bits = 12
    clusters = 4000


class TestFat16(FatConformance):
    type = "fat16"
    bits = 16
    clusters = 6000


class TestFat32(FatConformance):
    type = "fat32"
    frame_size = 0
    bits = 32
    clusters = 6000  # fewer than the specification wants, as every driver accepts


@cache
def _ext_description(*options: str) -> dict[str, Plain]:
    with TemporaryDirectory() as directory:
        path = ext_volumes.make_image(Path(directory, "image"), EXT_SIZE, *options)
        return open_volume(ext_volumes.load_image(path)).describe()


@pytest.mark.tools
class ExtConformance(EditingConformance):
    """ext: any bytes as names; made first by mke2fs."""

    hidden = frozenset({b"lost+found"})
    options: ClassVar[tuple[str, ...]]

    def description(self) -> dict[str, Plain]:
        return _ext_description(*self.options)

    def size_of(self, description: dict[str, Plain]) -> int:
        return EXT_SIZE


class TestExt2(ExtConformance):
    type = "ext2"
    frame_size = 3 << 10
    options = ("-t", "ext2", "-b", "1024")


class TestExt3(ExtConformance):
    type = "ext3"
    frame_size = 3 << 10
    options = ("-t", "ext3", "-b", "1024", "-J", "size=1")


class TestExt4(ExtConformance):
    type = "ext4"
    frame_size = 3 << 10
    options = ("-t", "ext4", "-b", "1024", "-J", "size=1")


class TestExt4WithoutJournal(ExtConformance):
    type = "ext4"
    frame_size = 8 << 10
    options = ("-t", "ext4", "-O", "^has_journal,^metadata_csum")


class TestExt4Inline(ExtConformance):
    type = "ext4"
    frame_size = 8 << 10
    options = ("-t", "ext4", "-O", "^has_journal,inline_data,large_dir")


@cache
def _ntfs_description(*options: str) -> dict[str, Plain]:
    with TemporaryDirectory() as directory:
        path = ntfs_volumes.make_image(Path(directory, "image"), NTFS_SIZE, *options)
        with FileDevice.open(path) as device:
            return open_volume(device).describe()


@pytest.mark.tools
class NtfsConformance(EditingConformance):
    """NTFS: names in UTF-16, case ignored by a table of its own; made first by mkntfs."""

    type = "ntfs"
    frame_size = 0
    ignores_case = True
    longest_name = "ñ".encode() * 255
    options: ClassVar[tuple[str, ...]] = ()

    def description(self) -> dict[str, Plain]:
        return _ntfs_description(*self.options)

    def size_of(self, description: dict[str, Plain]) -> int:
        return NTFS_SIZE

    def is_plain(self, extent: Extent) -> bool:
        return extent.length > 1024  # else perhaps resident, and the place is that of its record


class TestNtfs(NtfsConformance):
    pass


class TestNtfsSmallClusters(NtfsConformance):
    options = ("-c", "512")


@cache
def _iso() -> tuple[bytes, Tree]:
    with TemporaryDirectory() as directory:
        root = Path(directory, "tree")
        deep = root.joinpath(*(f"level {level}" for level in range(10)))
        deep.mkdir(parents=True)
        for size in (0, 1, 2047, 2048, 2049, 70_001):
            (deep / f"a file of {size} bytes").write_bytes(bytes(range(251)) * (size // 251 + 1))
            with (deep / f"a file of {size} bytes").open("r+b") as file:
                file.truncate(size)
        (root / ("n" * 240)).write_bytes(b"long name")
        tree: Tree = {
            b"/" + str(path.relative_to(root)).encode(): (
                None if path.is_dir() else path.read_bytes()
            )
            for path in root.rglob("*")
        }
        image = Path(directory, "image.iso")
        run("genisoimage", "-quiet", "-R", "-J", "-o", image, root)
        return image.read_bytes(), tree


@pytest.mark.tools
class TestIso9660(ReadingConformance):
    """ISO 9660: only read; made by genisoimage."""

    type = "iso9660"
    frame_size = 17 * 2048
    hidden = frozenset({b"rr_moved"})

    counts_objects = False

    def populated(self) -> tuple[MemoryDevice, Tree]:
        data, tree = _iso()
        return MemoryDevice.of(data, 2048), tree

    def shows_same_names(self, volume: Volume) -> bool:
        return cast(IsoVolume, volume).namespace == "rockridge"
