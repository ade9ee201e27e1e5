# SPDX-License-Identifier: Apache-2.0
"""Volumes whose superblock or descriptors are damaged are read from the copies."""

from __future__ import annotations

from pathlib import Path

import pytest

import fsdrivers
from fsdrivers.device import MemoryDevice
from fsdrivers.errors import CorruptError, FilesystemError, NotRecognisedError
from fsdrivers.ext.check import check_volume
from fsdrivers.ext.checksum import ONES, crc32c
from fsdrivers.ext.edit import open_editor
from fsdrivers.ext.rescue import find_backup
from fsdrivers.ext.volume import open_volume
from tests.fsdrivers.ext.volumes import debugfs, load_image, make_image, plain_tree, seen_by_us

pytestmark = pytest.mark.tools

MADE = {
    "ext2": ("-t", "ext2", "-b", 1024),
    "ext4": ("-t", "ext4", "-b", 1024),
    "4 KiB, small groups": ("-t", "ext4", "-b", 4096, "-g", 2048),
    "meta_bg": ("-t", "ext4", "-b", 1024, "-g", 256, "-O", "meta_bg,^resize_inode"),
    "bigalloc": ("-t", "ext4", "-b", 1024, "-C", 2048, "-O", "bigalloc"),
}
SIZE = 40 << 20


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("plain") / "tree")


@pytest.mark.parametrize("options", MADE.values(), ids=MADE.keys())
def test_damaged_frame_is_read_from_copies(
    tmp_path: Path, source_tree: Path, options: tuple[object, ...]
) -> None:
    """Everything is read with a flipped field, a wiped superblock, wiped descriptors or all.

    What was done is said by the volume and by the checker; the editor refuses.
    """
    image = make_image(tmp_path / "image", SIZE, *options, source=source_tree)
    whole = open_volume(load_image(image))
    wanted, size = seen_by_us(whole), whole.block_size
    descriptors = whole.metadata.geometry.descriptor_block(0) * size
    assert whole.warnings() == []

    for position, data in (
        (1024 + 0x20, b"\x55\xaa"),
        (0, bytes(2048)),
        (descriptors, bytes(size)),
        (0, bytes(descriptors + size)),
    ):
        device = load_image(image)
        device.write(position, data)
        volume = open_volume(device)

        assert seen_by_us(volume) == wanted
        assert volume.warnings()
        assert all("copy" in warning for warning in volume.warnings())
        found = [finding.what for finding in check_volume(device)]
        assert set(volume.warnings()) <= set(found)
        with pytest.raises(FilesystemError):
            open_editor(device)


def test_journal_is_replayed_under_a_copy(tmp_path: Path, source_tree: Path) -> None:
    """A copy of the superblock does not say that there is a log to replay; the log does."""
    image = make_image(tmp_path / "image", SIZE, "-t", "ext4", "-b", 1024, source=source_tree)
    block = load_image(image).read(1024, 1024)
    changed = bytearray(block)
    changed[0x78:0x88] = b"label in the log"
    (tmp_path / "block").write_bytes(bytes(changed))
    debugfs(image, "journal_open", f"journal_write -b 1 {tmp_path / 'block'}", "journal_close")
    device = load_image(image)
    device.write(1024, bytes(1024))

    volume = open_volume(device)

    assert volume.was_replayed
    assert volume.warnings()


def test_what_has_no_copy_stays_an_error(tmp_path: Path) -> None:
    """Without a copy, or with one of another size, the first error is the one that is raised."""
    image = make_image(tmp_path / "image", 4 << 20, "-t", "ext4", "-b", 1024)
    device = load_image(image)
    assert find_backup(device) is None
    device.write(1024 + 0x60, b"\xff")
    with pytest.raises(CorruptError, match="checksum"):
        open_volume(device)
    image = make_image(tmp_path / "image", SIZE, "-t", "ext4", "-b", 1024)
    with pytest.raises(CorruptError, match="more than the device has"):
        open_volume(MemoryDevice.of(image.read_bytes()[: SIZE // 2]))


def test_volume_without_a_start_is_opened_on_demand(tmp_path: Path) -> None:
    """A probe does not take it for ext, but who asks to open it gets what the copies tell."""
    image = make_image(tmp_path / "image", SIZE, "-t", "ext4", "-b", 1024)
    device = load_image(image)
    device.write(0, bytes(65536))

    assert fsdrivers.find_driver(fsdrivers.probe(device)) is None
    volume = fsdrivers.open_volume(device)
    assert [entry.name for entry in volume.walk()] == [b"", b"lost+found"]
    with pytest.raises(NotRecognisedError):
        fsdrivers.open_volume(MemoryDevice(SIZE))


@pytest.mark.parametrize("name", ["ext3", "ext4"])
@pytest.mark.parametrize("what", ["inode", "superblock"])
def test_journal_of_a_clean_volume_is_not_needed(
    tmp_path: Path, source_tree: Path, name: str, what: str
) -> None:
    """A damaged journal with nothing to replay costs no file: it is a warning and a finding."""
    options = ("-t", name, "-b", 1024, "-J", "size=2")
    image = make_image(tmp_path / "image", SIZE, *options, source=source_tree)
    whole = open_volume(load_image(image))
    metadata, wanted = whole.metadata, seen_by_us(whole)
    assert whole._journal is not None
    position = metadata.inode_position(8) if what == "inode" else whole._journal.position(0)
    device = load_image(image)
    device.write(position, b"\xff" * 64)
    volume = open_volume(device)

    assert seen_by_us(volume) == wanted
    (warning,) = volume.warnings()
    assert "journal" in warning
    assert volume.describe()["journal_blocks"] == whole.describe()["journal_blocks"]
    assert warning in [finding.what for finding in check_volume(device)]
    with pytest.raises(FilesystemError):
        open_editor(device)
    marked = metadata.superblock.feature_incompat | 4  # recover: the log may hold changes
    device.write(1024 + metadata.superblock.OFFSETS["feature_incompat"], bytes([marked & 0xFF]))
    if metadata.superblock.has_metadata_checksums:
        sealed = bytearray(device.read(1024, 1024))
        sealed[-4:] = crc32c(ONES, bytes(sealed[:-4])).to_bytes(4, "little")
        device.write(1024, bytes(sealed))
    unreplayed = open_volume(device)

    assert isinstance(unreplayed.damage, CorruptError)
    assert any("its journal holds" in warning for warning in unreplayed.warnings())
    assert seen_by_us(unreplayed) == wanted
