# SPDX-License-Identifier: Apache-2.0
"""The cpio archive of the boot environment."""

from __future__ import annotations

import stat

import pytest
import zstandard

from imagebuilder.environment.initramfs import DEVICE_NODES, Archive, compress
from tests.imagebuilder.environment.newc import read_archive


def test_small_archive_is_the_documented_bytes() -> None:
    """One file in one directory gives the header, name and padding of the newc format."""
    archive = Archive(modified_s=0x11223344)
    archive.add_file("a/b", b"hello", is_executable=True)

    packed = archive.pack()

    directory = b"070701" + b"00000001" + b"000041ED" + b"00000000" * 2 + b"00000002"
    directory += b"11223344" + b"00000000" * 5 + b"00000002" + b"00000000" + b"a\0"
    assert packed[:112] == directory
    file = b"070701" + b"00000002" + b"000081ED" + b"00000000" * 2 + b"00000001" + b"11223344"
    file += (
        b"00000005" + b"00000000" * 4 + b"00000004" + b"00000000" + b"a/b\0\0\0" + b"hello\0\0\0"
    )
    assert packed[112 : 112 + len(file)] == file
    assert len(packed) % 512 == 0
    assert packed[112 + len(file) :].startswith(b"070701")


def test_every_kind_of_member_survives() -> None:
    """Files, directories, links and nodes are read back as they were added."""
    archive = Archive()
    archive.add_base()
    archive.add_file("init", b"#!x\n", is_executable=True)
    archive.add_file("usr/lib/x.pyc", bytes(range(256)))
    archive.add_link("bin", "usr/bin")

    found = {member.path: member for member in read_archive(archive.pack())}

    assert found["init"].mode == stat.S_IFREG | 0o755
    assert found["usr/lib/x.pyc"].data == bytes(range(256))
    assert found["usr/lib"].mode == stat.S_IFDIR | 0o755
    assert (found["bin"].mode, found["bin"].data) == (stat.S_IFLNK | 0o777, b"usr/bin")
    for path, device in DEVICE_NODES.items():
        assert (stat.S_IFMT(found[path].mode), found[path].device) == (stat.S_IFCHR, device)


def test_parents_come_before_children() -> None:
    """The kernel makes no directories by itself: each comes before what lies in it."""
    archive = Archive()
    for path in ("z/y/x", "a.b/c", "a/b", "a-b/c"):
        archive.add_file(path, b"")
    seen: set[str] = {""}

    for member in read_archive(archive.pack()):
        assert member.path.rpartition("/")[0] in seen
        seen.add(member.path)


def test_order_of_adding_does_not_matter() -> None:
    """Equal content gives equal bytes."""
    one, two = Archive(), Archive()
    one.add_file("a", b"1")
    one.add_file("b/c", b"2")
    two.add_file("b/c", b"2")
    two.add_file("a", b"1")

    assert one.pack() == two.pack()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
def test_contents_of_any_length_are_aligned(size: int) -> None:
    """Every header starts at a multiple of four bytes."""
    archive = Archive()
    archive.add_file("abc"[: size % 3 + 1], b"x" * size)
    archive.add_file("next", b"y")

    assert [len(member.data) for member in read_archive(archive.pack())] == [size, 1]


def test_compressed_forms_unpack_to_the_archive() -> None:
    """A zstd frame of any level holds the archive."""
    packed = Archive().pack()

    assert zstandard.decompress(compress(packed, "zstd-fast")) == packed
    assert zstandard.decompress(compress(packed, "zstd")) == packed
