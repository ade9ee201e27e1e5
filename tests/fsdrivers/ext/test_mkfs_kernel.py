# SPDX-License-Identifier: Apache-2.0
"""Volumes written by the ext driver, mounted by Linux."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from fsdrivers.volume import Kind
from tests.fsdrivers.ext.mkfs_images import EXT4, Drawing, assert_clean, copy_volume, small_blocks
from tests.fsdrivers.ext.volumes import Seen, make_image, mounted, rich_tree, seen_by_kernel
from tests.programs import run

pytestmark = [pytest.mark.tools, pytest.mark.root]

MIB = 1 << 20
MADE = {
    "ext2": ("-t", "ext2"),
    "ext3 4k": ("-t", "ext3", "-b", 4096),
    "ext4 1k": ("-t", "ext4", "-b", 1024),
    "ext4 4k": ("-t", "ext4", "-b", 4096),
    "Debian 13": ("-t", "ext4", "-b", 4096, "-O", "orphan_file,metadata_csum_seed"),
    "uninit_bg, inode 128": ("-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-I", 128),
    "no flex_bg": ("-t", "ext4", "-b", 2048, "-O", "^flex_bg,^metadata_csum"),
    "meta_bg": ("-t", "ext4", "-b", 1024, "-g", 1024, "-O", "meta_bg,^resize_inode,^flex_bg"),
    "bigalloc": ("-t", "ext4", "-b", 4096, "-C", 32768, "-O", "bigalloc,meta_bg,^resize_inode"),
    "bigalloc 1k, ea_inode": ("-t", "ext4", "-b", 1024, "-C", 8192, "-O", "bigalloc,ea_inode,mmp"),
    "inline_data": ("-t", "ext4", "-b", 4096, "-O", "inline_data,ea_inode,large_dir"),
}


def seen_apart_from_numbers(root: Path) -> dict[bytes, tuple[Seen, list[bytes]]]:
    """Return what Linux says of every name, with hard links by name instead of inode number."""
    seen = seen_by_kernel(root)
    by_number: dict[int, list[bytes]] = {}
    for path, view in seen.items():
        by_number.setdefault(view.number, []).append(path)
    return {
        path: (view._replace(number=0), sorted(by_number[view.number]))
        for path, view in seen.items()
    }


def data_segments(path: Path) -> list[tuple[int, int]]:
    """Return the parts of a file that are not holes, as SEEK_DATA and SEEK_HOLE tell them."""
    found, at = [], 0
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while at < end:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at))
    return found


def use_every_directory(root: Path) -> None:
    """Look up every name, then create, grow and remove something in every directory."""
    for where, directories, files in os.walk(os.fsencode(root)):
        for name in directories + files:
            os.lstat(os.path.join(where, name))
        for index in range(4):
            with open(os.path.join(where, b"a new and rather long name %d" % index), "wb") as file:
                file.write(b"x" * 5000 * index)
        for index in range(0, 4, 2):
            os.unlink(os.path.join(where, b"a new and rather long name %d" % index))
        os.mkdir(os.path.join(where, b"new"))
        os.rmdir(os.path.join(where, b"new"))


@pytest.mark.parametrize("options", MADE.values(), ids=MADE.keys())
def test_kernel_sees_and_can_use_the_same_volume(
    tmp_path: Path, options: tuple[object, ...]
) -> None:
    """Linux sees everything as before, can write in every directory, and e2fsck stays content."""
    source = make_image(tmp_path / "source", 96 * MIB, *options)
    with mounted(source, "user_xattr", "acl") as root:
        rich_tree(root, has_unwritten="ext4" in options)
    target = tmp_path / "target"
    copy_volume(source, target, is_blank=False)

    with mounted(source, "ro", "noatime") as before, mounted(target, "noatime") as after:
        assert seen_apart_from_numbers(after) == seen_apart_from_numbers(before)
        for name in ("sparse", "allocated", "small", "large", "pieces"):
            if (before / name).exists():
                assert data_segments(after / name) == data_segments(before / name)
                blocks = (before / name).stat().st_blocks
                assert (after / name).stat().st_blocks == pytest.approx(blocks, abs=16)
        flags = [run("lsattr", "-d", root / "large").split()[0] for root in (before, after)]
        assert flags[0] == flags[1]
        use_every_directory(after)
    assert_clean(target)


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_attribute_values_in_inodes(tmp_path: Path, block_size: int) -> None:
    """Values too large for a block become inodes, shared when equal, as ea_inode has them."""
    options = ("-t", "ext4", "-b", block_size, "-O", "ea_inode", "-I", 256)
    source = make_image(tmp_path / "source", 64 * MIB, *options)
    with mounted(source) as root:
        for index in range(20):
            path = root / f"file {index}"
            path.write_bytes(b"x")
            os.setxattr(path, "user.shared", b"S" * 30_000)
            os.setxattr(path, "user.own", b"%d" % index * 9_000)
            os.setxattr(path, "user.small", b"s" * index)
        os.setxattr(root, "user.directory", random.Random("content").randbytes(60_000))
    target = tmp_path / "target"
    copy_volume(source, target)

    assert_clean(target, with_own_check=False)  # it does not count values
    with mounted(source, "ro") as before, mounted(target) as after:
        assert seen_apart_from_numbers(after) == seen_apart_from_numbers(before)
        blocks = [(root / "file 7").stat().st_blocks for root in (before, after)]
        assert blocks[1] == pytest.approx(blocks[0], abs=8)
        for index in range(0, 20, 2):
            os.removexattr(after / f"file {index}", "user.shared")
            os.unlink(after / f"file {index + 1}")
        os.setxattr(after / "file 2", "user.more", b"S" * 30_000)
    assert_clean(target, with_own_check=False)  # it does not count values


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_kernel_finds_twenty_thousand_names(tmp_path: Path, block_size: int) -> None:
    """Each of 20,000 names is found, none but these, also those with bytes above 127."""
    drawing = Drawing()
    directory = drawing.directory(2, b"d")
    names = [b"name %d" % index for index in range(10_000)]
    names += ["näme ünd %d".encode() % index * 3 for index in range(5_000)]
    names += [
        bytes((200 + index % 50,)) * (index % 200 + 1) + b"%d" % index for index in range(5_000)
    ]
    for name in names:
        drawing.file(directory, name)
    description = EXT4 if block_size == 4096 else small_blocks(EXT4)
    target = drawing.write(tmp_path / "target", drawing.plan(description, 256 * MIB))

    with mounted(target) as root:
        where = os.fsencode(root) + b"/d/"
        assert all(os.lstat(where + name).st_nlink == 1 for name in names)
        assert not any(os.path.lexists(where + name + b"x") for name in names[::50])
        assert sorted(os.listdir(where)) == sorted(names)
        for name in names[::2]:
            os.unlink(where + name)
        for index in range(3000):
            Path(os.fsdecode(where + b"another %d" % index)).write_bytes(b"")
    assert_clean(target)


def test_hundreds_of_extents_survive(tmp_path: Path) -> None:
    """Files at the steps of the extent tree read back, keep their holes and can be written."""
    drawing = Drawing()
    counts = (1, 4, 5, 84, 85, 336, 337, 1500)  # 4 inline, 84 in a leaf of 1 KiB, 4 leaves
    for count in counts:
        content = bytearray(count * 2048)
        for index in range(count):
            content[index * 2048 : index * 2048 + 1024] = b"%4d" % index * 256
        number = drawing.file(2, b"%d" % count, bytes(content))
        drawing.regions[number] = [(index * 2048, 1024, False) for index in range(count)]
    target = drawing.write(tmp_path / "target", drawing.plan(small_blocks(EXT4), 64 * MIB))
    assert_clean(target)

    with mounted(target) as root:
        for entry in drawing.entries:
            if entry.node.kind is Kind.FILE:
                path = root / entry.name.decode()
                assert path.read_bytes() == drawing.contents[entry.node.number]
                assert len(data_segments(path)) == int(entry.name)
                with open(path, "r+b") as file:
                    file.seek(1500)
                    file.write(b"fills a hole")
    run("e2fsck", "-fn", target)  # may say that the kernel's own splits could be narrower


def test_offline_resize_works(tmp_path: Path) -> None:
    """resize2fs shrinks and grows a restored volume, and its content stays."""
    drawing = Drawing()
    for index in range(200):
        drawing.file(2, b"%d" % index, b"%d" % index * 5000)
    target = drawing.write(tmp_path / "target", drawing.plan(EXT4, 300 * MIB))
    for size in ("120M", "900M"):
        if size == "900M":
            os.truncate(target, 900 * MIB)
        run("resize2fs", "-f", target, size)
        assert_clean(target)

    with mounted(target, "ro") as root:
        assert all((root / str(i)).read_bytes() == b"%d" % i * 5000 for i in range(200))
