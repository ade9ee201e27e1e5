# SPDX-License-Identifier: Apache-2.0
"""Records of ext and its journal, and the geometry a superblock describes."""

from __future__ import annotations

import inspect
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ext.format import journal as jbd2
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import Compat, Incompat, RoCompat
from fsdrivers.ext.geometry import check_features, geometry_of, is_power
from fsdrivers.record import Record
from tests.fsdrivers.ext.volumes import make_image

RECORDS = [
    kind
    for module in (ext, jbd2)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Record) and kind is not Record and kind.__module__ == module.__name__
]


def superblock(**fields: object) -> ext.Superblock:
    """Return the superblock of an 8 GiB ext4 volume, with `fields` changed."""
    blank = ext.Superblock.unpack(bytes(ext.Superblock.SIZE))
    made = replace(
        blank,
        magic=ext.SUPERBLOCK_MAGIC,
        revision=1,
        inodes_count=64 * 8192,
        blocks_count_low=64 * 32768,
        log_block_size=2,
        log_cluster_size=2,
        blocks_per_group=32768,
        clusters_per_group=32768,
        inodes_per_group=8192,
        first_inode=11,
        inode_size=256,
        descriptor_size=64,
        feature_incompat=int(Incompat.EXTENTS | Incompat.BIT64 | Incompat.FILETYPE),
        feature_ro_compat=int(RoCompat.SPARSE_SUPER | RoCompat.METADATA_CSUM),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_both_codecs_of_a_record_agree(kind: type[Record]) -> None:
    """construct and struct read random bytes alike and write them back unchanged."""
    chosen = random.Random(kind.__name__)
    for _ in range(3):
        data = chosen.randbytes(kind.SIZE)
        made = kind.unpack(data)
        fields = kind.LAYOUT.parse(data)

        assert {name: fields[name] for name in kind.OFFSETS} == {
            name: getattr(made, name) for name in kind.OFFSETS
        }
        assert made.pack() == data == kind.LAYOUT.build(fields)


def test_documented_offsets_of_fields() -> None:
    """Fields far into their records are where the specification numbers them."""
    superblock_at, inode_at = ext.Superblock.OFFSETS, ext.InodeExtended.OFFSETS

    assert superblock_at["uuid"] == 0x68
    assert superblock_at["hash_seed"] == 0xEC
    assert superblock_at["mmp_block"] == 0x168
    assert superblock_at["mount_options"] == 0x200
    assert superblock_at["checksum_seed"] == 0x270
    assert superblock_at["orphan_file_inode"] == 0x280
    assert superblock_at["checksum"] == 0x3FC
    assert (inode_at["block"], inode_at["checksum_low"]) == (0x28, 0x7C)
    assert (inode_at["extra_isize"], inode_at["project"]) == (0x80, 0x9C)
    assert jbd2.JournalSuperblock.OFFSETS["checksum"] == 0xFC


@pytest.mark.tools
def test_superblock_of_mke2fs_survives_unpack_and_pack(tmp_path: Path) -> None:
    """No byte of a real superblock is lost."""
    image = make_image(tmp_path / "image", 4 << 20, "-t", "ext4", "-L", "label")
    data = image.read_bytes()[1024:2048]

    assert ext.Superblock.unpack(data).pack() == data


def test_entry_lengths_of_large_blocks_need_seventeen_bits() -> None:
    """Every length a 64 KiB block can hold comes back from its 16 bits."""
    for length in range(12, 65537, 4):
        raw = ext.pack_entry_length(length, 65536)
        assert raw <= 0xFFFF
        assert ext.unpack_entry_length(raw, 65536) == length
    assert ext.unpack_entry_length(0, 65536) == 65536
    assert ext.pack_entry_length(4096, 4096) == ext.unpack_entry_length(4096, 4096) == 4096


def test_descriptor_joins_its_halves() -> None:
    """High halves count with 64bit and only then."""
    data = bytearray(64)
    data[8:12] = (0x11223344).to_bytes(4, "little")
    data[0x28:0x2C] = (0x55).to_bytes(4, "little")

    assert ext.GroupDescriptor64.unpack(bytes(data)).inode_table == 0x55_1122_3344
    assert ext.GroupDescriptor.unpack(bytes(data)).inode_table == 0x1122_3344


def test_geometry_of_a_common_volume() -> None:
    """Derived numbers are those mke2fs prints for 8 GiB."""
    geometry = geometry_of(superblock())

    assert geometry.groups_count == 64
    assert geometry.size == 8 << 30
    assert geometry.inode_table_blocks == 512
    assert geometry.descriptor_blocks_count == 1
    assert [group for group in range(64) if geometry.has_superblock(group)] == [
        0, 1, 3, 5, 7, 9, 25, 27, 49,
    ]  # fmt: skip
    assert geometry.descriptor_block(0) == 1
    assert geometry.group_start(3) == 3 * 32768


def test_geometry_of_small_blocks_and_short_last_group() -> None:
    """1 KiB blocks start at block 1; the last group may be short."""
    made = superblock(
        log_block_size=0,
        log_cluster_size=0,
        first_data_block=1,
        blocks_per_group=8192,
        clusters_per_group=8192,
        blocks_count_low=8192 * 3 + 501,
        inodes_per_group=128,
        inodes_count=512,
    )
    geometry = geometry_of(made)

    assert geometry.groups_count == 4
    assert geometry.group_blocks(3) == 500
    assert geometry.group_start(1) == 8193
    assert geometry.superblock_block == 1
    assert geometry.descriptor_block(0) == 2
    assert geometry.group_of(8192) == 0
    assert geometry.group_of(8193) == 1


def test_geometry_of_meta_block_groups() -> None:
    """With meta_bg a block's descriptors are in its first, second and last group."""
    made = superblock(
        feature_incompat=int(Incompat.META_BG | Incompat.BIT64),
        blocks_count_low=200 * 32768,
        inodes_count=200 * 8192,
    )
    geometry = geometry_of(made)

    assert geometry.descriptor_blocks_count == 4
    assert geometry.descriptor_block(0) == 1
    assert geometry.descriptor_block(1) == 64 * 32768
    assert geometry.descriptor_block(2) == 128 * 32768
    assert geometry.meta_descriptor_groups(1) == [64, 65, 127]
    assert geometry.meta_descriptor_groups(3) == [192, 193]
    assert geometry.meta_descriptor_block(81) == 81 * 32768 + 1


def test_sparse_super2_names_its_backups() -> None:
    """Only the groups named in the superblock have copies."""
    made = superblock(feature_compat=int(Compat.SPARSE_SUPER2), backup_group_0=1, backup_group_1=63)
    geometry = geometry_of(made)

    assert [group for group in range(64) if geometry.has_superblock(group)] == [0, 1, 63]


def test_powers() -> None:
    """Powers of a base, 1 included, 0 not."""
    assert [value for value in range(130) if is_power(value, 5)] == [1, 5, 25, 125]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("magic", 0xEF54),
        ("log_block_size", 7),
        ("blocks_per_group", 0),
        ("blocks_per_group", 32769),
        ("blocks_per_group", 65536),
        ("blocks_count_low", 0),
        ("first_data_block", 1),
        ("first_data_block", 2),
        ("inodes_per_group", 0),
        ("inodes_per_group", 40000),
        ("inodes_count", 64 * 8192 + 1),
        ("inode_size", 64),
        ("inode_size", 300),
        ("inode_size", 8192),
        ("descriptor_size", 32),
        ("descriptor_size", 96),
        ("descriptor_size", 2048),
        ("first_inode", 10),
        ("first_inode", 0xFFFFFFFF),
        ("blocks_count_high", 0xFFFFFFFF),
    ],
)
def test_superblock_fields_out_of_bounds_are_corrupt(field: str, value: int) -> None:
    """Each field that geometry rests on is checked, and the position named."""
    with pytest.raises(CorruptError) as caught:
        geometry_of(superblock(**{field: value}))

    assert caught.value.position is not None
    assert 1024 <= caught.value.position < 2048


def test_unsupported_features_are_named() -> None:
    """Known ones by name, unknown ones by their bits."""
    with pytest.raises(UnsupportedError, match="dirdata"):
        check_features(superblock(feature_incompat=int(Incompat.DIRDATA)))
    with pytest.raises(UnsupportedError, match="has_snapshot"):
        check_features(superblock(feature_ro_compat=int(RoCompat.HAS_SNAPSHOT)))
    with pytest.raises(UnsupportedError, match="0x80000000"):
        check_features(superblock(feature_incompat=0x80000000))
    with pytest.raises(UnsupportedError, match="revision 2"):
        check_features(superblock(revision=2))
    check_features(superblock(feature_ro_compat=0x80000000 | int(RoCompat.QUOTA)))
