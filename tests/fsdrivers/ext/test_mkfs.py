# SPDX-License-Identifier: Apache-2.0
"""Volumes written by the ext driver, as e2fsprogs and the driver's own reader see them."""

from __future__ import annotations

import random
import re
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import (
    CorruptError,
    InvalidNameError,
    NoSpaceError,
    NotRecognisedError,
    UnsupportedError,
)
from fsdrivers.ext.format.flags import Incompat, RoCompat
from fsdrivers.ext.mkfs import minimum_size, plan_volume
from fsdrivers.ext.volume import open_volume
from fsdrivers.volume import Entry, Kind
from tests.fsdrivers.ext.mkfs_images import (
    EXT2,
    EXT3,
    EXT4,
    Drawing,
    assert_clean,
    copy_volume,
    header_of,
    regions_of,
    small_blocks,
)
from tests.fsdrivers.ext.volumes import make_image, open_image, plain_tree, seen_by_us
from tests.programs import run

MIB = 1 << 20
MADE = {
    "ext2": ("-t", "ext2"),
    "ext2 4k no sparse_super": ("-t", "ext2", "-b", 4096, "-O", "^sparse_super,^resize_inode"),
    "ext3": ("-t", "ext3"),
    "ext3 4k inode 128": ("-t", "ext3", "-b", 4096, "-I", 128),
    "ext4 1k": ("-t", "ext4", "-b", 1024),
    "ext4 2k": ("-t", "ext4", "-b", 2048, "-I", 512),
    "ext4 4k": ("-t", "ext4", "-b", 4096),
    "Debian 13": ("-t", "ext4", "-b", 4096, "-O", "orphan_file,metadata_csum_seed"),
    "no journal": ("-t", "ext4", "-O", "^has_journal"),
    "uninit_bg": ("-t", "ext4", "-b", 4096, "-O", "^metadata_csum,uninit_bg"),
    "no checksums, no flex_bg": ("-t", "ext4", "-O", "^metadata_csum,^flex_bg,^64bit,^dir_index"),
    "block maps with checksums": ("-t", "ext4", "-O", "^extent,^64bit,orphan_file"),
    "sparse_super2": ("-t", "ext4", "-b", 4096, "-O", "sparse_super2,^resize_inode"),
    "inline_data, ea_inode, large_dir": (
        "-t", "ext4", "-b", 4096, "-O", "inline_data,ea_inode,large_dir,fast_commit"
    ),
    "described": (
        "-t", "ext4", "-b", 4096, "-L", "a label of 16 b", "-m", 3, "-e", "remount-ro", "-E",
        "stride=4,stripe-width=16,hash_seed=11111111-2222-3333-4444-555555555555,"
        "root_owner=7:8",
    ),
}  # fmt: skip
# What a restored volume may say differently: it holds the same in another arrangement.
LIVE_FIELDS = {
    "Free blocks", "Free inodes", "Last mount time", "Last write time", "Mount count",
    "Last checked", "Checksum", "Lifetime writes", "Journal checksum", "Journal sequence",
    "Journal features", "Journal checksum type", "Orphan file inode", "Journal start",
}  # fmt: skip


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("plain") / "tree")


@pytest.mark.tools
@pytest.mark.parametrize("options", MADE.values(), ids=MADE.keys())
def test_copy_of_a_volume_is_clean_and_equal(
    tmp_path: Path, source_tree: Path, options: tuple[object, ...]
) -> None:
    """A volume made again has the same superblock fields, tree and content, and no findings."""
    source = make_image(tmp_path / "source", 72 * MIB, *options, source=source_tree)
    target = tmp_path / "target"
    copy_volume(source, target)

    assert_clean(target)
    made, wanted = header_of(target), header_of(source)
    changed = {key for key in made | wanted if made.get(key) != wanted.get(key)}
    assert changed <= LIVE_FIELDS
    ours = {path: replace_number(seen) for path, seen in seen_by_us(open_image(target)).items()}
    theirs = {path: replace_number(seen) for path, seen in seen_by_us(open_image(source)).items()}
    assert ours == theirs
    assert allocation(target) == allocation(source)


def replace_number(seen: object) -> object:
    """Return what was seen without the inode's number, which a copy is free to choose."""
    return seen._replace(number=0)  # type: ignore[attr-defined]


def allocation(path: Path) -> dict[bytes, list[tuple[int, int, bool]]]:
    """Return the allocated ranges of every file by name, in whole blocks."""
    volume = open_image(path)
    found = {}
    for entry in volume.walk():
        if entry.node.kind is Kind.FILE and not volume_has_inline(volume, entry):
            ranges = regions_of(volume, [entry.node])[entry.node.number]
            joined: list[tuple[int, int, bool]] = []
            for offset, length, is_unwritten in ranges:
                if joined and sum(joined[-1][:2]) == offset and joined[-1][2] == is_unwritten:
                    offset, length = joined[-1][0], joined[-1][1] + length
                    joined.pop()
                joined.append((offset, length, is_unwritten))
            found[entry.name] = joined
    return found


def volume_has_inline(volume: object, entry: Entry) -> bool:
    """Tell whether a file is so small that an inline_data volume keeps it in the inode."""
    superblock = volume.metadata.superblock  # type: ignore[attr-defined]
    return bool(superblock.feature_incompat & Incompat.INLINE_DATA) and entry.node.size < 160


@pytest.mark.tools
@pytest.mark.parametrize("description", [EXT4, EXT3], ids=["checksums", "none"])
def test_stale_bytes_of_the_disk_do_not_matter(tmp_path: Path, description: dict) -> None:  # type: ignore[type-arg]
    """On a disk full of old bytes the volume is as clean as on a blank one."""
    drawing = Drawing()
    for index in range(300):
        drawing.file(2, b"a name of some length, %d" % index, bytes([index % 256]) * index * 40)
    target = tmp_path / "target"
    target.write_bytes(random.Random("content").randbytes(MIB) * 48)
    drawing.write(target, drawing.plan(description, 48 * MIB, is_blank=False))

    assert_clean(target)
    volume = open_image(target)
    for entry in volume.walk():
        if entry.node.kind is Kind.FILE:
            number = int(entry.name.rsplit(b" ", 1)[1])
            assert volume.read(entry.node, 0, 20_000) == bytes([number % 256]) * number * 40


@pytest.mark.tools
def test_every_backup_superblock_is_complete(tmp_path: Path) -> None:
    """Each backup leads dumpe2fs to the same volume, and e2fsck to the same files."""
    drawing = Drawing()
    drawing.file(2, b"file", b"content")
    description = small_blocks(EXT4)
    target = drawing.write(tmp_path / "target", drawing.plan(description, 64 * MIB))
    primary = header_of(target)

    for group in (1, 3, 5, 7):
        backup = header_of(target, "-o", f"superblock={group * 8192 + 1}", "-o", "blocksize=1024")
        changed = {key for key in primary if primary[key] != backup[key]}
        assert changed <= {"Checksum", "Filesystem state"}
    done = subprocess.run(
        ["e2fsck", "-fy", "-b", "24577", "-B", "1024", str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout
    assert_clean(target)


@pytest.mark.tools
def test_thousands_of_names_are_found_one_by_one(tmp_path: Path) -> None:
    """debugfs finds every name of hashed directories of one, two and three levels."""
    for description, length, count in (
        (EXT4, 20, 5000),
        (small_blocks(EXT4), 200, 6000),  # two levels: over 123 leaves of 1 KiB
        (small_blocks(EXT3), 60, 2000),
    ):
        drawing = Drawing()
        directory = drawing.directory(2, b"d")
        names = [b"%0*d" % (length, index) for index in range(count)]
        for name in names:
            drawing.file(directory, name)
        target = drawing.write(tmp_path / "target", drawing.plan(description, 128 * MIB))
        assert_clean(target)
        text = run("debugfs", "-R", "htree_dump /d", target)
        assert f"Number of entries (count): {count}" not in text
        requests = "\n".join(f"stat /d/{name.decode()}" for name in names[::7]) + "\n"
        out = run("debugfs", "-f", "-", target, text=requests)
        assert out.count("Type: regular") == len(names[::7])
        target.unlink()


@pytest.mark.tools
@pytest.mark.parametrize(
    "options", [("-t", "ext4", "-b", 1024), ("-t", "ext3", "-b", 4096)], ids=str
)
def test_resize_inode_equals_that_of_mke2fs(tmp_path: Path, options: tuple[object, ...]) -> None:
    """Inode 7 maps the same blocks to the same slots, so the kernel can grow the volume."""
    source = make_image(tmp_path / "source", 400 * MIB, *options)
    target = tmp_path / "target"
    copy_volume(source, target)

    maps = []
    for path in (source, target):
        text = run("debugfs", "-R", "stat <7>", path)
        listed = text[text.index("BLOCKS:") :]
        maps.append(re.sub(r"\(DIND\):\d+", "", listed))
        assert "Links: 1 " in text
    assert len(maps[0]) > 900
    assert maps[0] == maps[1]


@pytest.mark.tools
@pytest.mark.slow
def test_three_levels_need_large_dir(tmp_path: Path) -> None:
    """Beyond two levels large_dir adds a third; without it the directory stays linear."""
    description = small_blocks(EXT4) | {"inodes_count": 1 << 20, "inodes_per_group": 8192}
    large = {**description, "feature_incompat": 0x2C2 | Incompat.LARGEDIR}
    drawing = Drawing()
    directory = drawing.directory(2, b"d")
    for index in range(50_000):
        drawing.file(directory, b"%0255d" % index)

    for wanted, is_indexed in ((large, True), (description, False)):
        target = drawing.write(tmp_path / "target", drawing.plan(wanted, 160 * MIB))
        assert_clean(target)
        text = run("debugfs", "-R", "stat /d", target)
        assert ("Flags: 0x81000" in text) is is_indexed


@pytest.mark.tools
@pytest.mark.slow
def test_directory_of_65000_subdirectories(tmp_path: Path) -> None:
    """A directory with more subdirectories than links can count says 1, as dir_nlink wants."""
    drawing = Drawing()
    directory = drawing.directory(2, b"d")
    for index in range(65_001):
        drawing.directory(directory, b"%d" % index)
    description = small_blocks(EXT4)
    layout = drawing.plan(description, 160 * MIB)

    target = drawing.write(tmp_path / "target", layout)
    assert_clean(target)
    assert "Links: 1 " in run("debugfs", "-R", "stat /d", target)
    without = description | {"feature_ro_compat": 0x44B}
    with pytest.raises(UnsupportedError, match="dir_nlink"):
        drawing.plan(without, 160 * MIB)


@pytest.mark.tools
def test_shared_attribute_blocks(tmp_path: Path) -> None:
    """Equal attributes share a block until its references are used up."""
    drawing = Drawing()
    for index in range(1500):
        drawing.file(2, b"%d" % index, xattrs=((b"user.big", b"B" * 500), (b"user.s", b"")))
    for index in range(20):
        drawing.file(2, b"own %d" % index, xattrs=((b"user.big", b"%d" % index * 300),))
    drawing.file(2, b"both", xattrs=((b"user.a", b"x" * 60), (b"user.b", b"y" * 4040)))
    layout = drawing.plan(EXT4)

    target = drawing.write(tmp_path / "target", layout)
    assert_clean(target)
    text = run("debugfs", "-R", "ea_list /both", target)
    assert "user.a (60)" in text
    assert "user.b (4040)" in text
    wanted = {e.name: e.node.xattrs for e in drawing.entries if e.name}
    found = {e.name: e.node.xattrs for e in open_image(target).walk() if e.name}
    assert {name: found[name] for name in wanted} == wanted
    drawing.file(2, b"too big", xattrs=((b"user.a", b"x" * 5000),))
    with pytest.raises(UnsupportedError, match="attributes of"):
        drawing.plan(EXT4)


@pytest.mark.tools
def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Two plans of one tree give the same image, byte for byte, and so does asking twice."""
    drawing = Drawing()
    directory = drawing.directory(2, b"d")
    for index in range(500):
        drawing.file(directory, b"some name %d" % index, b"content")
    layout = drawing.plan(EXT4)

    first = [(position, bytes(data)) for position, data in layout.iter_metadata()]
    assert first == [(position, bytes(data)) for position, data in layout.iter_metadata()]
    again = drawing.plan(EXT4)
    assert first == [(position, bytes(data)) for position, data in again.iter_metadata()]


@pytest.mark.parametrize("is_blank", [True, False])
def test_nothing_is_recognised_before_the_last_piece(is_blank: bool) -> None:
    """Until the superblock is written there is no volume, also where there was one before."""
    drawing = Drawing()
    for index in range(100):
        drawing.file(2, b"%d" % index)
    layout = drawing.plan(EXT4, 32 * MIB, is_blank=is_blank)
    device = MemoryDevice(32 * MIB)
    pieces = list(layout.iter_metadata())
    if not is_blank:
        for position, data in pieces:
            device.write(position, data)

    for position, data in pieces[:-1]:
        device.write(position, data)
        assert position % 4096 == len(data) % 4096 == 0, "whole blocks for any sector size"
    with pytest.raises(NotRecognisedError):
        open_volume(device)
    device.write(*pieces[-1])
    assert len(list(open_volume(device).walk())) == 102


def test_lost_and_found_is_made_when_missing() -> None:
    """Without a lost+found among the entries there is one, mode 0700, of four blocks."""
    drawing = Drawing()
    layout = drawing.plan(EXT4)

    assert layout.superblock.free_inodes_count == 65536 - 11
    kept = drawing.directory(2, b"lost+found", mode=0o755, uid=5)
    assert drawing.plan(EXT4).inode_of(kept) == 11


def test_content_comes_in_the_order_asked_for() -> None:
    """Files are placed in the order of `order`, ascending and next to each other."""
    drawing = Drawing()
    numbers = [drawing.file(2, b"%d" % index, b"x" * 5000) for index in range(50)]
    order = numbers[25:] + numbers[24:9:-1]
    layout = plan_volume(EXT4, size=1 << 30, sector_size=512, entries=drawing.entries, order=order)

    placed = [layout.placements(number)[0].position for number in order]
    assert placed == sorted(placed)
    gaps = {after - before for before, after in pairwise(placed)}
    assert gaps == {8192}
    rest = [number for number in numbers if number not in order]
    assert all(layout.placements(number)[0].position > placed[-1] for number in rest)


@pytest.mark.parametrize("description", [EXT2, EXT3, EXT4], ids=["ext2", "ext3", "ext4"])
def test_type_follows_the_features(description: dict) -> None:  # type: ignore[type-arg]
    """A layout says of itself what blkid would."""
    names = {id(EXT2): "ext2", id(EXT3): "ext3", id(EXT4): "ext4"}

    assert Drawing().plan(description).type == names[id(description)]


@pytest.mark.parametrize(
    ("key", "bit", "name"),
    [
        ("feature_compat", 0x80000, "compat bit 0x80000"),
        ("feature_incompat", Incompat.DIRDATA, "dirdata"),
        ("feature_incompat", Incompat.META_BG, "meta_bg"),
        ("feature_incompat", Incompat.JOURNAL_DEV, "journal_dev"),
        ("feature_ro_compat", RoCompat.HAS_SNAPSHOT, "has_snapshot"),
        ("feature_ro_compat", RoCompat.SHARED_BLOCKS, "shared_blocks"),
    ],
)
def test_features_that_cannot_be_honoured_are_named(key: str, bit: int, name: str) -> None:
    """A recorded feature the writer does not make is refused by name, never dropped."""
    value = EXT4[key]
    assert isinstance(value, int)

    with pytest.raises(UnsupportedError, match=name):
        Drawing().plan(EXT4 | {key: value | bit})


@pytest.mark.parametrize(
    "change",
    [
        {"block_size": 1000},
        {"block_size": "4096"},
        {"blocks_count": 0},
        {"blocks_per_group": 99999},
        {"inodes_per_group": 12},
        {"inode_size": 200},
        {"uuid": b"short"},
        {"label": b"x" * 17},
        {"journal_blocks": -1},
        {"hash_seed": b"123"},
    ],
    ids=str,
)
def test_damaged_descriptions_are_refused(change: dict) -> None:  # type: ignore[type-arg]
    """A description that no volume has is corrupt, whatever is wrong with it."""
    with pytest.raises(CorruptError, match="volume description"):
        Drawing().plan(EXT4 | change, 1 << 30)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256])
def test_impossible_names_are_refused(name: bytes) -> None:
    """Names that Linux could never look up are refused."""
    drawing = Drawing()
    drawing.file(2, name)

    with pytest.raises(InvalidNameError):
        drawing.plan(EXT4)


def test_entries_must_form_a_tree() -> None:
    """No root, an orphan, or a directory with two names is corrupt input."""
    drawing = Drawing()
    drawing.file(77, b"orphan")
    with pytest.raises(CorruptError, match="no directory 77"):
        drawing.plan(EXT4)

    with pytest.raises(CorruptError, match="root"):
        plan_volume(EXT4, size=1 << 30, sector_size=512, entries=[], order=[])
    drawing = Drawing()
    number = drawing.directory(2, b"d")
    drawing.entries.append(replace(drawing.entries[-1], name=b"e"))
    assert number
    with pytest.raises(CorruptError, match="two names"):
        drawing.plan(EXT4)


def test_too_small_says_how_much_is_missing() -> None:
    """The error's numbers lead to a size that works."""
    drawing = Drawing()
    number = drawing.file(2, b"big")
    drawing.entries[-1].node.size = 40 * MIB
    size, layout = 16 * MIB, None
    for _ in range(20):
        try:
            layout = drawing.plan(EXT4, size)
            break
        except NoSpaceError as error:
            size += max(-(-(error.needed - error.available) // 4096), 1) * 4096

    assert layout is not None
    assert layout.placements(number)
    assert size < 55 * MIB


def test_sectors_larger_than_blocks_are_refused() -> None:
    """Linux cannot mount blocks smaller than the device's sectors."""
    with pytest.raises(UnsupportedError, match="sectors of 4096"):
        plan_volume(
            small_blocks(EXT4),
            size=1 << 30,
            sector_size=4096,
            entries=Drawing().entries,
            order=[],
        )


def test_regions_of_other_objects_are_ignored() -> None:
    """Allocated ranges recorded for a directory or for nothing do no harm."""
    drawing = Drawing()
    directory = drawing.directory(2, b"d")
    drawing.regions = {directory: [(0, 4096, False)], 999: [(0, 4096, False)]}

    assert drawing.plan(EXT4).placements(999) == []


@pytest.mark.tools
def test_minimum_size_is_enough_and_little_more(tmp_path: Path, source_tree: Path) -> None:
    """The minimum can be planned, and 3 % less cannot."""
    for options in (("-t", "ext4", "-b", 4096), ("-t", "ext3"), ("-t", "ext2", "-b", 2048)):
        source = make_image(tmp_path / "source", 72 * MIB, *options, source=source_tree)
        volume = open_volume(FileDevice.open(source))
        entries = list(volume.walk())
        files = [entry.node for entry in entries if entry.node.kind is Kind.FILE]
        regions = regions_of(volume, files)
        smallest = minimum_size(volume.describe(), entries, regions=regions)
        target = tmp_path / "target"
        layout = copy_volume(source, target, smallest)

        assert layout.size == smallest
        assert_clean(target)
        target.unlink()
        with pytest.raises(NoSpaceError):
            copy_volume(source, target, smallest * 97 // 100)
