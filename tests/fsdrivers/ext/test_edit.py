# SPDX-License-Identifier: Apache-2.0
"""Editing ext volumes in place: maps, indexes, attributes, full volumes, the kernel's opinion."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdrivers.bits import clear_bits, count_set, iter_clear, set_bits
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import (
    AlreadyExistsError,
    FilesystemError,
    InvalidNameError,
    NoSpaceError,
    NotFoundError,
    UnsupportedError,
)
from fsdrivers.ext.check import check_volume
from fsdrivers.ext.edit import open_editor
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeFlags
from fsdrivers.ext.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.ext import editing as ext_editing
from tests.fsdrivers.ext.editing import (
    SIZE,
    clock,
    complaints,
    directory_node,
    dump,
    edited,
    file_node,
    link_node,
    shown_tree,
)
from tests.fsdrivers.ext.volumes import debugfs, make_image, mounted, seen_by_kernel, seen_by_us
from tests.programs import run

pytestmark = pytest.mark.tools
OURS = ["ext2", "ext3", "ext4", "ext4-1k", "ext4-uninit-bg"]


def check_clean(device: MemoryDevice, tmp_path: Path) -> None:
    """Neither e2fsck nor our own checker has anything to say."""
    assert complaints(dump(device, tmp_path / "image")) == []
    assert check_volume(device) == []


@pytest.mark.parametrize("features", OURS)
def test_every_depth_of_a_map(features: str, tmp_path: Path) -> None:
    """A file of many pieces and a long sparse one are read back, and cut without trace."""
    device, editor = edited(features, 16 << 20)
    free = editor.metadata.superblock.free_blocks
    number = editor.create(editor.root, b"pieces", file_node()).number
    size = editor.block_size
    expected = bytearray(1400 * size)
    order = [*range(0, 1400, 2), *range(1, 1400, 10)]
    for index in order:
        editor.write(number, index * size + 5, b"%06d" % index)
        expected[index * size + 5 : index * size + 11] = b"%06d" % index
    del expected[order[699] * size + 11 :]
    far = editor.create(editor.root, b"far", file_node()).number
    limit = (1 << 30) if features in ("ext2", "ext3") else (1 << 40)
    editor.write(far, limit - 3, b"end")
    editor.flush()
    check_clean(device, tmp_path)
    node = editor.node(number)
    assert editor.read(node, 0, node.size) == expected
    assert editor.read(editor.node(far), limit - 5, 10) == b"\0\0end"

    editor.truncate(number, 700 * size + 1)
    editor.flush()
    check_clean(device, tmp_path)
    for name in (b"pieces", b"far"):
        editor.unlink(editor.root, name)
    editor.close()

    check_clean(device, tmp_path)
    assert open_volume(device).metadata.superblock.free_blocks == free


def test_unwritten_extents_become_written(tmp_path: Path) -> None:
    """Writing into preallocated space keeps what is around it zero."""
    path = make_image(tmp_path / "image", SIZE, "-t", "ext4", "-b", "4096")
    debugfs(path, "write /dev/null file", "fallocate file 0 99", "set_inode_field file size 400000")
    with FileDevice.open(path, writable=True) as device:
        editor = open_editor(device, clock=clock)
        number = editor.lookup(editor.root, b"file").number
        editor.write(number, 50_000, b"x" * 10_000)
        node = editor.node(number)
        content = editor.read(node, 0, node.size)
        editor.close()

    assert content == bytes(50_000) + b"x" * 10_000 + bytes(340_000)
    assert complaints(path) == []


@pytest.mark.parametrize(
    ("features", "count", "levels"),
    [
        ("ext4-1k", 40, 0),
        ("ext4-1k", 3000, 1),
        ("ext2-1k", 3000, 1),
        pytest.param("ext4", 20_000, 0, marks=pytest.mark.slow),
        pytest.param("ext4-1k", 20_000, 1, marks=pytest.mark.slow),
        pytest.param("large-dir", 60_000, 2, marks=pytest.mark.slow),
    ],
)
def test_names_in_one_directory(
    features: str, count: int, levels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index grows by splitting leaves and inner blocks; names come and go and are found."""
    options = ext_editing.FEATURES.get(features, ("-t", "ext4", "-b", "1024", "-O", "large_dir"))
    spacious = (*options, "-N", str(count + 2000))
    monkeypatch.setitem(ext_editing.FEATURES, "spacious", spacious)
    ext_editing.blank.cache_clear()
    device, editor = edited("spacious", (16 + count * 3 // 2000 * 2) << 20)
    where = editor.create(editor.root, b"dir", directory_node()).number
    # Long names, in an order that splits leaves everywhere.
    names = [b"%05d of many names" % (index * 7919 % count) for index in range(count)]
    names = [name + b"." * (180 if features == "large-dir" else 20) for name in names]
    numbers = {name: editor.create(where, name, file_node()).number for name in names}
    with pytest.raises(AlreadyExistsError):
        editor.create(where, names[count // 2], file_node())
    editor.flush()
    check_clean(device, tmp_path)
    block = next(editor.iter_directory_blocks(where))[0]
    assert ext.DxRoot.unpack(block).indirect_levels == levels
    assert dict(editor.names(where)) == numbers
    for name in names[::2]:
        editor.unlink(where, name)
    editor.close()

    check_clean(device, tmp_path)
    again = open_editor(device, clock=clock)
    for name in names[1::2][:300]:
        assert again.lookup(where, name).number == numbers[name]
    for name in names[::2][:300]:
        with pytest.raises(NotFoundError):
            again.lookup(where, name)
    again.close()


@pytest.mark.parametrize("features", ["ext2", "ext3", "ext4", "ext4-1k"])
def test_every_operation_on_a_full_volume(features: str, tmp_path: Path) -> None:
    """Without a free block or inode an operation raises NoSpaceError and changes nothing."""
    device, editor = edited(features)
    root = editor.root
    victim = editor.create(root, b"victim", file_node()).number
    editor.write(victim, 0, b"v" * 100_000)
    where = editor.create(root, b"dir", directory_node()).number
    filler = editor.create(root, b"filler", file_node()).number
    step, offset = 1 << 20, 0
    while step >= 512:
        try:
            editor.write(filler, offset, b"f" * step)
            offset += step
        except NoSpaceError:
            step //= 2
    editor.flush()
    operations: list[Callable[[], object]] = [
        lambda: editor.create(root, b"n" * 200, file_node()),
        lambda: editor.create(where, b"sub", directory_node()),
        lambda: editor.create(where, b"link", link_node(b"t" * 100)),
        lambda: editor.write(victim, 200_000, b"w" * 10_000),
        lambda: editor.write(filler, 50_000_000, b"w" * 10),
        lambda: editor.set_xattr(victim, b"user.big", b"x" * 800),
        lambda: [editor.create(where, b"%d" % n + b"m" * 240, file_node()) for n in range(30)],
        lambda: editor.rename(root, b"victim", where, b"long" * 60),
        lambda: editor.link(victim, root, b"l" * 255),
    ]
    refused = 0
    for operation in operations:
        before = shown_tree(device)
        try:
            operation()
        except NoSpaceError:
            refused += 1
            editor.flush()
            if operation is not operations[6]:
                assert shown_tree(device) == before
        editor.flush()
        check_clean(device, tmp_path)
    assert refused >= 5
    editor.unlink(root, b"filler")  # what is freed can be used at once
    editor.create(root, b"again", directory_node())
    editor.write(victim, 0, b"w" * 3_000_000)
    editor.close()

    check_clean(device, tmp_path)


def test_no_inode_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all inodes are in use, creating says so; after a removal it works again."""
    monkeypatch.setitem(ext_editing.FEATURES, "few", ("-t", "ext4", "-N", "32"))
    device, editor = edited("few")
    made = 0
    try:
        while made < 100:
            editor.create(editor.root, b"%d" % made, file_node())
            made += 1
    except NoSpaceError:
        pass
    editor.unlink(editor.root, b"3")
    editor.create(editor.root, b"again", directory_node())
    editor.close()

    assert 10 < made < 100
    check_clean(device, tmp_path)


def test_large_files_are_freed_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing what one transaction cannot hold goes by way of the orphan list."""
    monkeypatch.setattr("fsdrivers.ext.edit.session.MOST_GROUPS", 1)
    monkeypatch.setitem(ext_editing.FEATURES, "groups", ("-t", "ext4", "-b", "1024", "-g", "1024"))
    device, editor = edited("groups", 16 << 20)
    free = editor.metadata.superblock.free_blocks
    for name in (b"cut", b"gone"):
        number = editor.create(editor.root, name, file_node()).number
        editor.write(number, 0, b"c" * 5_000_000)
    editor.truncate(editor.lookup(editor.root, b"cut").number, 10)
    editor.unlink(editor.root, b"gone")
    editor.unlink(editor.root, b"cut")
    editor.close()

    check_clean(device, tmp_path)
    assert open_volume(device).metadata.superblock.free_blocks == free


def test_orphans_are_finished(tmp_path: Path) -> None:
    """What a crash left on the orphan list is freed or cut when the volume is opened."""
    path = make_image(tmp_path / "image", SIZE, "-t", "ext4", "-b", "4096")
    with FileDevice.open(path, writable=True) as device:
        editor = open_editor(device, clock=clock)
        numbers = []
        for name in (b"deleted", b"cut"):
            numbers.append(editor.create(editor.root, name, file_node()).number)
            editor.write(numbers[-1], 0, b"x" * 50_000)
        editor.close()
    deleted, cut = numbers
    debugfs(
        path,
        "unlink deleted",
        f"set_inode_field <{deleted}> links_count 0",
        f"set_inode_field <{deleted}> dtime {cut}",
        f"set_inode_field <{cut}> size 5000",
        f"set_super_value last_orphan {deleted}",
    )
    with FileDevice.open(path, writable=True) as device:
        editor = open_editor(device, clock=clock)
        assert [name for name, _ in editor.names(editor.root)] == [b"lost+found", b"cut"]
        assert editor.read(editor.node(cut), 0, 10_000) == b"x" * 5000
        editor.close()

    assert complaints(path) == []


@pytest.mark.parametrize("features", ["ext4", "ext2"])
def test_attribute_blocks_are_shared_until_one_changes(features: str, tmp_path: Path) -> None:
    """Changing an attribute of one file leaves those of the others that share its block."""
    path = make_image(tmp_path / "image", SIZE, "-t", features, "-I", "128")
    big = random.Random("content").randbytes(500)
    with mounted(path) as root:
        for name in ("one", "two", "three"):
            (root / name).touch()
            os.setxattr(root / name, "user.big", big)
    with FileDevice.open(path, writable=True) as device:
        editor = open_editor(device, clock=clock)
        one, two = (editor.lookup(editor.root, name).number for name in (b"one", b"two"))
        assert editor.metadata.inode(one).xattr_block == editor.metadata.inode(two).xattr_block
        editor.set_xattr(one, b"user.more", b"1")
        editor.flush()
        assert complaints(path) == []
        editor.unlink(editor.root, b"two")
        editor.remove_xattr(one, b"user.big")
        editor.close()
    assert complaints(path) == []
    with mounted(path) as root:
        assert os.getxattr(root / "three", "user.big") == big
        assert os.listxattr(root / "one") == ["user.more"]


def test_values_in_inodes_of_their_own(tmp_path: Path) -> None:
    """Values too large for a block go to inodes where the volume allows it."""
    device, editor = edited("ext4-inline")
    free = editor.metadata.superblock.free_inodes_count
    number = editor.create(editor.root, b"file", file_node()).number
    value = random.Random("content").randbytes(20_000)
    editor.set_xattr(number, b"user.huge", value)
    editor.set_xattr(number, b"user.small", b"s")
    editor.flush()
    check_clean(device, tmp_path)
    assert dict(editor.node(number).xattrs) == {b"user.huge": value, b"user.small": b"s"}
    path = dump(device, tmp_path / "mounted.img")
    with mounted(path) as root:
        assert os.getxattr(root / "file", "user.huge") == value
    editor.remove_xattr(number, b"user.huge")
    editor.flush()
    check_clean(device, tmp_path)
    editor.set_xattr(number, b"user.huge", value)
    editor.unlink(editor.root, b"file")
    editor.close()

    check_clean(device, tmp_path)
    assert open_volume(device).metadata.superblock.free_inodes_count == free


def test_inline_content_moves_to_blocks(tmp_path: Path) -> None:
    """Files and directories inside their inodes are changed like all others."""
    path = make_image(tmp_path / "image", SIZE, "-t", "ext4", "-O", "inline_data", "-I", "256")
    with mounted(path) as root:
        (root / "dir" / "sub").mkdir(parents=True)
        (root / "dir" / "small").write_bytes(b"inline" * 12)
        (root / "dir" / "cut").write_bytes(b"inline" * 12)
    with FileDevice.open(path, writable=True) as device:
        editor = open_editor(device, clock=clock)
        where = editor.lookup(editor.root, b"dir").number
        small = editor.lookup(where, b"small").number
        assert editor.metadata.inode(small).flags & InodeFlags.INLINE_DATA
        editor.set_xattr(small, b"user.a", b"1")
        editor.write(small, 70, b"more" * 1000)
        editor.truncate(editor.lookup(where, b"cut").number, 3)
        editor.create(where, b"new", file_node())
        editor.rename(where, b"sub", editor.root, b"moved")
        editor.close()
    assert complaints(path) == []
    with mounted(path) as root:
        assert (root / "dir" / "small").read_bytes() == b"inline" * 11 + b"inli" + b"more" * 1000
        assert (root / "dir" / "cut").read_bytes() == b"inl"
        assert sorted(os.listdir(root / "dir")) == ["cut", "new", "small"]
        assert (root / "moved").is_dir()


@pytest.mark.slow
def test_more_subdirectories_than_links_count(tmp_path: Path) -> None:
    """Past 65,000 a directory's link count is 1, and the volume stays clean."""
    path = make_image(tmp_path / "image", 400 << 20, "-t", "ext4", "-b", "1024", "-N", "70000")
    with FileDevice.open(path, writable=True) as device:
        editor = open_editor(device, clock=clock)
        where = editor.create(editor.root, b"many", directory_node()).number
        for index in range(65_010):
            editor.create(where, b"%d" % index, directory_node())
        assert editor.node(where).links == 1
        editor.rmdir(where, b"5")
        editor.close()
    assert complaints(path) == []


@pytest.mark.root
@pytest.mark.parametrize("features", ["ext2", "ext3", "ext4", "ext4-1k", "ext4-uninit-bg"])
def test_the_kernel_reads_what_was_edited_and_goes_on(features: str, tmp_path: Path) -> None:
    """Linux sees every name and attribute as we do; what it then writes is clean, and editable."""
    device, editor = edited(features, 24 << 20)
    where = editor.create(editor.root, b"dir", directory_node()).number
    for index in range(400):
        node = file_node(uid=index, gid=70_000, xattrs=((b"user.n", b"%d" % index),))
        number = editor.create(where, b"name %05d" % index + b"-" * (index % 80), node).number
        editor.write(number, index, hashlib.sha256(b"%d" % index).digest() * (index % 9 * 30))
    for index in range(0, 400, 3):
        editor.unlink(where, b"name %05d" % index + b"-" * (index % 80))
    editor.create(editor.root, b"soft", link_node(b"dir/name 00001-"))
    editor.create(editor.root, b"slow", link_node(b"s" * 400))
    editor.create(editor.root, b"node", Node(0, Kind.CHARACTER_DEVICE, device=(300, 70_000)))
    editor.close()
    path = dump(device, tmp_path / "volume")
    with mounted(path) as root:
        seen = seen_by_kernel(root)
        volume = open_volume(FileDevice.open(path))
        assert seen_by_us(volume) == seen
        for index in range(500):
            (root / "dir" / f"by the kernel {index}").write_bytes(b"k" * index * 10)
        run("rm", "-rf", *(root / "dir").glob("name 000*"))
    assert complaints(path) == []
    with FileDevice.open(path, writable=True) as again:
        editor = open_editor(again, clock=clock)
        for name, _ in editor.names(where)[::2]:
            editor.unlink(where, name)
        editor.close()
    assert complaints(path) == []


@pytest.mark.parametrize("features", sorted(ext_editing.FEATURES))
def test_label_and_uuid(features: str, tmp_path: Path) -> None:
    """A new identity is what blkid reads, with every checksum that depends on it."""
    device, editor = edited(features)
    where = editor.create(editor.root, b"dir", directory_node()).number
    for index in range(120):
        editor.create(where, b"%d" % index + b"-" * 60, file_node(xattrs=((b"user.a", b"b"),)))
    editor.set_label(b"sixteen bytes 16")
    with pytest.raises(InvalidNameError):
        editor.set_label(b"more than 16 bytes")
    uuid = "01234567-89ab-4def-8123-456789abcdef"
    try:
        editor.set_uuid(uuid)
    except UnsupportedError:
        assert features == "ext4-inline"  # hashes of values in inodes depend on the UUID
        return
    editor.create(where, b"after", file_node())
    editor.close()

    check_clean(device, tmp_path)
    shown = run("blkid", "-p", "-o", "export", tmp_path / "image")
    assert f"UUID={uuid}" in shown
    assert "LABEL=sixteen" in shown


@pytest.mark.parametrize(
    ("options", "state", "reason"),
    [(("-t", "ext4"), 2, "damaged"), (("-t", "ext2"), 0, "not unmounted")],
    ids=["damaged", "in use"],
)
def test_what_cannot_be_edited_is_refused(
    options: tuple[str, ...], state: int, reason: str, tmp_path: Path
) -> None:
    """Volumes that must be checked first are refused with the reason and not written to."""
    path = make_image(tmp_path / "image", 32 << 20, *options)
    debugfs(path, f"set_super_value state {state}")
    before = path.read_bytes()

    with FileDevice.open(path, writable=True) as device, pytest.raises(UnsupportedError) as caught:
        open_editor(device)

    assert reason in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("features", ["ext2", "ext4"])
def test_opening_and_closing_changes_nothing(features: str) -> None:
    """An editor that is not used leaves every byte as it was."""
    before = ext_editing.blank(features)
    device = MemoryDevice.of(before)
    editor = open_editor(device, clock=clock)
    editor.node(editor.root)
    editor.flush()
    editor.close()

    assert device.read(0, device.size) == before


def test_reserved_inodes_are_no_objects() -> None:
    """The journal and other inner files cannot be reached by number."""
    _, editor = edited("ext4")
    for number in (1, 7, 8, 1 << 20):
        with pytest.raises(NotFoundError):
            editor.write(number, 0, b"x")
        with pytest.raises(NotFoundError):
            editor.node(number)


def test_every_flipped_byte_is_survived(tmp_path: Path) -> None:
    """Editing a damaged volume ends in success or in one of our errors."""
    device, editor = edited("ext4")
    where = editor.create(editor.root, b"dir", directory_node()).number
    editor.create(where, b"file", file_node(xattrs=((b"user.a", b"1" * 300),)))
    editor.close()
    metadata = open_volume(device).metadata
    good = device.read(0, device.size)
    descriptor = metadata.descriptors[0]
    size = metadata.geometry.block_size
    places = [
        *range(1024, 2048, 37),
        *range(size, size + 64, 5),
        *range(descriptor.block_bitmap * size, descriptor.block_bitmap * size + 300, 61),
        *range(metadata.inode_position(where), metadata.inode_position(where) + 256, 11),
    ]
    ends: Counter[str] = Counter()
    for place in places:
        damaged = MemoryDevice.of(good)
        damaged.write(place, bytes([good[place] ^ 0xFF]))
        try:
            editor = open_editor(damaged, clock=clock)
            editor.create(where, b"new", directory_node())
            editor.unlink(where, b"file")
            editor.close()
            ends["success"] += 1
        except FilesystemError:
            ends["error"] += 1

    assert ends.total() == len(places)
    assert ends["success"] > 0
    assert ends["error"] > 0


def test_bits() -> None:
    """Runs of bits are set, cleared, counted and found at every alignment."""
    for start in range(0, 40, 3):
        for count in (1, 2, 7, 8, 9, 30):
            bitmap = bytearray(10)
            set_bits(bitmap, start, count)
            assert int.from_bytes(bitmap, "little") == ((1 << count) - 1) << start
            assert count_set(bitmap, 0, 80) == count
            expected = [(0, start), (start + count, 80 - start - count)]
            assert list(iter_clear(bitmap, 0, 80)) == [run for run in expected if run[1]]
            assert list(iter_clear(bitmap, start, start + count)) == []
            clear_bits(bitmap, start, count)
            assert not any(bitmap)


def test_groups_with_fewer_inodes_than_are_reserved(tmp_path: Path) -> None:
    """A volume whose first group holds not all reserved inodes: it is checked, and an edit gives
    none of them away."""
    path = make_image(tmp_path / "image", 8 << 20, "-t", "ext4", "-b", 1024, "-g", 1024, "-N", 64)
    with FileDevice.open(path, writable=True) as device:
        assert check_volume(device) == []
        editor = open_editor(device, clock=clock)
        node = Node(0, Kind.FILE)
        numbers = {editor.create(editor.root, b"f%d" % name, node).number for name in range(20)}
        editor.close()
        assert check_volume(device) == []

    assert min(numbers) > 11
    assert complaints(path) == []
