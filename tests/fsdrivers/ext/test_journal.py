# SPDX-License-Identifier: Apache-2.0
"""Replay of journals that the kernel and debugfs left behind, against what they make of them."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import CorruptError, DeviceError, FilesystemError, UnsupportedError
from fsdrivers.ext import checksum, journal
from fsdrivers.ext.edit import open_editor
from fsdrivers.ext.format import journal as jbd2
from fsdrivers.ext.format.flags import Incompat
from fsdrivers.ext.format.records import Superblock
from fsdrivers.ext.metadata import Metadata
from fsdrivers.ext.overlay import Overlay
from fsdrivers.ext.volume import open_volume
from tests.fsdrivers.ext.volumes import (
    debugfs,
    load_image,
    make_image,
    mounted,
    open_image,
    paths_of,
    rich_tree,
    seen_by_kernel,
    seen_by_us,
    snapshot,
)
from tests.programs import run

MIB = 1 << 20
MAGIC = jbd2.JOURNAL_MAGIC_BYTES
MADE = {
    "ext3": ("-t", "ext3", "-b", 1024, "-J", "size=4"),
    "ext4": ("-t", "ext4", "-b", 1024, "-J", "size=4"),
    "ext4 4k": ("-t", "ext4", "-b", 4096, "-J", "size=16"),
    "ext4 no 64bit": ("-t", "ext4", "-b", 1024, "-O", "^64bit", "-J", "size=4"),
    "ext4 no checksums": ("-t", "ext4", "-b", 1024, "-O", "^metadata_csum", "-J", "size=4"),
    "ext4 orphan_file": ("-t", "ext4", "-b", 1024, "-O", "orphan_file", "-J", "size=4"),
}
MODES = ("data=ordered", "data=journal", "journal_checksum")


def _work(root: Path) -> None:
    """Make the journal wrap, revoke, escape, and end in the middle of things."""
    chosen = random.Random(3)
    for turn in range(6):
        below = root / f"turn {turn}"
        below.mkdir()
        for index in range(60):
            path = below / f"file {index}"
            path.write_bytes(MAGIC + bytes([turn]) * chosen.randrange(9000))
        os.sync()
        if turn % 2:
            shutil.rmtree(root / f"turn {turn - 1}")  # its directory blocks are revoked ...
            (root / f"again {turn}").write_bytes(MAGIC * 100_000)  # ... and become content
        descriptor = os.open(below / "file 1", os.O_WRONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@pytest.mark.tools
@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (kind, mode)
        for kind in MADE
        for mode in MODES
        if kind != "ext3" or mode != "journal_checksum"  # not an option of ext3
    ],
)
def test_mounted_volume_reads_as_the_kernel_recovers_it(
    tmp_path: Path, kind: str, mode: str
) -> None:
    """A copy taken while mounted reads, without being changed, as Linux shows it after recovery."""
    image = make_image(tmp_path / "image", 64 * MIB, *MADE[kind])
    with mounted(image, mode) as root:
        _work(root)
        if mode == "data=ordered":
            rich_tree(root / "turn 5", has_unwritten=kind != "ext3")
        open_file = (root / "turn 5" / "unlinked").open("wb")
        open_file.write(b"x" * 50_000)
        os.sync()
        (root / "turn 5" / "unlinked").unlink()  # an orphan as long as it is open
        os.sync()
        copy = snapshot(image, tmp_path / "copy")
        open_file.close()
    before = copy.read_bytes()
    volume = open_image(copy)
    seen = seen_by_us(volume)
    assert copy.read_bytes() == before
    with mounted(copy):
        pass  # recovery
    with mounted(copy, "ro,noatime") as root:
        expected = seen_by_kernel(root)

    assert volume.was_replayed
    assert seen == expected


@pytest.mark.tools
@pytest.mark.root
def test_copies_at_any_moment_read_as_recovered(tmp_path: Path) -> None:
    """Copies taken without any sync, in the middle of writing, agree with recovery too."""
    image = make_image(tmp_path / "image", 32 * MIB, "-t", "ext4", "-b", 1024, "-J", "size=4")
    copies = []
    with mounted(image, "data=journal,commit=1") as root:
        for turn in range(5):
            for index in range(300):
                (root / f"{index % 97}").write_bytes(MAGIC * (index * (turn + 1) % 3000))
                if index % 3 == 0:
                    (root / f"{index % 89}").unlink(missing_ok=True)
            if turn % 2:
                descriptor = os.open(root, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            copies.append(snapshot(image, tmp_path / f"copy {turn}"))
    for copy in copies:
        seen = seen_by_us(open_image(copy))
        with mounted(copy):
            pass
        with mounted(copy, "ro,noatime") as root:
            assert seen == seen_by_kernel(root)


VERSIONS = {
    "version 3, 64bit": ("64bit,metadata_csum", "-c -v 3"),
    "version 2, 64bit": ("64bit,metadata_csum", "-c -v 2"),
    "version 3": ("^64bit,metadata_csum", "-c -v 3"),
    "version 2": ("^64bit,metadata_csum", "-c -v 2"),
    "no checksums": ("^64bit,^metadata_csum", ""),
    "no checksums, 64bit": ("64bit,^metadata_csum", ""),
}


def _write_journal(path: Path, features: str, options: str, parts: Path) -> list[int]:
    """Let debugfs write transactions with escapes and revocations; return the blocks in them."""
    make_image(path, 16 * MIB, "-t", "ext4", "-b", 1024, "-O", features, "-J", "size=1")
    free = int(run("debugfs", "-R", "ffb 1 9000", path).split(":")[1].split()[0])
    blocks = list(range(free, free + 40))
    requests = []
    for turn in range(3):
        content = parts / f"blocks-{turn}"
        content.write_bytes(
            b"".join((MAGIC if index % 5 == turn else b"abcd") * 256 for index in range(40))
        )
        numbers = ",".join(map(str, blocks[turn * 5 : turn * 5 + 30]))
        requests += [f"jo {options}" if turn == 0 else "jo", f"jw -b {numbers} {content}"]
        if turn == 1:
            requests.append(f"jw -r {blocks[2]},{blocks[7]},{blocks[33]}")
        requests.append("jc")
    debugfs(path, *requests)
    return blocks


@pytest.mark.tools
@pytest.mark.parametrize(("features", "options"), VERSIONS.values(), ids=VERSIONS.keys())
def test_every_version_of_the_log_is_replayed_as_e2fsck_does(
    tmp_path: Path, features: str, options: str
) -> None:
    """All blocks of the volume but the superblock and the journal are those e2fsck writes."""
    image = tmp_path / "image"
    blocks = _write_journal(image, features, options, tmp_path)
    overlay = journal.replay(Metadata.load(load_image(image)))
    assert overlay is not None
    assert overlay.replaced
    run("e2fsck", "-y", "-E", "journal_only", image)
    recovered = load_image(image)

    for block in blocks:
        position = block * 1024
        assert overlay.read(position, 1024) == recovered.read(position, 1024), block
    low, length = blocks[0] * 1024 - 500, 30_000
    assert overlay.read(low, length) == recovered.read(low, length)


@pytest.mark.tools
@pytest.mark.parametrize(("features", "options"), list(VERSIONS.values())[:4])
def test_damage_in_the_log_is_an_error_or_the_end_of_the_log(
    tmp_path: Path, features: str, options: str
) -> None:
    """With checksums, no flipped byte of the log reaches the volume unnoticed."""
    image = tmp_path / "image"
    blocks = _write_journal(image, features, options, tmp_path)
    device = load_image(image)
    log = journal.open_journal(Metadata.load(device))
    assert log is not None
    logged = {log.read(at) for at in range(1, 120)}
    logged |= {MAGIC + data[4:] for data in logged}
    chosen = random.Random(5)
    for at in range(0, 120):
        position = log.position(at) + chosen.randrange(1024 if at else 256)
        kept = device.read(position, 1)
        device.write(position, bytes([kept[0] ^ 0x40]))
        try:
            overlay = journal.replay(Metadata.load(device))
            assert overlay is not None
            assert overlay.replaced.keys() <= set(blocks)
            for block in overlay.replaced:
                assert overlay.read(block * 1024, 1024) in logged
        except FilesystemError:
            pass
        finally:
            device.write(position, kept)


def _marked(image: Path, flag: Incompat) -> MemoryDevice:
    """Return an image in memory whose superblock has one more incompatible feature."""
    device = load_image(image)
    superblock = Superblock.unpack(device.read(1024, 1024))
    superblock.feature_incompat |= flag
    data = bytearray(superblock.pack())
    checksum.seal_superblock(data)
    device.write(1024, data)
    return device


@pytest.mark.tools
def test_a_clean_journal_changes_nothing(tmp_path: Path) -> None:
    """A volume marked for recovery whose log is empty reads as it stands."""
    image = make_image(tmp_path / "image", 16 * MIB, "-t", "ext4")

    volume = open_volume(_marked(image, Incompat.RECOVER))

    assert volume.was_replayed
    assert b"lost+found" in paths_of(volume)
    assert volume.describe()["feature_incompat"] == open_image(image).describe()["feature_incompat"]


@pytest.mark.tools
def test_recovery_without_a_journal_here_is_unsupported(tmp_path: Path) -> None:
    """A journal on another device that would have to be replayed is refused."""
    image = make_image(tmp_path / "image", 16 * MIB, "-t", "ext4", "-O", "^has_journal")

    with pytest.raises(UnsupportedError, match="another device"):
        open_volume(_marked(image, Incompat.RECOVER))


@pytest.mark.tools
def test_fast_commits_are_refused_by_name(tmp_path: Path) -> None:
    """What only the fast commit area holds is not silently left out."""
    image = make_image(tmp_path / "image", 64 * MIB, "-t", "ext4", "-O", "fast_commit")
    device = _marked(image, Incompat.RECOVER)
    log = journal.open_journal(Metadata.load(device))
    assert log is not None
    start = log.position(0)
    superblock = log.superblock
    superblock.feature_incompat |= jbd2.JournalIncompat.FAST_COMMIT
    superblock.start_block = 1
    data = bytearray(superblock.pack())
    checksum.seal_journal_superblock(data)
    device.write(start, data)
    assert open_volume(device).was_replayed
    head = jbd2.FastCommitTag(jbd2.FAST_COMMIT_HEAD, jbd2.FastCommitHead.SIZE).pack()
    head += jbd2.FastCommitHead(0, superblock.first_sequence).pack()
    device.write(log.position(log.end), head)

    with pytest.raises(UnsupportedError, match="fast commits"):
        open_volume(device)


@pytest.mark.tools
@pytest.mark.root
def test_interrupted_truncation_ends_at_the_new_size(tmp_path: Path) -> None:
    """Blocks past the size of a file on the orphan list are not shown as its extents."""
    image = make_image(tmp_path / "image", 16 * MIB, "-t", "ext4", "-b", 1024)
    content = tmp_path / "content"
    content.write_bytes(random.Random("content").randbytes(50_000))
    debugfs(image, f"write {content} file")
    node = paths_of(open_image(image))[b"file"]
    debugfs(
        image,
        "set_inode_field file size 5000",
        "set_inode_field file dtime 0",
        f"set_super_value last_orphan {node.number}",
    )

    volume = open_image(image)
    node = paths_of(volume)[b"file"]

    assert volume.read(node, 0, 60_000) == content.read_bytes()[:5000]
    assert sum(extent.length for extent in volume.extents(node)) == 5120


@pytest.mark.tools
def test_an_orphan_list_in_a_circle_is_corrupt(tmp_path: Path) -> None:
    """Following the orphan list ends, with a warning; nothing is changed on such a volume."""
    image = make_image(tmp_path / "image", 16 * MIB, "-t", "ext4")
    debugfs(image, "set_inode_field <12> dtime 12", "set_super_value last_orphan 12")

    (warning,) = open_image(image).warnings()
    assert "orphan list comes back to inode 12" in warning
    with pytest.raises(CorruptError, match="orphan list"):
        open_editor(load_image(image))


def test_overlay_shows_replaced_blocks_and_refuses_to_write() -> None:
    """Reads of any range see replaced blocks, escaped ones with their first bytes back."""
    below = MemoryDevice.of(bytes(range(256)) * 64)
    overlay = Overlay(below, 1024, {2: (5 * 1024 + 7, False), 4: (9 * 1024 + 100, True)}, MAGIC)
    whole = bytearray(below.read(0, below.size))
    whole[2048:3072] = below.read(5 * 1024 + 7, 1024)
    whole[4096:5120] = MAGIC + below.read(9 * 1024 + 104, 1020)

    for position in range(0, 7000, 333):
        for length in (0, 1, 500, 1024, 2500, 6000):
            assert overlay.read(position, length) == whole[position : position + length]
    buffer = bytearray(3000)
    overlay.read_into(2000, buffer)
    assert buffer == whole[2000:5000]
    with pytest.raises(DeviceError):
        overlay.write(0, b"x")
    with pytest.raises(DeviceError):
        overlay.zero(0, 1)
