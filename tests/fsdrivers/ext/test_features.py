# SPDX-License-Identifier: Apache-2.0
"""Features that few volumes have: made by mke2fs, laid out again, changed in place, checked."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from fsdrivers import driver_of
from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import AlreadyExistsError, NotFoundError, UnsupportedError
from fsdrivers.ext.check import check_volume
from fsdrivers.ext.edit import open_editor
from fsdrivers.ext.format.flags import Incompat, InodeFlags
from fsdrivers.ext.mkfs import minimum_size
from fsdrivers.ext.volume import open_volume
from fsdrivers.losses import Loss
from fsdrivers.volume import Kind
from tests.fsdrivers.ext.editing import clock, complaints, directory_node, dump, file_node
from tests.fsdrivers.ext.mkfs_images import (
    EXT4,
    Drawing,
    assert_clean,
    copy_volume,
    header_of,
    small_blocks,
)
from tests.fsdrivers.ext.volumes import (
    Seen,
    content_of,
    debugfs,
    make_image,
    open_image,
    paths_of,
    plain_tree,
    seen_by_us,
)
from tests.programs import run

pytestmark = pytest.mark.tools

MIB = 1 << 20
ALL_QUOTA = ("-E", "quotatype=usrquota:grpquota:prjquota")
MADE = {
    "meta_bg": ("-t", "ext4", "-b", 1024, "-O", "meta_bg,^resize_inode"),
    "meta_bg, ext3": ("-t", "ext3", "-b", 1024, "-g", 256, "-O", "meta_bg,^resize_inode"),
    "bigalloc": ("-t", "ext4", "-b", 4096, "-O", "bigalloc"),
    "bigalloc, 1 KiB": ("-t", "ext4", "-b", 1024, "-C", 4096, "-O", "bigalloc,^flex_bg"),
    "quota": ("-t", "ext4", "-b", 4096, "-O", "quota,project", *ALL_QUOTA),
    "quota, ext3": ("-t", "ext3", "-b", 1024, "-I", 256, "-O", "quota"),
    "mmp": ("-t", "ext4", "-b", 4096, "-O", "mmp,stable_inodes,encrypt,verity"),
    "sparse_super2": ("-t", "ext4", "-b", 1024, "-O", "sparse_super2", "-E", "num_backup_sb=1"),
    "8 KiB": ("-t", "ext4", "-b", 8192),
    "64 KiB": ("-t", "ext4", "-b", 65536),
    "64 KiB, ext2": ("-t", "ext2", "-b", 65536),
    "casefold": ("-t", "ext4", "-b", 4096, "-O", "casefold"),
    "many": (
        "-t", "ext4", "-b", 4096, "-C", 16384, "-O", "bigalloc,meta_bg,^resize_inode,quota,"
        "project,inline_data,ea_inode,large_dir,orphan_file,metadata_csum_seed", *ALL_QUOTA,
    ),
}  # fmt: skip
SIZE = 96 * MIB
# What a volume made again may say differently.
LIVE_FIELDS = {
    "Free blocks", "Free inodes", "Last mount time", "Last write time", "Mount count",
    "Last checked", "Checksum", "Lifetime writes", "Journal checksum", "Journal sequence",
    "Journal features", "Journal checksum type", "Orphan file inode", "Journal start",
    "Project quota inode", "MMP block number", "Overhead clusters",
    "    mmp_update_date", "    mmp_update_time", "    mmp_node_name", "    mmp_device_name",
}  # fmt: skip


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("plain") / "tree")


@pytest.fixture(scope="module", params=MADE.values(), ids=MADE.keys())
def image(
    request: pytest.FixtureRequest, source_tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A filled volume that e2fsck finds nothing in (mke2fs -d does not count quota)."""
    size = 4 * SIZE if 65536 in request.param else SIZE
    path = tmp_path_factory.mktemp("image") / "source"
    make_image(path, size, *request.param, source=source_tree)
    if any("quota" in str(option) for option in request.param):
        run("sh", "-c", 'e2fsck -fy "$0" > /dev/null; test $? -le 1', path)
    assert_clean(path)
    return path


def seen(path: Path) -> dict[bytes, Seen]:
    """Return what a volume holds, without inode numbers."""
    return {name: view._replace(number=0) for name, view in seen_by_us(open_image(path)).items()}


def test_volume_is_made_again(image: Path, tmp_path: Path) -> None:
    """Of the same size it says the same of itself; of another it is as clean, and as full.

    debugfs reads the same content, also where Linux does not mount such blocks.
    """
    volume = open_image(image)
    nodes = paths_of(volume)
    for factor in (1, 2):
        target = tmp_path / f"target {factor}"
        copy_volume(image, target, volume.size * factor, is_blank=factor == 1)

        assert_clean(target)
        assert seen(target) == seen(image)
        dumped = tmp_path / "dumped"
        for name in ("large", "sparse"):
            run("debugfs", "-R", f"dump {name} {dumped}", target)
            assert dumped.read_bytes() == content_of(volume, nodes[name.encode()])
        if factor == 1:
            made, wanted = header_of(target), header_of(image)
            changed = {key for key in made | wanted if made.get(key) != wanted.get(key)}
            assert changed <= LIVE_FIELDS


def test_least_size_is_enough(image: Path, tmp_path: Path) -> None:
    """A volume of the least size holds everything."""
    volume = open_image(image)
    least = minimum_size(volume.describe(), list(volume.walk()))
    copy_volume(image, tmp_path / "target", least)

    assert_clean(tmp_path / "target")
    assert seen(tmp_path / "target") == seen(image)


def test_volume_is_edited(image: Path, tmp_path: Path) -> None:
    """Files grow, are cut and removed, owners change, and e2fsck has nothing to say."""
    copy = tmp_path / "copy"
    run("cp", "--sparse=always", image, copy)
    with FileDevice.open(copy, writable=True) as device:
        editor = open_editor(device, clock=clock)
        file = editor.create(editor.root, b"made", file_node(uid=1234, gid=77)).number
        content = bytearray(300_000)
        content[:100_000] = random.Random("content").randbytes(100_000)
        content[250_000:] = b"x" * 50_000
        editor.write(file, 0, bytes(content[:100_000]))
        editor.write(file, 250_000, b"x" * 70_000)
        editor.truncate(file, 300_000)
        where = editor.create(editor.root, b"directory", directory_node()).number
        for index in range(120):
            name = b"a rather long name of a file %d" % index
            made = editor.create(where, name, file_node(uid=index % 40))
            editor.write(made.number, index * 512, b"q" * (index * 100 + 1))
        for index in range(0, 120, 3):
            editor.unlink(where, b"a rather long name of a file %d" % index)
        editor.set_xattr(file, b"user.a", b"v" * 900)
        editor.rename(editor.root, b"large", where, b"large")
        editor.set_attributes(file, uid=9999)
        editor.unlink(where, b"large")
        assert editor.read(editor.node(file), 0, 1 << 20) == bytes(content)
        editor.close()

    assert complaints(copy) == []
    with FileDevice.open(copy) as device:
        assert check_volume(device) == []


def test_blocks_of_a_sparse_file_share_clusters(tmp_path: Path) -> None:
    """Pieces of a file in one cluster take one, also when it is cut, and stay apart from others."""
    drawing = Drawing()
    content = random.Random("content").randbytes(400_000)
    number = drawing.file(2, b"sparse", content)
    pieces = [(0, 4096, False), (8192, 4096, True), (24576, 4096, False), (380_928, 20_480, False)]
    drawing.regions[number] = pieces
    shown = bytearray(len(content))
    for offset, length, is_unwritten in pieces:
        if not is_unwritten:
            shown[offset : offset + length] = content[offset : offset + length]
    drawing.file(2, b"dense", content)
    bigalloc = {"feature_ro_compat": 0x46B | 0x200, "cluster_size": 16384}
    clusters = {"blocks_per_group": 131072, "inodes_per_group": 32768, "reserved_gdt_blocks": 31}
    target = drawing.write(tmp_path / "target", drawing.plan(EXT4 | bigalloc | clusters))
    assert_clean(target)
    volume = open_image(target)
    node = paths_of(volume)[b"sparse"]
    assert volume.read(node, 0, node.size) == bytes(shown)
    assert volume.metadata.inode(node.number).blocks_low == 4 * 16384 // 512

    with FileDevice.open(target, writable=True) as device:
        editor = open_editor(device, clock=clock)
        editor.write(node.number, 12288, b"in the first cluster")
        editor.truncate(node.number, 20_000)
        editor.write(node.number, 20_000, b"y" * 30_000)
        editor.close()
    assert complaints(target) == []
    assert open_image(target).metadata.inode(node.number).blocks_low == 4 * 16384 // 512


def test_thousands_of_groups_with_meta_bg(tmp_path: Path) -> None:
    """More descriptors than a group could hold go where meta_bg puts them."""
    drawing = Drawing()
    drawing.file(2, b"file", b"content")
    meta = {"feature_compat": 0x2C, "feature_incompat": 0x2C2 | Incompat.META_BG}
    small = {"blocks_per_group": 256, "inodes_per_group": 16, "first_meta_group": 1}
    description = small_blocks(EXT4) | meta | small | {"inodes_count": 16 * 1024}
    layout = drawing.plan(description, 256 * MIB)
    target = drawing.write(tmp_path / "target", layout)

    assert_clean(target)
    assert layout.geometry.shape.groups_count == 1024
    assert int(header_of(target)["First meta block group"]) == 1


def test_directories_that_fold_case(tmp_path: Path) -> None:
    """They keep their flag; names of ASCII are indexed by their folded hash, others not."""
    drawing = Drawing()
    for index, letter in enumerate(("N", "Ü")):
        directory = drawing.directory(2, b"d%d" % index, flags=int(InodeFlags.CASEFOLD))
        for number in range(500):
            drawing.file(directory, f"{letter}ame of a FILE {number}".encode())
    description = EXT4 | {
        "feature_incompat": 0x2C2 | Incompat.CASEFOLD,
        "encoding": 1,
    }
    target = drawing.write(tmp_path / "target", drawing.plan(description, 64 * MIB))

    assert_clean(target)
    volume = open_image(target)
    found = paths_of(volume)
    for index, is_indexed in ((0, True), (1, False)):
        node = found[b"d%d" % index]
        assert node.flags & InodeFlags.CASEFOLD
        flags = volume.metadata.inode(node.number).flags
        assert bool(flags & InodeFlags.INDEX) is is_indexed


def test_directories_that_fold_case_are_edited(tmp_path: Path) -> None:
    """Names are found whatever their case, taken names are taken, and e2fsck stays content."""
    options = ("-t", "ext4", "-b", 1024, "-O", "casefold")
    device = MemoryDevice.of(make_image(tmp_path / "image", 24 * MIB, *options).read_bytes())
    editor = open_editor(device, clock=clock)
    fold = int(InodeFlags.CASEFOLD)
    where = editor.create(editor.root, b"games", replace(directory_node(), flags=fold)).number
    for index in range(400):
        editor.create(where, b"A Name in MIXED case %d" % index, file_node())
    for index in range(0, 400, 3):
        editor.unlink(where, b"a name in mixed CASE %d" % index)
    with pytest.raises(AlreadyExistsError):
        editor.create(where, b"a NAME in mixed case 1", file_node())
    with pytest.raises(UnsupportedError, match="ASCII"):
        editor.create(where, "Übung".encode(), file_node())
    editor.rename(where, b"A NAME IN MIXED CASE 1", where, b"a name in mixed case 1")
    assert editor.lookup(where, b"A name in mixed case 1").links == 1
    below = editor.create(where, b"Below", directory_node())
    assert below.flags & fold
    for index in range(200):
        editor.create(below.number, "Übung %d".encode() % index, file_node())
    assert editor.lookup(below.number, "u\u0308BUNG 17".encode()).links == 1
    editor.rename(below.number, "übung 3".encode(), editor.root, "übung 3".encode())
    with pytest.raises(NotFoundError):
        editor.lookup(editor.root, "Übung 3".encode())
    editor.close()

    assert complaints(dump(device, tmp_path / "image")) == []
    assert check_volume(device) == []
    names = {name for name, _ in editor.names(where)}
    assert b"a name in mixed case 1" in names
    assert b"A Name in MIXED case 1" not in names
    assert len(names) == 400 - 134 + 1


@pytest.mark.parametrize(
    ("flag", "feature", "reason"),
    [(0x800, "encrypt", "encrypted"), (0x100000, "verity", "verity")],
    ids=["encrypt", "verity"],
)
def test_what_could_not_be_made_again_is_refused(
    tmp_path: Path, flag: int, feature: str, reason: str
) -> None:
    """Files that only their keys explain are refused by name, the volume is not; whoever wants
    seals back is told of sealed ones."""
    path = make_image(tmp_path / "image", 32 * MIB, "-t", "ext4", "-O", feature)
    assert [entry.name for entry in open_image(path).walk()] == [b"", b"lost+found"]
    (tmp_path / "file").write_bytes(b"content")
    debugfs(path, f"write {tmp_path / 'file'} file", f"sif file flags {0x80000 | flag:#x}")

    told: list[Loss] = []
    names = [entry.name for entry in open_image(path).walk(told.append)]
    if feature == "encrypt":
        with pytest.raises(UnsupportedError, match=reason):
            list(open_image(path).walk())
        assert names == [b"", b"lost+found"]
        assert [(loss.name, loss.count) for loss in told] == [(b"file", 1)]
    else:
        assert (names, told) == ([b"", b"lost+found", b"file"], [])
    with pytest.raises(UnsupportedError, match=rf"/file, .*{reason}"):
        open_image(path).check_restorable()
    debugfs(path, "mkdir below", f"write {tmp_path / 'file'} below/other")
    debugfs(path, f"sif below/other flags {0x80000 | flag:#x}", "rm file")
    with pytest.raises(UnsupportedError, match=rf"/below/other, .*{reason}"):
        open_image(path).check_restorable()


def test_sealed_files_are_read(tmp_path: Path) -> None:
    """What verity seals is read as any file, without the tree of hashes behind its end."""
    path = make_image(tmp_path / "image", 32 * MIB, "-t", "ext4", "-O", "verity")
    content = random.Random(3).randbytes(9000)
    (tmp_path / "file").write_bytes(content + bytes(4096 * 20 - 9000) + b"h" * 4096)
    debugfs(path, f"write {tmp_path / 'file'} file", "sif file size 9000")
    debugfs(path, f"sif file flags {0x80000 | 0x100000:#x}")
    volume = open_image(path)
    (node,) = (entry.node for entry in volume.walk() if entry.name == b"file")

    assert volume.read(node, 0, 1 << 20) == content
    assert check_volume(MemoryDevice.of(path.read_bytes())) == []
    with pytest.raises(UnsupportedError, match="/file, sealed with verity"):
        volume.check_restorable()
    assert volume.warnings() == ["/file comes back without its seal (verity)"]


def test_shared_blocks_are_read(tmp_path: Path) -> None:
    """A volume whose files share blocks, as Android makes them, is read and checked; it is not
    made again, where every file has its own blocks."""
    path = make_image(tmp_path / "image", 8 * MIB, "-t", "ext2", "-b", 4096)
    content = random.Random(3).randbytes(4096)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(content)
        debugfs(path, f"write {tmp_path / name} {name}")
    first, second = (
        int(run("debugfs", "-R", f"bmap {name} 0", path).split()[0]) for name in ("one", "two")
    )
    debugfs(path, f"sif two block[0] {first}", f"freeb {second}", "feature shared_blocks")
    run("e2fsck", "-fy", path, codes=(0, 1))  # counts the free block
    volume = open_image(path)
    nodes = {entry.name: entry.node for entry in volume.walk()}

    assert volume.read(nodes[b"one"], 0, 9999) == volume.read(nodes[b"two"], 0, 9999) == content
    assert check_volume(MemoryDevice.of(path.read_bytes())) == []
    with pytest.raises(UnsupportedError, match="shared_blocks"):
        driver_of("ext2").check_description(volume.describe())
    with pytest.raises(UnsupportedError, match="shared_blocks"):
        open_editor(MemoryDevice.of(path.read_bytes()))
    debugfs(path, "feature ^shared_blocks")
    assert "shared" in {item.rule for item in check_volume(MemoryDevice.of(path.read_bytes()))}


def test_kinds_of_a_restored_file_survive(tmp_path: Path) -> None:
    """Nothing of a drawn tree is lost on blocks of 32 KiB with clusters of 64 KiB."""
    drawing = Drawing()
    for index in range(300):
        drawing.file(2, b"%d" % index, b"%d" % index * index)
    drawing.add(2, b"link", drawing.node(Kind.SYMLINK, target=b"t" * 300))
    changes = {
        "block_size": 32768, "cluster_size": 65536, "blocks_per_group": 131056,
        "inodes_per_group": 8192, "blocks_count": 8192, "inodes_count": 8192,
        "feature_ro_compat": 0x46B | 0x200, "reserved_gdt_blocks": 0, "feature_compat": 0x2C,
        "journal_blocks": 1024, "reserved_blocks": 400,
    }  # fmt: skip
    target = drawing.write(tmp_path / "target", drawing.plan(EXT4 | changes))

    assert_clean(target)
    device = MemoryDevice.of(target.read_bytes())
    assert len(list(open_volume(device).walk())) == len(drawing.entries) + 1  # lost+found
