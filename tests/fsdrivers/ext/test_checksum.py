# SPDX-License-Identifier: Apache-2.0
"""Checksums and directory hashes, against known values and what e2fsprogs and Linux wrote."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext import checksum, htree
from fsdrivers.ext.format import journal as jbd2
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import HashVersion
from fsdrivers.ext.journal import open_journal
from fsdrivers.ext.metadata import group_checksum
from tests.fsdrivers.ext.volumes import (
    debugfs,
    make_image,
    mounted,
    open_image,
    paths_of,
    plain_tree,
)
from tests.programs import run

CHECK = b"123456789"
MIB = 1 << 20


def test_known_check_values() -> None:
    """The published check values, with the inversions ext4 leaves out put back."""
    assert checksum.crc32c(checksum.ONES, CHECK) ^ checksum.ONES == 0xE3069283
    assert checksum.python_crc32c(checksum.ONES, CHECK) ^ checksum.ONES == 0xE3069283
    assert checksum.crc32_be(checksum.ONES, CHECK) ^ checksum.ONES == 0xFC891918
    assert checksum.crc16(0xFFFF, CHECK) == 0x4B37


def test_pure_python_equals_the_extension_and_chains() -> None:
    """Any seed, any length, any split gives the same register."""
    chosen = random.Random(1)
    for length in (0, 1, 2, 3, 4, 5, 31, 256, 1000, 4096):
        data, seed = chosen.randbytes(length), chosen.getrandbits(32)
        value = checksum.crc32c(seed, data)
        cut = chosen.randrange(length + 1)

        assert checksum.python_crc32c(seed, data) == value
        assert checksum.crc32c(checksum.crc32c(seed, data[:cut]), data[cut:]) == value
        assert checksum.crc32c(seed, memoryview(data)) == value
        assert checksum.crc32_be(checksum.crc32_be(seed, data[:cut]), data[cut:]) == (
            checksum.crc32_be(seed, data)
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checksummed volume with an extent block, an index and an attribute block."""
    where = tmp_path_factory.mktemp("ext")
    path = make_image(where / "image", 32 * MIB, "-t", "ext4", "-b", 1024, "-O", "mmp,orphan_file")
    with mounted(path) as root:
        plain_tree(root)
        os.setxattr(root / "large", "user.value", b"v" * 500)
        for block in range(0, 40, 2):
            with open(root / "pieces", "r+b" if block else "wb") as file:
                file.seek(block * 4096)
                file.write(b"piece")
                os.fsync(file.fileno())
    return path


@pytest.mark.tools
@pytest.mark.root
def test_sealing_again_changes_no_byte(image: Path) -> None:
    """Every kind of checksummed structure of a real volume gets the checksum it has."""
    volume = open_image(image)
    metadata = volume.metadata
    seed, size = metadata.seed, volume.block_size
    assert seed is not None
    nodes = paths_of(volume)

    data = bytearray(volume.device.read(1024, 1024))
    checksum.seal_superblock(data)
    assert data == volume.device.read(1024, 1024)

    table = volume.device.read(metadata.geometry.descriptor_block(0) * size, size)
    for group, descriptor in enumerate(metadata.descriptors):
        raw = bytearray(table[group * 64 : group * 64 + 64])
        checksum.seal_group_descriptor(raw, group, seed=seed, uuid=metadata.superblock.uuid)
        assert raw == table[group * 64 : group * 64 + 64]
        bitmap = metadata.read_block(descriptor.inode_bitmap)
        bits = metadata.geometry.inodes_per_group
        if not descriptor.flags & 1:
            value = checksum.bitmap_checksum(seed, bitmap, bits)
            assert value == descriptor.inode_bitmap_checksum

    for node in nodes.values():
        record = bytearray(metadata.inode_bytes(node.number))
        kept = bytes(record)
        checksum.seal_inode(seed, node.number, record)
        assert record == kept

    _check_blocks(image, volume.metadata.geometry.block_size)


def _check_blocks(image: Path, size: int) -> None:
    """Seal again directory, index, extent, attribute, mmp and journal blocks."""
    volume = open_image(image)
    metadata, nodes = volume.metadata, paths_of(volume)
    assert metadata.seed is not None
    number = nodes[b"many"].number
    own = checksum.inode_seed(metadata.seed, number, metadata.inode(number).generation)
    blocks = [block for block, _ in volume.iter_directory_blocks(number)]
    for block in blocks:
        sealed, offset = bytearray(block), checksum.dx_count_offset(block)
        if offset is None:
            checksum.seal_directory_block(own, sealed)
        else:
            checksum.seal_dx(own, sealed, offset)
        assert sealed == block
    assert checksum.dx_count_offset(blocks[0]) == ext.DxRoot.SIZE

    pieces = nodes[b"pieces"].number
    inode = metadata.inode(pieces)
    root = ext.ExtentHeader.unpack(inode.block)
    assert root.depth == 1
    child = ext.ExtentIndex.unpack(inode.block, ext.ExtentHeader.SIZE).child
    block = metadata.read_block(child)
    sealed = bytearray(block)
    own = checksum.inode_seed(metadata.seed, pieces, inode.generation)
    slots = ext.ExtentHeader.unpack(block).max_entries
    checksum.seal_extent_block(own, sealed, slots)
    assert sealed == block

    at = metadata.inode(nodes[b"large"].number).xattr_block
    block = metadata.read_block(at)
    sealed = bytearray(block)
    checksum.seal_xattr_block(metadata.seed, at, sealed)
    assert sealed == block

    position = metadata.superblock.mmp_block * size
    data = volume.device.read(position, ext.Mmp.SIZE)
    sealed = bytearray(data)
    checksum.seal_mmp(metadata.seed, sealed)
    assert sealed == data

    number = metadata.superblock.orphan_file_inode
    own = checksum.inode_seed(metadata.seed, number, metadata.inode(number).generation)
    start = ext.ExtentLeaf.unpack(metadata.inode(number).block, ext.ExtentHeader.SIZE).start
    block = metadata.read_block(start)
    sealed = bytearray(block)
    checksum.seal_orphan_block(own, start, sealed)
    assert sealed == block

    log = open_journal(metadata)
    assert log is not None
    data = log.read(0)[: jbd2.JournalSuperblock.SIZE]
    sealed = bytearray(data)
    checksum.seal_journal_superblock(sealed)
    assert sealed == data


@pytest.mark.tools
@pytest.mark.parametrize("features", ["^metadata_csum,uninit_bg", "64bit,^metadata_csum,uninit_bg"])
def test_descriptors_of_uninit_bg_have_crc16(tmp_path: Path, features: str) -> None:
    """Without metadata_csum the older checksum is the one mke2fs wrote."""
    path = make_image(tmp_path / "image", 32 * MIB, "-t", "ext4", "-b", 1024, "-O", features)
    metadata = open_image(path).metadata
    table = metadata.read_block(2)
    size = metadata.geometry.descriptor_size
    for group, descriptor in enumerate(metadata.descriptors):
        raw = bytearray(table[group * size : (group + 1) * size])
        kept = bytes(raw)
        checksum.seal_group_descriptor(raw, group, seed=None, uuid=metadata.superblock.uuid)
        assert raw == kept
        assert group_checksum(metadata.superblock, None, group, kept) == descriptor.checksum


SEED_TEXT = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.tools
@pytest.mark.parametrize(
    ("title", "version"),
    [
        ("legacy", HashVersion.LEGACY),
        ("half_md4", HashVersion.HALF_MD4),
        ("tea", HashVersion.TEA),
    ],
)
@pytest.mark.parametrize("seed_text", [SEED_TEXT, "00000000-0000-0000-0000-000000000000"])
def test_hashes_are_those_of_debugfs(
    tmp_path: Path, title: str, version: HashVersion, seed_text: str
) -> None:
    """Names of every length class, ASCII and not, hash as e2fsprogs hashes them."""
    chosen = random.Random(title)
    names = ["".join(chosen.choices("abcXYZ019._+", k=length)) for length in range(1, 70)]
    names += ["".join(chosen.choices("abcXYZ", k=length)) for length in (127, 128, 254, 255)]
    names += ["".join(chosen.choices("aäöü中", k=length)) for length in range(1, 70, 3)]
    path = make_image(tmp_path / "image", 4 * MIB)
    printed = debugfs(path, *(f"dx_hash -h {title} -s {seed_text} {name}" for name in names))
    pattern = re.compile(r"^Hash of (.*) is (0x[0-9a-f]+) \(minor (0x[0-9a-f]+)\)$", re.MULTILINE)
    expected = {name: (int(high, 16), int(low, 16)) for name, high, low in pattern.findall(printed)}
    seed = htree.unpack_seed(bytes.fromhex(seed_text.replace("-", "")))

    assert expected.keys() == set(names)
    for name, value in expected.items():
        assert htree.name_hash(name.encode(), version, seed) == value


@pytest.mark.tools
@pytest.mark.root
@pytest.mark.parametrize("is_unsigned", [False, True])
@pytest.mark.parametrize("kind", ["half_md4", "tea", "legacy"])
def test_signedness_is_that_of_the_kernel(tmp_path: Path, kind: str, is_unsigned: bool) -> None:
    """Non-ASCII names are where the superblock's flag says; the checker finds them in order."""
    from fsdrivers.ext.check import check_volume

    path = make_image(tmp_path / "image", 8 * MIB, "-t", "ext4", "-b", 1024)
    debugfs(
        path, f"set_super_value def_hash_version {kind}",
        f"set_super_value flags {2 if is_unsigned else 1}",
    )  # fmt: skip
    with mounted(path) as root:
        for index in range(200):
            (root / f"näme {index} ÿÿÿ").write_bytes(b"")

    assert "Hash" in run("debugfs", "-R", "htree /", path)
    assert check_volume(open_image(path).device) == []


def test_hash_bounds_and_versions() -> None:
    """Bit 0 is free for the index, the last hash is reserved, unknown versions are refused."""
    seed = (0, 0, 0, 0)
    for index in range(2000):
        high, _ = htree.name_hash(b"%d" % index, HashVersion.TEA, seed)
        assert high % 2 == 0
        assert high < htree.EOF_HASH
    assert htree.effective_version(1, is_unsigned=True) == HashVersion.HALF_MD4_UNSIGNED
    assert htree.effective_version(4, is_unsigned=True) == HashVersion.HALF_MD4_UNSIGNED
    with pytest.raises(UnsupportedError):
        htree.effective_version(9, is_unsigned=False)
    with pytest.raises(UnsupportedError):
        htree.name_hash(b"x", HashVersion.SIPHASH, seed)
