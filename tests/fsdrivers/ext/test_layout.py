# SPDX-License-Identifier: Apache-2.0
"""Geometry of new ext volumes, against mke2fs and at its thresholds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fsdrivers.errors import NoSpaceError, UnsupportedError
from fsdrivers.ext.geometry import Shape
from fsdrivers.ext.mkfs import minimum_size
from fsdrivers.ext.mkfs import shape as layout
from fsdrivers.ext.mkfs.parameters import parameters_of
from fsdrivers.ext.mkfs.shape import plan_geometry
from fsdrivers.ext.mkfs.sizes import parameters_for_size
from tests.fsdrivers.ext.mkfs_images import EXT3, EXT4, Drawing, assert_clean, small_blocks
from tests.fsdrivers.ext.volumes import make_image
from tests.programs import run

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
SHAPE = Shape(
    block_size=4096,
    blocks_count=262144,
    first_data_block=0,
    blocks_per_group=32768,
    inodes_per_group=8192,
    inode_size=256,
    descriptor_size=64,
    reserved_gdt_blocks=127,
    groups_per_flex=16,
    is_sparse=True,
)
SMALL_BLOCKS = replace(SHAPE, block_size=1024, first_data_block=1, blocks_per_group=8192)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (100 * MIB, ("-t", "ext4")),
        (300 * MIB, ("-t", "ext2", "-b", 1024)),
        (300 * MIB, ("-t", "ext3", "-b", 1024)),
        (20 * GIB, ("-t", "ext4")),
        (3 * GIB, ("-t", "ext4", "-i", 4096)),
        (1 * GIB, ("-t", "ext4", "-b", 1024, "-i", 1024)),
        (2000 * MIB, ("-t", "ext3", "-I", 128)),
        (500 * MIB, ("-t", "ext2", "-b", 2048, "-O", "^sparse_super,^resize_inode")),
        (64 * GIB, ("-t", "ext4", "-O", "^flex_bg")),
        (40 * GIB, ("-t", "ext4", "-G", 64)),
    ],
    ids=str,
)
def test_places_equal_those_of_mke2fs(
    tmp_path: Path, size: int, options: tuple[object, ...]
) -> None:
    """Bitmaps, inode tables, reserved descriptors and the journal are what mke2fs chooses."""
    text = run("dumpe2fs", make_image(tmp_path / "image", size, *options))

    def number(key: str) -> int:
        found = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

    shape = Shape(
        block_size=number("Block size"),
        blocks_count=number("Block count"),
        first_data_block=number("First block"),
        blocks_per_group=number("Blocks per group"),
        inodes_per_group=number("Inodes per group"),
        inode_size=number("Inode size"),
        descriptor_size=number("Group descriptor size") or 32,
        reserved_gdt_blocks=number("Reserved GDT blocks"),
        groups_per_flex=number("Flex block group size") or 1,
        is_sparse="sparse_super" in text,
    )
    geometry = plan_geometry(shape)

    assert [int(x) for x in re.findall(r"Block bitmap at (\d+)", text)] == list(
        geometry.block_bitmaps
    )
    assert [int(x) for x in re.findall(r"Inode bitmap at (\d+)", text)] == list(
        geometry.inode_bitmaps
    )
    assert [int(x) for x in re.findall(r"Inode table at (\d+)", text)] == list(
        geometry.inode_tables
    )
    assert shape.inodes_count == number("Inode count")
    if shape.reserved_gdt_blocks:
        assert shape.reserved_gdt_blocks == layout.reserved_gdt_blocks_for(
            shape.blocks_count,
            blocks_per_group=shape.blocks_per_group,
            block_size=shape.block_size,
            descriptor_size=shape.descriptor_size,
        )
    if "ext2" not in options:
        wanted = number("Total journal blocks")
        assert layout.default_journal_blocks(shape.blocks_count) == wanted


def test_backup_groups() -> None:
    """sparse_super keeps backups in groups 0, 1 and the powers of 3, 5 and 7."""
    shape = replace(SHAPE, blocks_count=32768 * 400)
    wanted = (0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343)

    assert layout.super_groups_of(shape) == wanted
    assert tuple(g for g in range(400) if shape.has_superblock(g)) == wanted
    everywhere = replace(shape, is_sparse=False)
    assert layout.super_groups_of(everywhere) == tuple(range(400))
    two = replace(shape, backup_groups=(1, 399))
    assert layout.super_groups_of(two) == (0, 1, 399)
    assert layout.super_groups_of(replace(SHAPE, blocks_count=30000)) == (0,)


def test_runs_cover_the_volume_once() -> None:
    """Fixed and free runs alternate and together are the whole volume."""
    for shape in (
        SHAPE,
        replace(SHAPE, blocks_count=32768 * 50 + 12345, inodes_per_group=32768),
        replace(SHAPE, groups_per_flex=1),
        replace(SMALL_BLOCKS, inodes_per_group=1024),
    ):
        geometry = plan_geometry(shape)
        runs = sorted([*geometry.fixed_runs, *geometry.iter_free_runs()])

        at = shape.first_data_block
        for start, count in runs:
            assert start == at
            at += count
        assert at == shape.blocks_count
        free = sum(count for _, count in geometry.iter_free_runs())
        assert free == geometry.usable_blocks
        within = geometry.fixed_runs_within(0, shape.blocks_count)
        assert within == list(geometry.fixed_runs)


def test_inode_tables_step_over_backups() -> None:
    """Tables so large that they reach the next group's backup go around it in one piece each."""
    shape = replace(SHAPE, inodes_per_group=32768)
    geometry = plan_geometry(shape)

    for table in geometry.inode_tables:
        end = table + shape.inode_table_blocks
        for group in geometry.super_groups:
            start = shape.group_start(group)
            assert end <= start or table >= sum(shape.head_of(group))


def test_descriptors_must_fit_a_group() -> None:
    """A descriptor table larger than a group needs meta_bg, which is not made."""
    with pytest.raises(UnsupportedError, match="descriptor table"):
        plan_geometry(replace(SMALL_BLOCKS, blocks_count=1 << 31))


@pytest.mark.parametrize(
    ("inodes", "groups", "wanted"),
    [(16, 1, 16), (17, 1, 32), (8192 * 8, 8, 8192), (8192 * 8 + 1, 8, 8208), (1, 100, 16)],
)
def test_inodes_per_group(inodes: int, groups: int, wanted: int) -> None:
    """Inodes fill whole blocks of the table and are never fewer than asked for."""
    found = layout.inodes_per_group_for(inodes, groups=groups, block_size=4096, inode_size=256)

    assert found == wanted
    with pytest.raises(NoSpaceError):
        layout.inodes_per_group_for(8 * 4096 + 1, groups=1, block_size=4096, inode_size=256)


def test_same_size_keeps_everything_recorded() -> None:
    """A volume of the recorded size has the recorded counts, odd as they may be."""
    recorded = parameters_of(EXT4 | {"reserved_gdt_blocks": 500, "reserved_blocks": 3})

    assert parameters_for_size(recorded, size=1 << 30, inodes=100) is recorded
    assert parameters_for_size(recorded, size=(1 << 30) + 4095, inodes=100) is recorded
    short_group = (1 << 30) + 100 * 4096  # too short to be a group of its own
    assert parameters_for_size(recorded, size=short_group, inodes=100) is recorded


def test_other_sizes_keep_the_ratios() -> None:
    """Inodes and reserved blocks scale with the volume, reserved descriptors are counted anew."""
    recorded = parameters_of(EXT4)
    doubled = parameters_for_size(recorded, size=2 << 30, inodes=100)
    tenth = parameters_for_size(recorded, size=100 * MIB, inodes=20_000)

    dense = {"blocks_count": 3072, "inodes_count": 12288, "inodes_per_group": 12288}
    grown = parameters_for_size(parameters_of(EXT4 | dense), size=500 * MIB, inodes=100)

    assert grown.inodes_per_group == 32768  # as many as a bitmap of one block counts
    assert doubled.total_inodes == 2 * 65536
    assert doubled.reserved_blocks == 26214
    assert doubled.reserved_gdt_blocks == 255
    assert tenth.total_inodes >= 20_000
    assert tenth.reserved_blocks == 1279


def test_three_tebibytes_are_planned() -> None:
    """A volume of 3 TiB has its descriptors, a journal as recorded and room for its files."""
    drawing = Drawing()
    number = drawing.file(2, b"huge")
    drawing.entries[-1].node.size = 2 * TIB
    plan = drawing.plan(EXT4 | {"journal_blocks": 262144}, 3 * TIB)

    assert plan.geometry.shape.groups_count == 24576
    assert plan.superblock.inodes_count == 24576 * 8192
    placed = plan.placements(number)
    assert sum(extent.length for extent in placed) == 2 * TIB
    assert len(placed) > 800  # a flex group's metadata every 2 GiB
    assert minimum_size(EXT4, drawing.entries) < 2.1 * TIB
    with pytest.raises(UnsupportedError, match="64bit"):
        drawing.plan(EXT3, 17 * TIB)


@pytest.mark.tools
@pytest.mark.parametrize("description", [EXT4, EXT3, small_blocks(EXT4)], ids=["4", "3", "4 1k"])
@pytest.mark.parametrize("size", [9 * MIB, 100 * MIB, 5 * GIB, 20 * GIB])
def test_sizes_from_small_to_large(tmp_path: Path, description: dict, size: int) -> None:  # type: ignore[type-arg]
    """Volumes far smaller and larger than the recorded one are clean and hold their files."""
    drawing = Drawing()
    number = drawing.file(2, b"file", b"x" * 2 * MIB)
    plan = drawing.plan(description, size)

    assert plan.size == size
    assert_clean(drawing.write(tmp_path / "image", plan))
    assert sum(extent.length for extent in plan.placements(number)) == 2 * MIB


def test_journal_shrinks_with_the_volume() -> None:
    """A journal too large for a small volume is made smaller, but never below 1024 blocks."""
    small = Drawing().plan(EXT4 | {"journal_blocks": 65536}, 200 * MIB)
    assert small.journal_blocks == 4096
    tight = Drawing().plan(EXT4, 8 * MIB)
    assert tight.journal_blocks == 1024
    kept = Drawing().plan(EXT4 | {"journal_blocks": 65536}, 1 << 30)
    assert kept.journal_blocks == 65536
    with pytest.raises(NoSpaceError):
        Drawing().plan(EXT4, 4 * MIB)
