# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes edited until their structures are large: directories, run lists, the MFT itself."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import NoSpaceError
from fsdrivers.ntfs.edit import open_editor
from fsdrivers.ntfs.edit import session as edit_session
from fsdrivers.ntfs.edit.editor import NtfsEditor
from fsdrivers.ntfs.format.attributes import AttributeType
from fsdrivers.ntfs.format.records import SystemRecord
from fsdrivers.ntfs.volume import open_volume
from tests.fsdrivers.ntfs.editing import (
    MIB,
    assert_accepted,
    assert_clean,
    clock,
    directory_node,
    dump,
    edited,
    file_node,
    make_file,
)

pytestmark = pytest.mark.tools


def _directory(count: int, tmp_path: Path, geometry: str, size: int) -> None:
    device, editor = edited(geometry, size)
    where = editor.create(editor.root, b"large", directory_node()).number
    names = [b"name of a file %06d" % index + b"x" * (index % 40) for index in range(count)]
    random.Random(count).shuffle(names)
    for name in names:
        editor.create(where, name, file_node())
    editor.flush()
    assert_clean(device)
    found = assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount")
    assert sorted(found) == sorted("large/" + name.decode() for name in names)
    random.Random(count + 1).shuffle(names)
    for done, name in enumerate(names):
        editor.unlink(where, name)
        if done % (count // 4) == 0:
            editor.flush()
            assert_clean(device)
    editor.close()

    assert_clean(device)
    file = open_volume(device).mft.file(where)
    assert not file.find(AttributeType.INDEX_ALLOCATION, "$I30".encode("utf-16-le"))
    assert assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount") == {}


def test_directory_grows_and_is_emptied(tmp_path: Path) -> None:
    """A directory of 800 names is found whole by ntfs-3g, and small again when emptied."""
    _directory(800, tmp_path, "4k", 16 * MIB)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["4k", "512", "64k"])
def test_large_directory_grows_and_is_emptied(geometry: str, tmp_path: Path) -> None:
    """The same with 20,000 names, from any cluster size."""
    _directory(20_000, tmp_path, geometry, 128 * MIB)


@pytest.mark.slow
def test_thousands_of_runs(tmp_path: Path) -> None:
    """A file in 2000 parts has a list of its attributes, and is read by ntfs-3g."""
    device, editor = edited("512", 16 * MIB)
    files = [make_file(editor, editor.root, name) for name in (b"one", b"two")]
    for index in range(2000):
        for number in files:
            editor.write(number, index * 512, bytes([number, index % 256]) * 256)
    editor.flush()
    assert_clean(device)
    found = assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount")
    for name, number in zip(("one", "two"), files, strict=True):
        assert found[name] == b"".join(bytes([number, i % 256]) * 256 for i in range(2000))
    for size in (512_001, 70_000, 512, 0):
        editor.truncate(files[0], size)
        editor.flush()
        assert_clean(device)
    editor.unlink(editor.root, b"two")
    editor.close()
    assert_clean(device)


def _fragment(editor: NtfsEditor) -> None:
    """Take all clusters, and give back every other pair of them."""
    two, three, size = b"two", b"three", 2 * editor.block_size
    files = [make_file(editor, editor.root, name) for name in (two, three)]
    with suppress(NoSpaceError):
        for index in range(1 << 20):
            for number in files:
                editor.write(number, index * size, b"f" * size)
    editor.unlink(editor.root, two)
    editor.flush()


@pytest.mark.slow
def test_mft_grows_in_parts_beyond_its_record(tmp_path: Path) -> None:
    """On a fragmented volume the MFT's own run list goes on in other records."""
    device, editor = edited("512", 3 * MIB)
    _fragment(editor)
    names = 0
    with suppress(NoSpaceError):
        while True:
            editor.create(editor.root, b"%06d" % names, file_node())
            names += 1
    editor.close()

    assert_clean(device)
    volume = open_volume(device)
    assert volume.mft.file(SystemRecord.MFT).find(AttributeType.ATTRIBUTE_LIST) == []
    assert len(volume.mft.content.mapped) > 150
    assert len(volume.mft.file(SystemRecord.MFT).find(AttributeType.DATA)) > 1
    found = assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount")
    assert len(found) == names + 1
    editor = open_editor(device, clock=clock)
    for index in range(names):
        editor.unlink(editor.root, b"%06d" % index)
    editor.close()
    assert_clean(device)


def test_mft_grows_past_its_bitmap(tmp_path: Path) -> None:
    """With more records than a cluster of bitmap counts, the bitmap grows; spare bits are clear."""
    device, editor = edited("512", 16 * MIB)
    for index in range(4300):
        editor.create(editor.root, b"%06d" % index, file_node())
    editor.close()

    assert_clean(device)
    mft = open_volume(device).mft
    bitmap = mft.read_all(mft.file(0), AttributeType.BITMAP, limit=1 << 20)
    assert bitmap is not None
    assert len(bitmap) > 512
    assert int.from_bytes(bitmap, "little") >> mft.record_count == 0
    found = assert_accepted(dump(device, tmp_path / "image"), tmp_path / "mount")
    assert len(found) == 4300


def test_batches_that_are_committed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """More changes than are kept in memory are committed on the way, in order."""
    monkeypatch.setattr(edit_session, "_MOST_PENDING", 500)
    device, editor = edited("4k", 32 * MIB)
    where = editor.create(editor.root, b"dir", directory_node()).number
    for index in range(900):
        editor.create(where, b"%05d" % (index * 7919 % 9000), file_node())
    volume = open_volume(MemoryDevice.of(device.read(0, device.size)))
    assert volume.is_dirty
    assert sum(1 for _ in volume.walk()) > 300
    editor.close()
    assert_clean(device)
    assert len(open_editor(device).names(where)) == 900
