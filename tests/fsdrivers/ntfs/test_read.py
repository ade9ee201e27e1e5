# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes made by others, read as they read them."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from fsdrivers import probe
from fsdrivers.device import FileDevice, Window
from fsdrivers.errors import CorruptError, UnsupportedError
from fsdrivers.ntfs.logfile import LogState
from fsdrivers.ntfs.nodes import XATTR_EFS
from fsdrivers.ntfs.volume import NtfsVolume, open_volume
from fsdrivers.volume import Entry, Kind
from tests.fsdrivers.ntfs.volumes import (
    MIB,
    make_image,
    mounted,
    populate,
    read_whole,
    reparse,
    scatter,
    seen_by_ntfs3g,
    seen_by_us,
    windows_volume,
)
from tests.programs import run

pytestmark = pytest.mark.tools

READ_ONLY = "ro,permissions,acl,streams_interface=xattr"
GEOMETRIES = {
    "4 KiB clusters": (64 * MIB, ()),
    "512 B clusters": (48 * MIB, ("-c", 512)),
    "4 KiB sectors": (64 * MIB, ("-s", 4096, "-c", 4096)),
    "64 KiB clusters": (96 * MIB, ("-c", 65536)),
    "2 MiB clusters": (640 * MIB, ("-c", 2 * MIB)),
}


def open_image(path: Path) -> NtfsVolume:
    """Open an image file."""
    return open_volume(FileDevice.open(path))


def entries_of(volume: NtfsVolume) -> dict[bytes, Entry]:
    """Return the entries of a volume by name."""
    return {entry.name: entry for entry in volume.walk()}


@pytest.mark.root
@pytest.mark.parametrize("name", GEOMETRIES)
def test_ntfs3g_sees_the_same(tmp_path: Path, name: str) -> None:
    """Names, content, streams, security and everything else is what ntfs-3g says it is."""
    size, options = GEOMETRIES[name]
    image = make_image(tmp_path / "image", size, "-L", "Windows ü", *options)
    with mounted(image, tmp_path / "mount") as root:
        populate(root)
    with mounted(image, tmp_path / "mount", READ_ONLY) as root:
        expected = seen_by_ntfs3g(root)
    volume = open_image(image)
    found = seen_by_us(volume)

    assert volume.label == "Windows ü".encode()
    assert found.keys() == expected.keys()
    for path, seen in expected.items():
        assert found[path] == seen, path


@pytest.mark.root
def test_identity_and_space(tmp_path: Path) -> None:
    """Serial, label, type and free space are those that blkid and ntfs-3g tell."""
    image = make_image(tmp_path / "image", 32 * MIB, "-L", "label")
    volume = open_image(image)
    shown = run("blkid", "--probe", "-o", "value", "-s", "UUID", image).strip()
    with mounted(image, tmp_path / "mount", "ro") as root:
        space = os.statvfs(root)
    with FileDevice.open(image) as device:
        assert probe(device) == volume.type == "ntfs"

    assert volume.uuid == shown
    assert volume.label == b"label"
    assert volume.block_size == space.f_frsize
    assert volume.used_size() == (space.f_blocks - space.f_bfree) * space.f_frsize
    assert volume.warnings() == []


@pytest.mark.root
def test_scattered_file(tmp_path: Path) -> None:
    """A file whose runs fill several records is read, piece by piece and as a whole."""
    image = make_image(tmp_path / "image", 32 * MIB)
    with mounted(image, tmp_path / "mount") as root:
        scatter(root / "scattered", root / "filler", random.Random(1))
        expected = (root / "scattered").read_bytes()
    volume = open_image(image)
    node = entries_of(volume)[b"scattered"].node

    assert len(volume.extents(node)) > 100
    assert read_whole(volume, node, b"", node.size, step=10_007) == expected
    assert volume.read(node, 0, node.size) == expected
    device = volume.device
    parts = [device.read(part.position, part.length) for part in volume.extents(node)]
    assert b"".join(parts)[: node.size] == expected


@pytest.mark.root
def test_encrypted_file(tmp_path: Path) -> None:
    """An encrypted file is read as it is stored, with its keys, whole blocks of it."""
    image = make_image(tmp_path / "image", 16 * MIB)
    keys = struct.pack("<I", 604) + random.Random(2).randbytes(600)
    stored = random.Random(3).randbytes(1536)
    with mounted(image, tmp_path / "mount") as root:
        (root / "secret").write_bytes(stored + struct.pack("<H", 512 - 100))
        os.setxattr(root / "secret", "system.ntfs_efsinfo", keys)
    volume = open_image(image)
    node = entries_of(volume)[b"secret"].node
    (stream,) = node.streams

    assert dict(node.xattrs)[XATTR_EFS] == keys
    assert (stream.name, stream.flags) == (b"", 0x4000)
    assert node.size == stream.size == 1536
    assert stream.padding == 412
    assert volume.read(node, 0, 5000) == stored


@pytest.mark.root
def test_deduplicated_file_is_refused(tmp_path: Path) -> None:
    """A file whose content is in a chunk store stops the walk by name; the volume says so."""
    image = make_image(tmp_path / "image", 16 * MIB)
    with mounted(image, tmp_path / "mount") as root:
        (root / "file").write_bytes(b"")
        os.setxattr(root / "file", "system.ntfs_reparse_data", reparse(0x80000013, bytes(40)))
    volume = open_image(image)

    assert volume.system.is_deduplicated()
    assert volume.describe()["is_deduplicated"] is True
    with pytest.raises(UnsupportedError, match="deduplicated"):
        list(volume.walk())


@pytest.mark.root
def test_state_of_a_volume(tmp_path: Path) -> None:
    """A dirty volume and a hibernated one are read, and said to be so."""
    image = make_image(tmp_path / "image", 16 * MIB)
    with mounted(image, tmp_path / "mount") as root:
        (root / "hiberfil.sys").write_bytes(b"hibr" + bytes(8000))
    volume = open_image(image)

    assert volume.is_hibernated()
    assert volume.log_state() is LogState.EMPTY
    assert len(volume.warnings()) == 1
    with mounted(image, tmp_path / "mount", "remove_hiberfile") as root:
        (root / "file").write_bytes(b"x")
    run("ntfsfix", image)  # marks it dirty, so that Windows checks it

    volume = open_image(image)
    assert volume.is_dirty
    assert not volume.is_hibernated()
    assert [entry.name for entry in volume.walk()] == [b"", b"file"]


def test_windows_volume() -> None:
    """A volume that Windows made is what sleuthkit and libfsntfs read there."""
    image = windows_volume()
    volume = open_image(image)
    found = seen_by_us(volume)
    listed = run("fsntfsinfo", "-H", image).splitlines()
    paths = {line.replace("\\", "/")[1:] for line in listed if line.startswith("\\")}
    ours = {os.fsdecode(path) for path in found if path != b"."}

    assert ours == {
        path for path in paths if (path and not path.startswith("$")) or "RECYCLE" in path
    }
    assert volume.log_state() is LogState.CLEAN
    assert volume.describe()["version"] == "3.1"
    files = [path for path, seen in found.items() if not seen.is_directory]
    for path in files[::40]:
        number = run("ifind", "-n", os.fsdecode(path), image).strip()
        content = subprocess.run(["icat", image, number], capture_output=True, check=True).stdout
        assert hashlib.sha256(content).hexdigest() == found[path].content, path


@pytest.mark.root
def test_windows_volume_as_ntfs3g_reads_it(tmp_path: Path) -> None:
    """The same volume, everything that ntfs-3g shows of it."""
    image = tmp_path / "image"
    image.write_bytes(windows_volume().read_bytes())
    with mounted(image, tmp_path / "mount", READ_ONLY) as root:
        expected = seen_by_ntfs3g(root)
    found = seen_by_us(open_image(image))

    assert found.keys() == expected.keys()
    for path, seen in expected.items():
        assert found[path] == seen, path


def test_sleuthkit_recovers_the_same(tmp_path: Path) -> None:
    """Debian's sample for forensics has the content that tsk_recover finds."""
    sample = Path("/usr/share/forensics-samples/fs.ntfs.xz")
    image = tmp_path / "image"
    image.write_bytes(b"")
    run("sh", "-c", f"xz -dc {sample} > {image}")
    start = 2048 * 512
    device = FileDevice.open(image)
    volume = open_volume(Window(device, start, device.size - start, "sample"))
    found = seen_by_us(volume)
    run("tsk_recover", "-a", "-o", 2048, image, tmp_path / "out")
    recovered = {
        os.fsencode(path.relative_to(tmp_path / "out")): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }

    ours = {path: seen.content for path, seen in found.items() if not seen.is_directory}
    assert {path: recovered[path] for path in ours} == ours


@pytest.mark.root
def test_fixups_are_tolerated_nowhere(tmp_path: Path) -> None:
    """A record that was written in part is refused, its place named."""
    image = make_image(tmp_path / "image", 16 * MIB)
    with mounted(image, tmp_path / "mount") as root:
        (root / "file").write_bytes(b"x" * 300)
    node = entries_of(open_image(image))[b"file"].node
    position = open_image(image).mft.record_position(node.number)
    with open(image, "r+b") as file:
        file.seek(position + 510)
        file.write(b"\xff\xff")
    with pytest.raises(CorruptError, match="written in part") as caught:
        list(open_image(image).walk())

    assert caught.value.position == position + 510
    assert "file" in caught.value.__notes__[0]


@pytest.mark.root
def test_first_record_from_the_mirror(tmp_path: Path) -> None:
    """Where the first MFT record or the boot sector is damaged its copy is read."""
    image = make_image(tmp_path / "image", 16 * MIB)
    with mounted(image, tmp_path / "mount") as root:
        (root / "file").write_bytes(b"x" * 300)
    position = open_image(image).mft.record_position(0)
    with open(image, "r+b") as file:
        file.seek(position)
        file.write(b"BAAD")
        file.seek(0)
        file.write(bytes(512))
    volume = open_image(image)

    assert [entry.name for entry in volume.walk() if entry.node.kind is Kind.FILE] == [b"file"]
    assert "$MFTMirr" in volume.warnings()[0]


@pytest.mark.root
def test_allocated_and_not_written(tmp_path: Path) -> None:
    """What is behind the initialised size is unwritten and reads as zeros."""
    image = make_image(tmp_path / "image", 16 * MIB)
    with mounted(image, tmp_path / "mount") as root:
        (root / "file").write_bytes(b"q" * 10000)
    run("ntfsfallocate", "-f", "-l", 200_000, image, "/file")
    volume = open_image(image)
    node = entries_of(volume)[b"file"].node
    written, unwritten = volume.extents(node)

    assert node.size == 200_000
    assert (written.offset, written.length, written.is_unwritten) == (0, 12288, False)
    assert (unwritten.offset, unwritten.length, unwritten.is_unwritten) == (12288, 188_416, True)
    assert volume.read(node, 0, node.size) == b"q" * 10000 + bytes(190_000)
